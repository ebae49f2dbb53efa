"""What the demo is told. Imports no torch, so that `--help` answers at once."""

from dataclasses import dataclass
from pathlib import Path

from bert.training.span import parse_span


@dataclass(frozen=True)
class DemoConfig:
    """Pretrain a small BERT on books and fine-tune it on film reviews, beside one without.

    Raises:
        ValueError: a field is out of its range; the message names it.
    """

    out: Path = Path("runs/demo")
    """Directory of the run; an interrupted one goes on where it was."""
    budget: str = "6min"
    """Wall clock for all of it: 90s, 6min, 1h30min."""
    seed: int = 0
    """Seed of everything that is drawn."""

    def __post_init__(self) -> None:
        """Check each field, and name the one that is wrong."""
        if self.seconds < 30:
            raise ValueError(f"budget: expected 30s or more, got {self.budget!r}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed: expected 0 or more, below 2**63, got {self.seed}")

    @property
    def seconds(self) -> float:
        """The budget in seconds."""
        seconds = parse_span("budget", self.budget).seconds
        if seconds is None:
            raise ValueError(f"budget: expected a time such as 90s or 6min, got {self.budget!r}")
        return seconds
