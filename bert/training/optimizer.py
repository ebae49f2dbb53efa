"""AdamW, Google's Adam for BERT, LAMB or Muon, with weight decay for matrices only."""

from typing import Any

import torch
from torch import nn

from bert.training.bert_adam import BertAdam
from bert.training.config import TrainingConfig
from bert.training.lamb import Lamb
from bert.training.muon import MuonAdamW
from kernels import choose

GROUPS = ("muon", "muon_qkv", "decay", "no_decay")
"""Their order in the optimiser."""


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Say whether a parameter has weight decay: weight matrices and embeddings do.

    Biases and LayerNorm weights don't (Devlin et al. 2018; google-research/bert,
    optimization.py): they are the parameters of one dimension, and what is called a bias.
    """
    return parameter.ndim >= 2 and not name.rpartition(".")[2].endswith("bias")


def group_of(name: str, parameter: nn.Parameter, optimizer: str) -> str:
    """Return the group of a parameter.

    Muon is for the encoder's matrices, query's, key's and value's apart though they are one
    tensor; embeddings and heads have AdamW (Jordan et al. 2024).
    """
    if not is_decayed(name, parameter):
        return "no_decay"
    if optimizer == "muon" and parameter.ndim == 2 and "encoder" in name.split("."):
        return "muon_qkv" if name.endswith("qkv.weight") else "muon"
    return "decay"


def build_optimizer(objective: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Make the optimiser over the trainable parameters, in named groups.

    A tied parameter has one place, under its first name. AdamW (Loshchilov and Hutter 2019) takes
    torch's fused kernel where there is one for the device, LAMB the one of `config.kernels`;
    as in its authors' code, what has no weight decay has no trust ratio.

    Raises:
        ValueError: nothing is trainable, or nothing is for Muon.
    """
    trainable = {
        name: parameter
        for name, parameter in objective.named_parameters()
        if parameter.requires_grad
    }
    if not trainable:
        raise ValueError("objective: expected a trainable parameter, got none")
    members: dict[str, list[nn.Parameter]] = {}
    for name, parameter in trainable.items():
        members.setdefault(group_of(name, parameter, config.optimizer), []).append(parameter)
    if config.optimizer == "muon" and not {"muon", "muon_qkv"} & members.keys():
        raise ValueError("optimizer: expected matrices of an encoder to train by muon, got none")
    groups: list[dict[str, Any]] = [
        {
            "name": name,
            "params": members[name],
            "weight_decay": 0.0 if name == "no_decay" else config.weight_decay,
        }
        for name in GROUPS
        if name in members
    ]
    settings = {"lr": config.learning_rate, "betas": config.betas, "eps": config.eps}
    device = next(iter(trainable.values())).device
    is_fused = device.type in ("cpu", "cuda")
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, **settings, fused=is_fused)
    if config.optimizer == "muon":
        for group in groups:
            group["parts"] = {"muon": 1, "muon_qkv": 3}.get(group["name"])
        return MuonAdamW(groups, **settings, fused=is_fused)
    if config.optimizer == "bert_adam":
        return BertAdam(groups, **settings)
    for group in groups:
        group["is_adapted"] = group["name"] == "decay"
    return Lamb(groups, **settings, kernels=choose(config.kernels, device))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every group the same learning rate; one that is a tensor stays where it lies."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(learning_rate)
        else:
            group["lr"] = learning_rate


def describe_groups(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, int | float]]:
    """Return for each group its tensors, its numbers and its weight decay, for the log."""
    return {
        group["name"]: {
            "tensors": len(group["params"]),
            "parameters": sum(parameter.numel() for parameter in group["params"]),
            "weight_decay": group["weight_decay"],
        }
        for group in optimizer.param_groups
    }
