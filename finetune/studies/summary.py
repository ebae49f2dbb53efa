"""The scores of several runs: each one, their mean, their standard deviation, and an interval.

The interval is Student's t: with 95% confidence the mean of many more such runs lies in it, if
their scores are distributed about normally. The runs of a cross-validation learn from rows that
overlap, so their scores lie closer together than those of independent train files would; there
the variance of the mean is s²·(1/k + test rows / train rows) (Nadeau and Bengio 2003, who made it
for random splits), and not s²/k.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bert.config import read_json

CONFIDENCE = 0.95

Scores = Mapping[str, Mapping[str, float]]
"""Of a run: by the file that it was judged on, and the metric."""


class Spread(NamedTuple):
    """A metric over several runs."""

    values: tuple[float, ...]
    mean: float
    deviation: float
    """The standard deviation of a run, with n − 1."""
    low: float
    high: float
    """The ends of the mean's interval."""

    @staticmethod
    def of(values: Sequence[float], overlap: float = 0.0) -> "Spread":
        """Judge two values or more.

        Args:
            values: one for each run.
            overlap: of a cross-validation, the rows tested on over those learned from; else 0.
        """
        from scipy.stats import t  # of the extra report

        mean, deviation = statistics.fmean(values), statistics.stdev(values)
        error = deviation * math.sqrt(1 / len(values) + overlap)
        reach = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
        return Spread(tuple(values), mean, deviation, mean - reach, mean + reach)


def read_scores(run: Path) -> dict[str, dict[str, float]]:
    """Read what a finished run was found to be worth: each of its metrics that is one number."""
    return {
        purpose: {name: float(value) for name, value in found.items() if _is_number(value)}
        for purpose, found in read_json(run / "metrics.json").items()
        if purpose != "training"
    }


def summarise(scores: Sequence[Scores], overlap: float = 0.0) -> dict[str, dict[str, Spread]]:
    """Judge each metric over the runs, by the file that they were judged on."""
    return {
        purpose: {
            name: Spread.of([one[purpose][name] for one in scores], overlap)
            for name in scores[0][purpose]
        }
        for purpose in scores[0]
    }


def table(names: Sequence[str], spreads: Mapping[str, Spread], metrics: Sequence[str]) -> str:
    """Write a line for each run, and those of the mean, the deviation and the interval.

    Args:
        names: the runs'.
        spreads: of the metrics.
        metrics: the columns.
    """
    chosen = [spreads[name] for name in metrics]
    lines = {name: [each.values[i] for each in chosen] for i, name in enumerate(names)}
    lines |= {
        "mean": [each.mean for each in chosen],
        "standard deviation": [each.deviation for each in chosen],
        "95% from": [each.low for each in chosen],
        "95% to": [each.high for each in chosen],
    }
    width = max(map(len, lines)) + 2
    widths = [max(10, len(name) + 2) for name in metrics]
    header = "".join(name.rjust(w) for name, w in zip(metrics, widths, strict=True))
    rows = [
        name.ljust(width) + "".join(f"{n:{w}.4f}" for n, w in zip(numbers, widths, strict=True))
        for name, numbers in lines.items()
    ]
    rows.insert(len(names), "")
    return "\n".join([" " * width + header, *rows])


def as_json(spreads: Mapping[str, Mapping[str, Spread]]) -> dict[str, Any]:
    """Return the same as JSON."""
    return {
        purpose: {name: each._asdict() for name, each in found.items()}
        for purpose, found in spreads.items()
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
