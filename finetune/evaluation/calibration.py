"""Whether a confidence of 0.8 is right four times of five (Guo et al. 2017, section 2).

The rows are put into bins by their confidence, the probability of the predicted class. The
expected calibration error is the mean distance between a bin's confidence and its accuracy,
weighted by rows. Chance keeps it above 0 for a calibrated model too, the more so the fewer the
rows. So it is told with what such a model would show: each row is right with the probability
that its confidence states, drawn anew DRAWS times (Bröcker and Smith 2007 for the bins).
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int64

from finetune.evaluation.resampling import CONFIDENCE, Interval, wilson

BINS = 15
"""Of equal width, each with its upper end; as in Guo et al. 2017."""
DRAWS = 500


@runtime_checkable
class Confident(Protocol):
    """Predictions that say how sure they are."""

    @property
    def confidences(self) -> Float[np.ndarray, " rows"]:
        """The probability of each row's predicted answer; float64."""
        ...

    @property
    def correct(self) -> Bool[np.ndarray, " rows"]:
        """Whether it is the true one."""
        ...


class Bin(NamedTuple):
    """The rows whose confidence lies in (low, high]."""

    low: float
    high: float
    rows: int
    confidence: float
    """The mean."""
    accuracy: float
    interval: Interval
    """Wilson's, of the accuracy."""


class Calibration(NamedTuple):
    """What confidences are worth."""

    error: float
    """The expected calibration error: 0 at best."""
    by_chance: float
    """Its mean for a calibrated model of the same confidences."""
    by_chance_at_most: float
    """Where 95% of such models' errors end."""
    bins: list[Bin]
    """Those that have rows."""

    @property
    def text(self) -> str:
        """Say it in two lines."""
        rows = sum(each.rows for each in self.bins)
        sure = sum(each.rows * each.confidence for each in self.bins) / rows
        right = sum(each.rows * each.accuracy for each in self.bins) / rows
        return (
            f"Calibration: {sure:.1%} sure on average and {right:.1%} right; "
            f"expected calibration error {self.error:.4f}.\n"
            f"A calibrated model as sure as this one would show {self.by_chance:.4f}, and in 95 "
            f"of 100 cases {self.by_chance_at_most:.4f} or less.\n"
        )

    def as_json(self) -> dict[str, Any]:
        """Return all numbers."""
        return {**self._asdict(), "bins": [each._asdict() for each in self.bins]}


def calibrate(predictions: Confident, seed: int = 0) -> Calibration:
    """Hold the confidences of predictions against how often they are right."""
    confidences, rng = predictions.confidences, np.random.default_rng(seed)
    bins = np.clip(np.ceil(confidences * BINS).astype(np.int64) - 1, 0, BINS - 1)
    chance = np.array([
        _error(confidences, rng.random(len(confidences)) < confidences, bins) for _ in range(DRAWS)
    ])  # fmt: skip
    return Calibration(
        _error(confidences, predictions.correct, bins),
        float(chance.mean()),
        float(np.quantile(chance, CONFIDENCE)),
        _describe(confidences, predictions.correct, bins),
    )


def _error(
    confidences: Float[np.ndarray, " rows"],
    correct: Bool[np.ndarray, " rows"],
    bins: Int64[np.ndarray, " rows"],
) -> float:
    """Return Σ_bins rows/all · |accuracy − confidence|, which is Σ |right − confidences| / all."""
    gaps = np.bincount(bins, correct - confidences, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidences))


def _describe(
    confidences: Float[np.ndarray, " rows"],
    correct: Bool[np.ndarray, " rows"],
    bins: Int64[np.ndarray, " rows"],
) -> list[Bin]:
    found = []
    for number in np.unique(bins).tolist():
        chosen = bins == number
        rows, right = int(chosen.sum()), int(correct[chosen].sum())
        mean = float(confidences[chosen].mean())
        ends = number / BINS, (number + 1) / BINS
        found.append(Bin(*ends, rows, mean, right / rows, wilson(right, rows)))
    return found
