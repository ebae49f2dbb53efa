"""`bert finetune compare A B`: is one of two models better on the same rows, and how sure is that?

Accuracy is tested with McNemar's exact test (McNemar 1947; Dietterich 1998): of the
rows that only one of the two has right, each model would have half if they were equally good. The
differences of all scores have intervals of a paired bootstrap (resampling.py).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bert.config import read_json
from finetune.evaluation.config import CompareConfig
from finetune.evaluation.predictions import (
    EVALUATION,
    PREDICTIONS,
    Predictions,
    read_predictions,
)
from finetune.evaluation.resampling import TITLES, Difference, differences
from finetune.metrics import require_scikit_learn

SIGNIFICANT = 0.05


class Evaluated(NamedTuple):
    """A directory of report.py, read."""

    directory: Path
    about: Mapping[str, Any]
    predictions: Predictions


class Comparison(NamedTuple):
    """What two models differ in on the same rows."""

    only_first: int
    """Rows that only the first has right."""
    only_second: int
    p_value: float
    """McNemar's, exact and two-sided."""
    differences: dict[str, Difference]


def run(config: CompareConfig) -> int:
    """Print the comparison; return the exit code, 0 whatever the outcome."""
    require_scikit_learn()
    first, second = read_evaluation(config.first), read_evaluation(config.second)
    check_same_rows(first, second)
    print(describe(first, second, compare(first.predictions, second.predictions)))
    return 0


def compare(first: Predictions, second: Predictions) -> Comparison:
    """Compare predictions of the same rows."""
    only_first = int((first.correct & ~second.correct).sum())
    only_second = int((second.correct & ~first.correct).sum())
    p_value = mcnemar(only_first, only_second)
    return Comparison(only_first, only_second, p_value, differences(first, second))


def mcnemar(only_first: int, only_second: int) -> float:
    """Return how often two equally good models would differ so much or more."""
    from scipy.stats import binomtest  # of the extra report

    apart = only_first + only_second
    return float(binomtest(only_second, apart).pvalue) if apart else 1.0


def read_evaluation(directory: Path) -> Evaluated:
    """Read what report.py wrote into a directory, or into the test directory of a run.

    Raises:
        ValueError: there is nothing of the kind, or it is damaged; the message names the file.
    """
    found = next((d for d in (directory, directory / "test") if (d / EVALUATION).exists()), None)
    if found is None:
        raise ValueError(
            f"{directory}: expected a run with a test file, or what bert finetune evaluate wrote, "
            f"got no {EVALUATION}"
        )
    about = read_json(found / EVALUATION)
    if not isinstance(about, dict) or not {"file", "sha256"} <= about.keys():
        raise ValueError(f"{found / EVALUATION}: expected a file and its sha256 in it, got none")
    return Evaluated(found, about, read_predictions(found / PREDICTIONS))


def check_same_rows(first: Evaluated, second: Evaluated) -> None:
    """Refuse to compare predictions of different rows.

    Raises:
        ValueError: the files differ, or the classes, or what was taken for the labels.
    """

    def differ(what: str, found: Callable[[Evaluated], str]) -> ValueError:
        return ValueError(
            f"second: expected {what} as in {first.directory}, {found(first)}, "
            f"got {found(second)} in {second.directory}"
        )

    if first.about["sha256"] != second.about["sha256"]:
        raise differ(
            "the same file", lambda e: f"{e.about['file']} (SHA-256 {e.about['sha256'][:12]}…)"
        )
    if first.predictions.class_names != second.predictions.class_names:
        raise differ("the same classes", lambda e: ", ".join(e.predictions.class_names))
    if first.predictions.labels.tolist() != second.predictions.labels.tolist():
        raise differ("the same labels", lambda e: f"those of columns {e.about.get('columns')}")


def describe(first: Evaluated, second: Evaluated, found: Comparison) -> str:
    """Write the comparison, and what may be concluded."""
    lines = [
        f"A: {first.directory}",
        f"B: {second.directory}",
        f"{len(first.predictions):,} rows of {first.about['file']}",
        "",
        f"{'':22}{'A':>8}{'B':>10}{'B − A':>11}   95% interval",
    ]
    for name, each in found.differences.items():
        low, high = each.interval
        lines.append(
            f"{TITLES[name]:22}{each.first:8.4f}{each.second:10.4f}{each.value:+11.4f}   "
            f"{low:+.4f} to {high:+.4f}"
        )
    lines += [
        "",
        f"Only A is right in {found.only_first:,} rows, only B in {found.only_second:,}: "
        f"p = {found.p_value:.2g} (McNemar, exact).",
        conclude(found),
    ]
    return "\n".join(lines)


def conclude(found: Comparison) -> str:
    """Say in a line what may be concluded."""
    if found.p_value >= SIGNIFICANT:
        return (
            "It isn't shown that either model is right more often than the other on rows of this "
            "kind."
        )
    better = "AB"[found.only_second > found.only_first]
    return (
        f"Model {better} is right more often on rows of this kind. That its recipe is better, "
        "only runs with several seeds could show."
    )
