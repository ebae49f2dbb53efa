"""AdamW, with weight decay for matrices only."""

import torch
from torch import nn

from bert.training.config import TrainingConfig


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Say whether a parameter has weight decay: weight matrices and embeddings do.

    Biases and LayerNorm weights don't (Devlin et al. 2018; google-research/bert,
    optimization.py): they are the parameters of one dimension, and what is called a bias.
    """
    return parameter.ndim >= 2 and not name.rpartition(".")[2].endswith("bias")


def build_optimizer(objective: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """Make AdamW (Loshchilov and Hutter 2019) over the trainable parameters, in named groups.

    A tied parameter has one place, under its first name. The fused kernel is taken where torch
    has one for the device.

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
    return torch.optim.AdamW(
        [
            {"name": group, "params": parameters, "weight_decay": decays[group]}
            for group, parameters in members.items()
            if parameters
        ],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        fused=all(parameter.device.type in ("cpu", "cuda") for parameter in trainable.values()),
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every group the same learning rate."""
    for group in optimizer.param_groups:
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
