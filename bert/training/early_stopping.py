"""When a run ends before its budget does: its evaluations no longer find anything better."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from bert.training.state import TrainingState


@dataclass(frozen=True)
class EarlyStopping:
    """Which number of an evaluation tells the better from the worse, and how long to wait.

    What the run has seen is in its state, and so in its checkpoints, whatever the patience: a run
    that has stopped goes on with more of it as one that had it from the start.

    Raises:
        ValueError: the patience is less than one evaluation.
    """

    metric: str | None = None
    """A name that `evaluate` returns; the greater the better. None: there is none."""
    patience: int | None = None
    """Evaluations in a row, none better than the best before, that end a run; None: none do."""

    def __post_init__(self) -> None:
        """Check the patience."""
        if self.patience is not None and (self.patience < 1 or self.metric is None):
            raise ValueError(f"patience: expected 1 or more, and a metric, got {self.patience}")

    def follow(self, state: TrainingState, results: Mapping[str, float]) -> dict[str, int]:
        """Take note of an evaluation, and return what the log says of it.

        A value that is as good as the best, or NaN, is no better.
        """
        if self.metric is None:
            return {}
        value = results[self.metric]
        state.evaluations_since_best += 1
        if value > (-math.inf if state.best_value is None else state.best_value):
            state.best_value, state.best_step, state.evaluations_since_best = value, state.step, 0
        return {"since_best": state.evaluations_since_best}

    def reason_to_stop(self, state: TrainingState) -> str | None:
        """Say what was waited for, once the patience is at its end; None before."""
        count, best = state.evaluations_since_best, state.best_value
        if self.patience is None or count < self.patience:
            return None
        than = "" if best is None else f" than {best:.4f} at step {state.best_step}"
        return f"{count} evaluation{'s' * (count > 1)} without a better {self.metric}{than}"


NEVER = EarlyStopping()
