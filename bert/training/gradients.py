"""The gradient of one optimiser step, whatever the number of micro-batches that it is cut into."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bert.training.distributed import ALONE, World
from bert.training.hardware import Hardware
from bert.training.objective import Objective
from bert.training.sharding import drop_unreached, is_sharded, passes_in_step

_UINT64 = 2**64 - 1


@dataclass(frozen=True)
class WindowLosses:
    """What a window of micro-batches cost.

    Means over the whole window, one for each loss that has terms in it, and the part of the
    step's loss that each micro-batch gave, by its index.
    """

    means: dict[str, float]
    parts: dict[int, float]

    @property
    def total(self) -> float:
        """The step's loss: the sum of the means."""
        return sum(self.means.values(), 0.0)


def dropout_seed(seed: int, micro_batch: int) -> int:
    """Return 63 bits that depend on nothing but the two (SplitMix64, Steele et al. 2014)."""
    state = _mix(seed) + (micro_batch + 1) * 0x9E3779B97F4A7C15
    return _mix(state) >> 1


def add_gradients(
    objective: Objective[Any],
    window: Sequence[tuple[int, Any]],
    *,
    seed: int,
    hardware: Hardware,
    check: Callable[[], None] = lambda: None,
    world: World = ALONE,
    loss_scale: float = 1.0,
) -> WindowLosses:
    """Add the gradient of a window's loss to `.grad`.

    The loss is Σ over names of (Σ over the window of the loss's sums) / (its terms in the whole
    window, or their weights). These are counted before the first pass, so that the gradient is
    the one of all samples in one batch: the mean of the micro-batches' means is another number as
    soon as they have unequal counts. Several processes share a window; each counts the terms of
    all, and ends with the gradients and losses of all.

    Args:
        objective: on `hardware.device`; its gradients are cut as its parameters are.
        window: (index, micro-batch on the CPU); this process's share.
        seed: of dropout.
        hardware: where, and in which precision.
        check: called before each micro-batch; may raise to abandon the window.
        world: the processes that share the window; no `.grad` may be there if they are several.
        loss_scale: multiplies what is differentiated, and so the gradients.

    Raises:
        ValueError: the objective returned other losses than it counted.
        ProcessLost: one of the processes has ended.
    """
    counts = [objective.counts(batch) for _, batch in window]
    everyones = world.gather(counts)
    terms = _total(count for counts_of_one in everyones for count in counts_of_one)
    passes = [(place, 1.0) for place, count in enumerate(counts) if any(count.values())]
    if is_sharded(objective) and any(terms.values()):
        passes = passes_in_step(len(window), max(map(len, everyones)))

    sums: dict[str, Tensor] = {}
    parts: dict[int, Tensor] = {}
    for place, weight in passes:
        (index, batch), count = window[place], counts[place]
        check()
        losses = run_forward(objective, batch, dropout_seed(seed, index), hardware)
        if losses.keys() != count.keys():
            raise ValueError(
                f"objective: expected the losses {sorted(count)} that it counts, "
                f"got {sorted(losses)}"
            )
        part = torch.stack([losses[name] / terms[name] for name in losses if terms[name]]).sum()
        part.backward(torch.full_like(part, weight * loss_scale))
        if not weight:
            continue
        parts[index] = part.detach()
        for name, value in losses.items():
            sums[name] = sums[name] + value.detach() if name in sums else value.detach()

    if is_sharded(objective):
        drop_unreached(objective, world)
    else:
        world.sum_gradients([p for p in objective.parameters() if p.requires_grad])
    return _losses_of_all(world, terms, sums, parts)


def _losses_of_all(
    world: World, terms: Mapping[str, int], sums: dict[str, Tensor], parts: dict[int, Tensor]
) -> WindowLosses:
    mine = (
        {name: float(value) for name, value in sums.items()},
        [(index, float(part)) for index, part in parts.items()],
    )
    everyones = world.gather(mine)
    total = _total(sums_of_one for sums_of_one, _ in everyones)
    means = {name: value / terms[name] for name, value in total.items() if terms[name]}
    return WindowLosses(means, {index: part for _, pairs in everyones for index, part in pairs})


def _total(counts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Add up by name."""
    total: dict[str, Any] = {}
    for count in counts:
        for name, value in count.items():
            total[name] = total.get(name, 0) + value
    return total


def run_forward(
    objective: Objective[Any], batch: Any, seed: int, hardware: Hardware
) -> dict[str, Float[Tensor, ""]]:
    """Run the forward pass that `seed` stands for; the same seed gives the same pass again.

    The global generator gets the seed too: a stock `nn.Dropout` in an adapter or a head that
    somebody adds needs no state of its own, then, to be resumed exactly.
    """
    # Not torch.manual_seed: where CUDA isn't used it formats a stack trace at each call.
    torch.default_generator.manual_seed(seed)
    if hardware.device.type == "cuda":
        torch.cuda.manual_seed(seed)
    scalar = torch.full((), seed, dtype=torch.int64, device=hardware.device)
    with hardware.autocast():
        return objective(batch.to(hardware.device), scalar)


def _mix(value: int) -> int:
    value &= _UINT64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _UINT64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _UINT64
    return value ^ (value >> 31)
