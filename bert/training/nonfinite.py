"""Where a NaN or an infinity came from."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bert.training.gradients import WindowLosses, dropout_seed, run_forward
from bert.training.hardware import Hardware
from bert.training.objective import Objective


class TrainingDiverged(RuntimeError):
    """Too many steps in a row had a NaN or infinite loss or gradient."""


def find_source(
    objective: Objective[Any],
    window: Sequence[tuple[int, Any]],
    losses: WindowLosses,
    *,
    seed: int,
    hardware: Hardware,
) -> str | None:
    """Say in words what is first to be NaN or infinite; call it while the gradients are there.

    A forward pass can be run again bit by bit, so the module is found by running the bad
    micro-batch a second time with a look at every module's output. It costs nothing until then.

    Returns:
        None where only another process can say it, which has the bad micro-batch.
    """
    for name, parameter in objective.named_parameters():
        if not _is_finite(parameter):
            return f"parameter {name} itself"
    bad_parts = [index for index, part in losses.parts.items() if not math.isfinite(part)]
    if bad_parts:
        index, mine = min(bad_parts), dict(window)
        if index not in mine:
            return None
        module = _first_bad_module(objective, mine[index], dropout_seed(seed, index), hardware)
        return f"output of {module}, micro-batch {index}"
    gradients = [(name, p.grad) for name, p in objective.named_parameters() if p.grad is not None]
    bad = [name for name, gradient in gradients if not _is_finite(gradient)]
    if bad:
        # The backward pass runs from the last parameter to the first.
        return f"gradient of {bad[-1]}, the nearest to the loss of {len(bad)} bad ones"
    name, _ = max(gradients, key=lambda item: item[1].abs().max().item())
    return f"norm of all gradients, each finite; the largest is in {name}"


def _first_bad_module(objective: Objective[Any], batch: Any, seed: int, hardware: Hardware) -> str:
    found: list[str] = []

    def look(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if not all(_is_finite(tensor) for tensor in _tensors(output)):
            found.append(f"{name} ({type(module).__name__})" if name else "the objective itself")

    handles = [
        module.register_forward_hook(partial(look, name))
        for name, module in objective.named_modules()
    ]
    try:
        with torch.no_grad():
            run_forward(objective, batch, seed, hardware)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "no module when run again"


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for part in value:
            yield from _tensors(part)
    elif is_dataclass(value):
        yield from _tensors(vars(value))


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
