"""A checkpoint's tensors back into an objective and its optimiser, all of them or none."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from bert.training.parts import read_parts
from bert.training.sharding import cut_like
from bert.training.state import (
    OPTIMIZER,
    PARAMETERS,
    Checkpoint,
    names_of_trained,
    state_tensors,
)


def restore(
    checkpoint: Checkpoint, objective: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Put a checkpoint's tensors in place, after all have been found to fit.

    Raises:
        ValueError: a tensor is missing, unknown, or of another shape or dtype; none is changed.
        OSError: a part could not be read again.
    """
    targets, parameters = state_tensors(objective), dict(objective.named_parameters())
    place, is_in_parts = checkpoint.path, checkpoint.is_in_parts
    _check_fit(place if is_in_parts else place / PARAMETERS, checkpoint.parameters, targets)
    saved = _moments_by_parameter(checkpoint.optimizer)
    _check_moments(place if is_in_parts else place / OPTIMIZER, saved, objective, optimizer)

    with torch.no_grad():
        moments = {
            name: {key: _blank(moment, parameters[name]) for key, moment in entry.items()}
            for name, entry in saved.items()
        }
        for name, entry in moments.items():
            targets |= {f"{name}/{key}": moment for key, moment in entry.items()}
        if is_in_parts:
            read_parts(place, targets)
        else:
            values = {**checkpoint.parameters, **checkpoint.optimizer}
            for name, target in targets.items():
                target.copy_(cut_like(values[name], target))
    trained = names_of_trained(objective, optimizer)
    optimizer.load_state_dict(
        {
            "state": {i: moments[name] for i, name in enumerate(trained) if name in moments},
            "param_groups": optimizer.state_dict()["param_groups"],
        }
    )


def _moments_by_parameter(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    moments: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition("/")
        moments.setdefault(parameter, {})[key] = tensor
    return moments


def _check_moments(
    file: Path,
    moments: Mapping[str, Mapping[str, Tensor]],
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    shapes = dict(objective.named_parameters())
    group = _groups_of_trained(objective, optimizer)
    keys: dict[int | None, set[str]] = {}
    for name, entry in moments.items():
        keys.setdefault(group.get(name), set()).update(entry)
    for name, entry in moments.items():
        fits = name in group and entry.keys() == keys[group[name]]
        if not fits or any(t.ndim and t.shape != shapes[name].shape for t in entry.values()):
            raise ValueError(f"{file}: {name} doesn't fit this optimiser")


def _blank(moment: Tensor, parameter: Tensor) -> Tensor:
    """Make room for a moment: cut as its parameter is, unless it is a single number."""
    if moment.ndim:
        return torch.zeros_like(parameter, dtype=moment.dtype)
    return torch.zeros((), dtype=moment.dtype)


def _groups_of_trained(objective: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Return the number of each parameter's group: within one, all keep the same tensors."""
    names = iter(names_of_trained(objective, optimizer))
    return {
        next(names): number
        for number, group in enumerate(optimizer.param_groups)
        for _ in group["params"]
    }


def _check_fit(file: Path, got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name in expected.keys() | got.keys():
        if name not in got or name not in expected:
            where = "is missing" if name not in got else "is not in the model"
            raise ValueError(f"{file}: {name} {where}")
        wanted, found = expected[name], got[name]
        if (wanted.shape, wanted.dtype) != (found.shape, found.dtype):
            raise ValueError(
                f"{file}: {name}: expected {wanted.dtype} {tuple(wanted.shape)}, "
                f"got {found.dtype} {tuple(found.shape)}"
            )
