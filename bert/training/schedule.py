"""The learning rate as a pure function of how far the run has come, in whatever its budget counts.

| schedule | share of the peak: w is the warm-up's share, p the progress, r = (p − w) / (1 − w) |
| --- | --- |
| linear | 1 − r |
| constant | 1 |
| cosine | (1 + cos πr) / 2 |
| inverse_sqrt | √(w / p) |
| wsd | 1, but 1 − √((p − 1 + c) / c) in the cooldown, the last share c |
"""

import math
from collections.abc import Callable, Mapping

from bert.training.config import TrainingConfig
from bert.training.span import Place, Span


def learning_rate(config: TrainingConfig, progress: float) -> float:
    """Rise linearly to the peak, then follow the schedule (Devlin et al. 2018, A.2).

    Args:
        config: gives the peak, the warm-up's share, the schedule, and the cooldown's share.
        progress: from 0, the start of the run, to 1, its end.
    """
    if progress < config.warmup:
        return config.learning_rate * progress / config.warmup
    return config.learning_rate * AFTER_WARMUP[config.schedule](config, progress)


def _since_warmup(config: TrainingConfig, progress: float) -> float:
    """Return how far the run is between the warm-up's end, 0, and its own, 1."""
    return min((progress - config.warmup) / (1.0 - config.warmup), 1.0)


def _linear(config: TrainingConfig, progress: float) -> float:
    return 1.0 - _since_warmup(config, progress)


def _constant(config: TrainingConfig, progress: float) -> float:
    return 1.0


def _cosine(config: TrainingConfig, progress: float) -> float:
    """Fall along half a wave (Loshchilov and Hutter 2017, without restarts)."""
    return (1.0 + math.cos(math.pi * _since_warmup(config, progress))) / 2


def _inverse_sqrt(config: TrainingConfig, progress: float) -> float:
    """Fall as 1/√t from the warm-up's end on (Vaswani et al. 2017, section 5.3)."""
    return math.sqrt(config.warmup / progress)


def _wsd(config: TrainingConfig, progress: float) -> float:
    """Stay, then fall as 1 − √t within the cooldown (Hägele et al. 2024)."""
    cooldown = config.cooldown_share()
    return 1.0 - math.sqrt(min(max((progress - (1.0 - cooldown)) / cooldown, 0.0), 1.0))


# What is left of the peak after the warm-up.
AFTER_WARMUP: Mapping[str, Callable[[TrainingConfig, float], float]] = {
    "linear": _linear,
    "constant": _constant,
    "cosine": _cosine,
    "inverse_sqrt": _inverse_sqrt,
    "wsd": _wsd,
}


def progress_at(total: Span, place: Place, reserve: float) -> float:
    """Return where in the run, from 0 to 1, the step that begins at `place` lies.

    A run counted in steps takes the middle of the step, so that neither the first nor the last
    has a learning rate of zero.

    Args:
        total: the budget.
        place: where the run is.
        reserve: seconds at the end of a wall-clock budget that are not for training.
    """
    if total.steps is not None:
        return min((place.steps + 0.5) / total.steps, 1.0)
    if total.tokens is not None:
        return min(place.tokens / total.tokens, 1.0)
    assert total.seconds is not None
    available = total.seconds - reserve
    return min(place.seconds / available, 1.0) if available > 0 else 1.0


def is_spent(total: Span, place: Place, reserve: float, step_seconds: float = 0.0) -> bool:
    """Say whether no step is left, or no time for one that takes `step_seconds`.

    Of a budget in tokens, the step that reaches it is the last.
    """
    if total.steps is not None:
        return place.steps >= total.steps
    if total.tokens is not None:
        return place.tokens >= total.tokens
    assert total.seconds is not None
    left = total.seconds - reserve - place.seconds
    return left <= 0 or left < step_seconds


def is_due(every: Span | None, place: Place, last: Place) -> bool:
    """Say whether something that was last done at the place `last` is to be done again.

    Steps and tokens are counted from the start of the run, so that one that came between, at a
    signal, doesn't shift those that follow.
    """
    if every is None or place.steps == last.steps:
        return False
    if every.steps is not None:
        return place.steps // every.steps > last.steps // every.steps
    if every.tokens is not None:
        return place.tokens // every.tokens > last.tokens // every.tokens
    assert every.seconds is not None
    return place.seconds - last.seconds >= every.seconds
