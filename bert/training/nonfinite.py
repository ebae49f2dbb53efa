"""Where a NaN or an infinity came from."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bert.training.distributed import ALONE, World
from bert.training.gradients import WindowLosses, dropout_seed, run_forward
from bert.training.hardware import Hardware
from bert.training.objective import Objective
from bert.training.sharding import cut_again, own_part


class TrainingDiverged(RuntimeError):
    """Too many steps in a row had a NaN or infinite loss or gradient."""


def find_source(
    objective: Objective[Any],
    window: Sequence[tuple[int, Any]],
    losses: WindowLosses,
    *,
    seed: int,
    hardware: Hardware,
    world: World = ALONE,
) -> str:
    """Say in words what is first to be NaN or infinite; call it while the gradients are there.

    A forward pass can be run again bit by bit, so the module is found by running the bad
    micro-batch a second time with a look at every module's output. It costs nothing until then.
    Several processes call this together, and get the same answer.
    """
    parameters = dict(objective.named_parameters())
    bad = _bad_in_any(parameters, world)
    if bad:
        return f"parameter {bad[0]} itself"
    bad_parts = [index for index, part in losses.parts.items() if not math.isfinite(part)]
    if bad_parts:
        # One process has that micro-batch. The others run one of theirs, and are not asked:
        # where parameters are cut, a pass needs all of them.
        bad_index, mine = min(bad_parts), dict(window)
        index = bad_index if bad_index in mine else window[0][0]
        module = _first_bad_module(objective, mine[index], dropout_seed(seed, index), hardware)
        found = world.gather(module if index == bad_index else None)
        module = next(name for name in found if name is not None)
        return f"output of {module}, micro-batch {bad_index}"
    gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    bad = _bad_in_any(gradients, world)
    if bad:
        # The backward pass runs from the last parameter to the first.
        return f"gradient of {bad[-1]}, the nearest to the loss of {len(bad)} bad ones"
    largest = world.gather({name: _largest(own_part(g)) for name, g in gradients.items()})
    name = max(gradients, key=lambda name: max(of_one[name] for of_one in largest))
    return f"norm of all gradients, each finite; the largest is in {name}"


def _bad_in_any(tensors: Mapping[str, Tensor], world: World) -> list[str]:
    """Name the tensors that are bad in any process, in their order."""
    bad = world.gather([name for name, t in tensors.items() if not _is_finite(own_part(t))])
    return [name for name in tensors if any(name in of_one for of_one in bad)]


def _largest(tensor: Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0


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
        cut_again(objective)
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
