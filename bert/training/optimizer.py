"""AdamW, Google's Adam for BERT, or LAMB, with weight decay for matrices only."""

from typing import Any

import torch
from torch import nn

from bert.training.bert_adam import BertAdam
from bert.training.config import TrainingConfig
from bert.training.lamb import Lamb
from kernels import choose


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Say whether a parameter has weight decay: weight matrices and embeddings do.

    Biases and LayerNorm weights don't (Devlin et al. 2018; google-research/bert,
    optimization.py): they are the parameters of one dimension, and what is called a bias.
    """
    return parameter.ndim >= 2 and not name.rpartition(".")[2].endswith("bias")


def build_optimizer(objective: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Make the optimiser over the trainable parameters, in named groups.

    A tied parameter has one place, under its first name. AdamW (Loshchilov and Hutter 2019) takes
    torch's fused kernel where there is one for the device, LAMB the one of `config.kernels`;
    as in its authors' code, what has no weight decay has no trust ratio.

    Raises:
        ValueError: nothing is trainable.
    """
    trainable = {
        name: parameter
        for name, parameter in objective.named_parameters()
        if parameter.requires_grad
    }
    if not trainable:
        raise ValueError("objective: expected a trainable parameter, got none")
    members: dict[str, list[nn.Parameter]] = {"decay": [], "no_decay": []}
    for name, parameter in trainable.items():
        members["decay" if is_decayed(name, parameter) else "no_decay"].append(parameter)
    decays = {"decay": config.weight_decay, "no_decay": 0.0}
    groups: list[dict[str, Any]] = [
        {"name": group, "params": parameters, "weight_decay": decays[group]}
        for group, parameters in members.items()
        if parameters
    ]
    settings = {"lr": config.learning_rate, "betas": config.betas, "eps": config.eps}
    device = next(iter(trainable.values())).device
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, **settings, fused=device.type in ("cpu", "cuda"))
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
