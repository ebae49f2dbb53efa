"""AdamW, Google's Adam for BERT, LAMB or Muon, with weight decay for matrices only.

With `layer_decay` d each layer's rate is d times that of the layer above it (Howard and Ruder
2018, section 3.2), so that what is nearest to the text, and most general, changes least. The
heads and the pooler have the schedule's rate; the uppermost of L layers has d times it, the
lowest dᴸ, and the embeddings dᴸ⁺¹. (Clark et al. 2020 do it too; google-research/electra has d²
for the uppermost layer, and so on.)
"""

import re
from typing import Any

import torch
from torch import nn

from bert.training.bert_adam import BertAdam
from bert.training.config import TrainingConfig
from bert.training.lamb import Lamb
from bert.training.muon import MuonAdamW
from kernels import choose

KINDS = ("muon", "muon_qkv", "decay", "no_decay")
"""The kinds of parameters, in their order in the optimiser."""
_LAYER = re.compile(r"\bencoder\.layers\.(\d+)\.")
HEADS = (0, "heads")


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Say whether a parameter has weight decay: weight matrices and embeddings do.

    Biases and LayerNorm weights don't (Devlin et al. 2018; google-research/bert,
    optimization.py): they are the parameters of one dimension, and what is called a bias.
    """
    return parameter.ndim >= 2 and not name.rpartition(".")[2].endswith("bias")


def kind_of(name: str, parameter: nn.Parameter, optimizer: str) -> str:
    """Return the kind of a parameter.

    Muon is for the encoder's matrices, query's, key's and value's apart though they are one
    tensor; embeddings and heads have AdamW (Jordan et al. 2024).
    """
    if not is_decayed(name, parameter):
        return "no_decay"
    if optimizer == "muon" and parameter.ndim == 2 and "encoder" in name.split("."):
        return "muon_qkv" if name.endswith("qkv.weight") else "muon"
    return "decay"


def depth_of(name: str, layers: int) -> tuple[int, str]:
    """Return how far below the heads a parameter of so many layers lies, and what lies there."""
    if found := _LAYER.search(name):
        return layers - int(found[1]), f"layer_{found[1]}"
    return (layers + 1, "embeddings") if "embeddings" in name.split(".") else HEADS


def build_optimizer(objective: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Make the optimiser over the trainable parameters, in named groups.

    A tied parameter has one place, under its first name. AdamW (Loshchilov and Hutter 2019) takes
    torch's fused kernel where there is one for the device, LAMB the one of `config.kernels`;
    as in its authors' code, what has no weight decay has no trust ratio.

    Raises:
        ValueError: nothing is trainable, nothing is for Muon, or no layers are there for a decay.
    """
    groups = _groups(objective, config)
    settings = {"lr": config.learning_rate, "betas": config.betas, "eps": config.eps}
    device = groups[0]["params"][0].device
    is_fused = device.type in ("cpu", "cuda")
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, **settings, fused=is_fused)
    if config.optimizer == "muon":
        for group in groups:
            group["parts"] = {"muon": 1, "muon_qkv": 3}.get(group["kind"])
        return MuonAdamW(groups, **settings, fused=is_fused)
    if config.optimizer == "bert_adam":
        return BertAdam(groups, **settings)
    for group in groups:
        group["is_adapted"] = group["kind"] == "decay"
    return Lamb(groups, **settings, kernels=choose(config.kernels, device))


def _groups(objective: nn.Module, config: TrainingConfig) -> list[dict[str, Any]]:
    """Sort the trainable parameters by their kind and, where the rate falls with it, depth."""
    parameters = dict(objective.named_parameters())
    layers = len({found[1] for found in map(_LAYER.search, parameters) if found})
    if config.layer_decay is not None and not layers:
        raise ValueError("layer_decay: expected the layers of an encoder, got none")
    members: dict[tuple[int, tuple[int, str]], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        if parameter.requires_grad:
            depth = HEADS if config.layer_decay is None else depth_of(name, layers)
            kind = KINDS.index(kind_of(name, parameter, config.optimizer))
            members.setdefault((kind, depth), []).append(parameter)
    if not members:
        raise ValueError("objective: expected a trainable parameter, got none")
    if config.optimizer == "muon" and min(members)[0] > KINDS.index("muon_qkv"):
        raise ValueError("optimizer: expected matrices of an encoder to train by muon, got none")
    return [
        {
            "name": KINDS[kind] if config.layer_decay is None else f"{KINDS[kind]}/{where}",
            "kind": KINDS[kind],
            "params": members[kind, (below, where)],
            "weight_decay": 0.0 if KINDS[kind] == "no_decay" else config.weight_decay,
            "rate_scale": (config.layer_decay or 1.0) ** below,
        }
        for kind, (below, where) in sorted(members)
    ]


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give each group its share of the rate; one that is a tensor stays where it lies."""
    for group in optimizer.param_groups:
        rate = learning_rate * group.get("rate_scale", 1.0)
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def describe_groups(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, int | float]]:
    """Return each group's tensors, numbers, weight decay and share of the rate, for the log."""
    return {
        group["name"]: {
            "tensors": len(group["params"]),
            "parameters": sum(parameter.numel() for parameter in group["params"]),
            "weight_decay": group["weight_decay"],
            "rate_scale": group["rate_scale"],
        }
        for group in optimizer.param_groups
    }
