"""`bert finetune compare A B`: is one of two models better on the same rows, and how sure is that?

Row by row, one model is better or both are alike. Of the rows that differ, each model would have
half if they were equally good: the exact sign test (Conover 1999, section 3.4). Where a row is
right or wrong that is McNemar's exact test (McNemar 1947; Dietterich 1998). The differences of all
scores have intervals of a paired bootstrap (resampling.py).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bert.config import read_json
from finetune.evaluation.config import CompareConfig
from finetune.evaluation.evidence import Evidence
from finetune.evaluation.kinds import KINDS
from finetune.evaluation.records import EVALUATION, PREDICTIONS
from finetune.evaluation.resampling import Difference, differences
from finetune.metrics import require_scikit_learn

SIGNIFICANT = 0.05


class Evaluated(NamedTuple):
    """A directory of report.py, read."""

    directory: Path
    about: Mapping[str, Any]
    evidence: Evidence


class Comparison(NamedTuple):
    """What two models differ in on the same rows."""

    only_first: int
    """Rows in which the first is better: of right and wrong ones, that only it has right."""
    only_second: int
    p_value: float
    """The sign test's, exact and two-sided."""
    differences: dict[str, Difference]


def run(config: CompareConfig) -> int:
    """Print the comparison; return the exit code, 0 whatever the outcome."""
    require_scikit_learn()
    first, second = read_evaluation(config.first), read_evaluation(config.second)
    check_same_rows(first, second)
    print(describe(first, second, compare(first.evidence, second.evidence)))
    return 0


def compare(first: Evidence, second: Evidence) -> Comparison:
    """Compare two models' answers on the same rows."""
    before, after = first.row_scores, second.row_scores
    only_first, only_second = int((before > after).sum()), int((after > before).sum())
    p_value = sign_test(only_first, only_second)
    return Comparison(only_first, only_second, p_value, differences(first, second))


def sign_test(only_first: int, only_second: int) -> float:
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
    kind = about.get("kind")
    if kind not in KINDS:
        raise ValueError(
            f"{found / EVALUATION}: kind: expected one of {', '.join(KINDS)}, got {kind!r}; "
            "bert finetune evaluate writes it anew"
        )
    return Evaluated(found, about, KINDS[kind].read(found / PREDICTIONS))


def check_same_rows(first: Evaluated, second: Evaluated) -> None:
    """Refuse to compare predictions of different rows.

    Raises:
        ValueError: the tasks differ, the files, the classes, or what was taken for the labels.
    """

    def differ(what: str, found: Callable[[Evaluated], str]) -> ValueError:
        return ValueError(
            f"second: expected {what} as in {first.directory}, {found(first)}, "
            f"got {found(second)} in {second.directory}"
        )

    if first.about["kind"] != second.about["kind"]:
        raise differ("a task of the same kind", lambda e: e.about["kind"])
    if first.about["sha256"] != second.about["sha256"]:
        raise differ(
            "the same file", lambda e: f"{e.about['file']} (SHA-256 {e.about['sha256'][:12]}…)"
        )
    if first.evidence.classes != second.evidence.classes:
        raise differ("the same classes", lambda e: ", ".join(e.evidence.classes))
    if first.evidence.gold != second.evidence.gold:
        raise differ("the same labels", lambda e: f"those of columns {e.about.get('columns')}")


def describe(first: Evaluated, second: Evaluated, found: Comparison) -> str:
    """Write the comparison, and what may be concluded."""
    evidence = first.evidence
    lines = [
        f"A: {first.directory}",
        f"B: {second.directory}",
        f"{len(evidence):,} {evidence.unit} of {first.about['file']}",
        "",
        f"{'':22}{'A':>8}{'B':>10}{'B − A':>11}   95% interval",
    ]
    for name, each in found.differences.items():
        low, high = each.interval
        lines.append(
            f"{evidence.titles[name]:22}{each.first:8.4f}{each.second:10.4f}{each.value:+11.4f}   "
            f"{low:+.4f} to {high:+.4f}"
        )
    if evidence.compared:
        test = (
            f"By {evidence.compared} A is better in {found.only_first:,} {evidence.unit}, B in "
            f"{found.only_second:,}: p = {found.p_value:.2g} (sign test, exact)."
        )
    else:
        test = (
            f"Only A is right in {found.only_first:,} {evidence.unit}, only B in "
            f"{found.only_second:,}: p = {found.p_value:.2g} (McNemar, exact)."
        )
    return "\n".join([*lines, "", test, conclude(found, evidence)])


def conclude(found: Comparison, evidence: Evidence) -> str:
    """Say in a line what may be concluded."""
    more = "better in more" if evidence.compared else "right in more"
    if found.p_value >= SIGNIFICANT:
        return f"It isn't shown that either model is {more} {evidence.unit} of this kind."
    better = "AB"[found.only_second > found.only_first]
    return (
        f"Model {better} is {more} {evidence.unit} of this kind. That its recipe is better, only "
        "runs with several seeds could show."
    )
