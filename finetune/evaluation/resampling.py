"""How sure a score is: the percentile bootstrap over rows (Efron and Tibshirani 1993, chapter 13).

As many rows as there are get drawn from them with replacement, RESAMPLES times, and the middle 95%
of the scores are the interval. It says how the score of this model would vary over other rows of
the same kind; how it varies over seeds of training, only several runs can say.

A draw is told by how often each row is in it, and every kind of evidence scores draws told so.

Where every row is right all resamples are the same, and a bootstrap knows nothing. So a share of
rows, such as accuracy, has Wilson's interval (Wilson 1927), which holds there too.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from finetune.evaluation.evidence import Evidence

RESAMPLES = 2000
CONFIDENCE = 0.95

CHUNK = 2**21
"""Numbers held at once, however many rows there are."""


class Interval(NamedTuple):
    """Two ends, which have 95% between them."""

    low: float
    high: float


class Difference(NamedTuple):
    """By how much a second set of predictions scores above a first, on the same rows."""

    first: float
    second: float
    interval: Interval
    """Of second − first."""

    @property
    def value(self) -> float:
        """Second − first."""
        return self.second - self.first


def intervals(evidence: Evidence, seed: int = 0) -> dict[str, Interval]:
    """Return the interval of each score."""
    found = {name: _middle(drawn[0]) for name, drawn in _resample([evidence], seed).items()}
    if evidence.share is None:
        return found
    return found | {evidence.share: wilson(int(evidence.correct.sum()), len(evidence))}


def differences(first: Evidence, second: Evidence, seed: int = 0) -> dict[str, Difference]:
    """Return for each score how far the second is above the first; rows are drawn in pairs.

    Both must be of the same rows.
    """
    assert type(first) is type(second) and len(first) == len(second)
    before, after = scores(first), scores(second)
    return {
        name: Difference(before[name], after[name], _middle(drawn[1] - drawn[0]))
        for name, drawn in _resample([first, second], seed).items()
    }


def scores(evidence: Evidence) -> dict[str, float]:
    """Return each score of the rows as they are."""
    every = np.ones((1, len(evidence)))
    return {name: float(values[0]) for name, values in evidence.scores(every).items()}


def wilson(right: int, rows: int) -> Interval:
    """Return Wilson's interval of a share (Wilson 1927)."""
    from scipy.stats import binomtest  # of the extra report

    found = binomtest(right, rows).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(float(found.low), float(found.high))


def _resample(sets: Sequence[Evidence], seed: int) -> dict[str, Float[np.ndarray, "sets draws"]]:
    """Score RESAMPLES draws of rows, the same ones for each set."""
    rng = np.random.default_rng(seed)
    parts: dict[str, list[np.ndarray]] = {}
    for counts in _drawn(len(sets[0]), max(each.width for each in sets), rng):
        found = [each.scores(counts) for each in sets]
        for name in found[0]:
            parts.setdefault(name, []).append(np.stack([values[name] for values in found]))
    return {name: np.concatenate(part, axis=1) for name, part in parts.items()}


def _drawn(
    rows: int, width: int, rng: np.random.Generator
) -> Iterator[Float[np.ndarray, "draws rows"]]:
    """Yield how often each row is in each draw, so many draws at a time as CHUNK allows."""
    left = RESAMPLES
    while left > 0:
        draws = min(left, max(1, CHUNK // max(rows, width)))
        places = rng.integers(rows, size=(draws, rows)) + rows * np.arange(draws)[:, None]
        counts = np.bincount(places.ravel(), minlength=draws * rows)
        yield counts.reshape(draws, rows).astype(np.float64)
        left -= draws


def _middle(values: Float[np.ndarray, " draws"]) -> Interval:
    """Return the ends of the middle 95%."""
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, (outside, 1 - outside))
    return Interval(float(low), float(high))
