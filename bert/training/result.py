"""How a run ended."""

import signal
from dataclasses import dataclass
from pathlib import Path

from bert.training.interrupt import exit_code


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended; the trained parameters are in the objective."""

    step: int
    tokens: int
    elapsed: float
    """Seconds of wall clock, over all the times that the run was started."""
    loss: float | None
    """Of the last step that was taken; None before the first."""
    evaluation: dict[str, float] | None
    """The last one's results."""
    best_value: float | None
    """Of the metric that early stopping follows: its best value; None where it follows none."""
    best_step: int
    """The first step at which it had that value; 0 where it follows none."""
    stopped_early: str | None
    """Why it ended before its budget did; None: it didn't."""
    checkpoint: Path | None
    """The newest one; None where no step was taken."""
    interrupted: signal.Signals | None
    """The signal that ended the run early."""

    @property
    def exit_code(self) -> int:
        """0, or 130 after SIGINT and 143 after SIGTERM."""
        return 0 if self.interrupted is None else exit_code(self.interrupted)
