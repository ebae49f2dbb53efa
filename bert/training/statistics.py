"""What those who study training look at: how each tensor's gradient, size and change behave.

One optimiser step is watched from the optimiser's own hooks, so that nothing about it changes:
the numbers that are trained are the same, bit by bit, whether somebody looks or not.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bert.training.sharding import whole

Statistics = dict[str, dict[str, float | None]]


@contextmanager
def watch_step(objective: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Statistics]:
    """Yield a dictionary that is filled when the optimiser takes a step, and else stays empty.

    It has, by the parameter's name:
        gradient_norm   ‖g‖ of the gradient that the optimiser gets, so after clipping
        parameter_norm  ‖w‖ before the step
        update_ratio    ‖Δw‖ / ‖w‖, the step's length by the length of what it changes;
                        None where w is zero, as a new bias is

    A copy of the parameters is held meanwhile. An update ratio near 1e-3 is the rule of thumb
    (Karpathy, CS231n notes, Neural Networks part 3); far above it the learning rate is too high.
    Of several processes with parts of the parameters, all watch.
    """
    statistics: Statistics = {}
    before: dict[str, Tensor] = {}
    parameters = {name: p for name, p in objective.named_parameters() if p.requires_grad}

    def look(*_: Any) -> None:
        if before:
            return  # an optimiser's step that stands on another's has hooks around both
        graded = {name: p for name, p in parameters.items() if p.grad is not None}
        before.update({name: p.detach().clone() for name, p in graded.items()})
        gradients = {name: p.grad.detach() for name, p in graded.items() if p.grad is not None}
        statistics["gradient_norm"] = _norms(gradients)
        statistics["parameter_norm"] = _norms(before)

    def compare(*_: Any) -> None:
        changes = _norms({name: parameters[name].detach() - w for name, w in before.items()})
        lengths = statistics["parameter_norm"]
        statistics["update_ratio"] = {
            name: change / length if (length := lengths[name]) else None
            for name, change in changes.items()
        }

    hooks = (
        optimizer.register_step_pre_hook(look),
        optimizer.register_step_post_hook(compare),
    )
    try:
        yield statistics
    finally:
        for hook in hooks:
            hook.remove()


def _norms(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return each tensor's Euclidean norm, in float32 at least; the device is waited for once."""
    norms = [
        whole(torch.linalg.vector_norm(t, dtype=torch.promote_types(t.dtype, torch.float32)))
        for t in tensors.values()
    ]
    return dict(zip(tensors, torch.stack(norms).tolist(), strict=True)) if norms else {}
