"""How sure a score is: the percentile bootstrap over rows (Efron and Tibshirani 1993, chapter 13).

As many rows as there are get drawn from them with replacement, RESAMPLES times, and the middle 95%
of the scores are the interval. It says how the score of this model would vary over other rows of
the same kind; how it varies over seeds of training, only several runs can say.

Of the rows, accuracy, macro F1 and Matthews' correlation need only how many had which true and
which predicted class. So to draw rows is to draw those counts, from a multinomial distribution.

Where every row is right all resamples are the same, and a bootstrap knows nothing. So accuracy,
being a share, has Wilson's interval (Wilson 1927), which holds there too.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from finetune.evaluation.predictions import Predictions

RESAMPLES = 2000
CONFIDENCE = 0.95
METRICS = ("accuracy", "macro_f1", "mcc", "loss")
TITLES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "mcc": "Matthews correlation",
    "loss": "cross-entropy",
}

CHUNK = 2**21
"""Numbers held at once, however many rows and classes there are."""


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


def intervals(predictions: Predictions, seed: int = 0) -> dict[str, Interval]:
    """Return the interval of each of METRICS."""
    found = {name: _middle(drawn[0]) for name, drawn in _resample([predictions], seed).items()}
    right = int(predictions.correct.sum())
    return found | {"accuracy": wilson(right, len(predictions))}


def differences(first: Predictions, second: Predictions, seed: int = 0) -> dict[str, Difference]:
    """Return for each of METRICS how far the second is above the first; rows are drawn in pairs.

    Both must be predictions of the same rows.
    """
    assert first.class_names == second.class_names
    assert np.array_equal(first.labels, second.labels)
    before, after = scores(first), scores(second)
    return {
        name: Difference(before[name], after[name], _middle(drawn[1] - drawn[0]))
        for name, drawn in _resample([first, second], seed).items()
    }


def scores(predictions: Predictions) -> dict[str, float]:
    """Return each of METRICS."""
    classes = len(predictions.class_names)
    confusion = np.zeros((1, classes, classes), dtype=np.int64)
    np.add.at(confusion[0], (predictions.labels, predictions.predicted), 1)
    found = {name: float(values[0]) for name, values in score_confusions(confusion).items()}
    return found | {"loss": float(predictions.losses.mean())}


def score_confusions(
    confusions: Int64[np.ndarray, "draws true predicted"],
) -> dict[str, Float[np.ndarray, " draws"]]:
    """Score confusion matrices as scikit-learn does: what isn't defined is 0."""
    values = confusions.astype(np.float64)
    total = values.sum((1, 2))
    right = np.einsum("dcc->dc", values)
    true, predicted = values.sum(2), values.sum(1)
    spread = (total**2 - (true**2).sum(1)) * (total**2 - (predicted**2).sum(1))
    covariance = right.sum(1) * total - (true * predicted).sum(1)
    return {
        "accuracy": right.sum(1) / total,
        "macro_f1": _divide(2 * right, true + predicted).mean(1),
        "mcc": _divide(covariance, np.sqrt(spread)),
    }


def wilson(right: int, rows: int) -> Interval:
    """Return Wilson's interval of a share (Wilson 1927)."""
    from scipy.stats import binomtest  # of the extra report

    found = binomtest(right, rows).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(float(found.low), float(found.high))


def _resample(
    sets: Sequence[Predictions], seed: int
) -> dict[str, Float[np.ndarray, "sets draws"]]:
    """Score RESAMPLES draws of rows, the same ones for each set of predictions."""
    rng = np.random.default_rng(seed)
    parts = [
        [score_confusions(each) for each in confusions]
        for confusions in _resampled_confusions(sets, rng)
    ]
    found = {
        name: np.stack([
            np.concatenate([part[i][name] for part in parts]) for i in range(len(sets))
        ])
        for name in ("accuracy", "macro_f1", "mcc")
    }  # fmt: skip
    return found | {"loss": _resampled_losses(sets, rng)}


def _resampled_confusions(
    sets: Sequence[Predictions], rng: np.random.Generator
) -> Iterator[list[Int64[np.ndarray, "draws true predicted"]]]:
    """Yield confusion matrices of drawn rows, one for each set, a chunk of draws at a time."""
    rows, classes = len(sets[0]), len(sets[0].class_names)
    outcomes = np.stack([sets[0].labels, *(each.predicted for each in sets)])
    kinds, counts = np.unique(outcomes, axis=1, return_counts=True)
    for draws in _chunks(classes**2 + len(counts)):
        drawn = rng.multinomial(rows, counts / rows, draws)
        confusions = []
        for predicted in kinds[1:]:
            cells = np.zeros((classes**2, draws), dtype=np.int64)
            np.add.at(cells, kinds[0] * classes + predicted, drawn.T)
            confusions.append(cells.T.reshape(draws, classes, classes))
        yield confusions


def _resampled_losses(
    sets: Sequence[Predictions], rng: np.random.Generator
) -> Float[np.ndarray, "sets draws"]:
    """Return the mean losses of drawn rows."""
    losses = np.stack([each.losses for each in sets])
    rows = losses.shape[1]
    means = [losses[:, rng.integers(rows, size=(draws, rows))].mean(-1) for draws in _chunks(rows)]
    return np.concatenate(means, axis=1)


def _chunks(size: int) -> Iterator[int]:
    """Cut RESAMPLES draws into parts of at most CHUNK numbers, where a draw has `size`."""
    left = RESAMPLES
    while left > 0:
        draws = min(left, max(1, CHUNK // size))
        yield draws
        left -= draws


def _middle(values: Float[np.ndarray, " draws"]) -> Interval:
    """Return the ends of the middle 95%."""
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, (outside, 1 - outside))
    return Interval(float(low), float(high))


def _divide(
    above: Float[np.ndarray, "*shape"], below: Float[np.ndarray, "*shape"]
) -> Float[np.ndarray, "*shape"]:
    """Divide; what is divided by 0 is 0."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)
