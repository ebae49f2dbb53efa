"""The learning rate as a pure function of how far the run has come."""

from collections.abc import Callable, Mapping

from bert.training.config import TrainingConfig
from bert.training.span import Span

# What is left of the peak, by how far the run is between the warm-up's end (0) and its own (1).
AFTER_WARMUP: Mapping[str, Callable[[float], float]] = {
    "linear": lambda rest: 1.0 - rest,
    "constant": lambda rest: 1.0,
}


def learning_rate(config: TrainingConfig, progress: float) -> float:
    """Rise linearly to the peak, then follow the schedule (Devlin et al. 2018, A.2).

    Args:
        config: gives the peak, the warm-up's share and the schedule.
        progress: from 0, the start of the run, to 1, its end.
    """
    if progress < config.warmup:
        return config.learning_rate * progress / config.warmup
    rest = (progress - config.warmup) / (1.0 - config.warmup)
    return config.learning_rate * AFTER_WARMUP[config.schedule](min(rest, 1.0))


def progress_of_step(total: Span, step: int, elapsed: float, reserve: float) -> float:
    """Return where in the run, from 0 to 1, the step after `step` finished ones lies.

    A run counted in steps takes the middle of the step, so that neither the first nor the last
    has a learning rate of zero.

    Args:
        total: the budget.
        step: finished steps.
        elapsed: seconds of wall clock since the run began, stops not counted.
        reserve: seconds at the end of a wall-clock budget that are not for training.
    """
    if total.steps is not None:
        return min((step + 0.5) / total.steps, 1.0)
    assert total.seconds is not None
    available = total.seconds - reserve
    return min(elapsed / available, 1.0) if available > 0 else 1.0


def is_spent(
    total: Span, step: int, elapsed: float, reserve: float, step_seconds: float = 0.0
) -> bool:
    """Say whether no step is left, or no time for one that takes `step_seconds`."""
    if total.steps is not None:
        return step >= total.steps
    assert total.seconds is not None
    left = total.seconds - reserve - elapsed
    return left <= 0 or left < step_seconds


def is_due(
    every: Span | None, step: int, last_step: int, elapsed: float, last_elapsed: float
) -> bool:
    """Say whether something that was last done at `last_step` is to be done again.

    Steps are counted from the start of the run, so that one that came between, at a signal,
    doesn't shift those that follow.
    """
    if every is None or step == last_step:
        return False
    if every.steps is not None:
        return step // every.steps > last_step // every.steps
    assert every.seconds is not None
    return elapsed - last_elapsed >= every.seconds
