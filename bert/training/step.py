"""One optimiser step: a window's gradient, clipped and applied; or nothing, if not finite."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from bert.training.config import TrainingConfig
from bert.training.distributed import ALONE, World
from bert.training.gradients import add_gradients
from bert.training.hardware import Hardware
from bert.training.nonfinite import find_source
from bert.training.objective import Objective
from bert.training.sharding import whole


@dataclass(frozen=True)
class StepOutcome:
    """What a step found, before clipping."""

    loss: float
    losses: dict[str, float]
    grad_norm: float
    source: str | None
    """Where the NaN or infinity came from that kept the step from being taken."""
    is_overflow: bool = False
    """Whether the step was not taken since the loss was scaled too high for float16."""


def take_step(
    objective: Objective[Any],
    optimizer: torch.optim.Optimizer,
    window: Sequence[tuple[int, Any]],
    config: TrainingConfig,
    hardware: Hardware,
    check: Callable[[], None],
    world: World = ALONE,
    loss_scale: float = 1.0,
) -> StepOutcome:
    """Change the parameters by the gradient of a window of micro-batches.

    The norm is taken first and the gradients are scaled after it was found finite: the two
    halves of `torch.nn.utils.clip_grad_norm_`, which would hide where a NaN came from.

    Args:
        objective: on the hardware's device.
        optimizer: with the learning rate of this step.
        window: (index, micro-batch on the CPU); this process's share.
        config: gives the seed and the clipping.
        hardware: where, and in which precision.
        check: called before each micro-batch; may raise, and nothing has changed then.
        world: the processes that take the step together.
        loss_scale: see loss_scale.py.
    """
    optimizer.zero_grad(set_to_none=True)
    losses = add_gradients(
        objective,
        window,
        seed=config.seed,
        hardware=hardware,
        check=check,
        world=world,
        loss_scale=loss_scale,
    )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters if p.grad is not None]
    if loss_scale != 1:
        torch._foreach_mul_(gradients, 1 / loss_scale)
    norm = whole(get_total_norm(gradients))
    has_loss, has_norm = math.isfinite(losses.total), math.isfinite(norm.item())
    source, is_overflow = None, has_loss and not has_norm and loss_scale > 1
    if has_loss and has_norm:
        if config.max_grad_norm is not None:
            clip_grads_with_norm_(parameters, config.max_grad_norm, norm)
        optimizer.step()
    elif not is_overflow:
        source = find_source(
            objective, window, losses, seed=config.seed, hardware=hardware, world=world
        )
    return StepOutcome(losses.total, losses.means, norm.item(), source, is_overflow)
