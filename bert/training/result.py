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
    checkpoint: Path | None
    """The newest one; None where no step was taken."""
    interrupted: signal.Signals | None
    """The signal that ended the run early."""

    @property
    def exit_code(self) -> int:
        """0, or 130 after SIGINT and 143 after SIGTERM."""
        return 0 if self.interrupted is None else exit_code(self.interrupted)
