"""The report on a model's answers, and the directory that holds all that is known of them.

DIRECTORY/
    evaluation.json     the file and its SHA-256, the task, the model, all numbers
    predictions.jsonl   a line for each row, see records.py
    report.txt          the report
    mistakes.html       the worst mistakes, to look at in a browser
    confusion.png       of classes, or types of entities: which are taken for which
    calibration.png     of classes and choices: how often the model is right, by how sure it is
    scatter.png         of numbers: those predicted over the true ones
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert.training.progress import say
from finetune.evaluation import kinds
from finetune.evaluation.evidence import Details, Evidence
from finetune.evaluation.mistakes import write_mistakes
from finetune.evaluation.noise import Spoiled, describe_noise
from finetune.evaluation.records import EVALUATION, PREDICTIONS, write_predictions
from finetune.evaluation.resampling import RESAMPLES, Interval, intervals
from finetune.metrics import Scores
from finetune.whole_file import whole_file


@dataclass(frozen=True)
class Report:
    """What a model's answers are worth, and how sure that is."""

    scores: Scores
    evidence: Evidence
    intervals: dict[str, Interval]
    """Of each of the evidence's scores."""
    details: Details
    spoiled: Sequence[Spoiled] = ()
    """What noise does, where that was tested."""

    @staticmethod
    def of(scores: Scores, evidence: Evidence, spoiled: Sequence[Spoiled] = ()) -> "Report":
        """Judge a model's answers, which a task has scored."""
        return Report(scores, evidence, intervals(evidence), evidence.details(), spoiled)

    @property
    def text(self) -> str:
        """All of it, to print."""
        return self.scores.text + self.sureness

    @property
    def sureness(self) -> str:
        """What it says after the scores: how sure they are, and what a task tells besides."""
        parts = [self._intervals_text() + self.details.text]
        parts += [describe_noise(self.spoiled, self.evidence.titles)] if self.spoiled else []
        return "".join(f"\n{part}" for part in parts)

    def as_json(self) -> dict[str, Any]:
        """Return all numbers."""
        return {
            **self.scores.as_json(),
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            **self.details.numbers,
            "noise": [each.as_json() for each in self.spoiled],
        }

    def _intervals_text(self) -> str:
        values, evidence = self.scores.summary(), self.evidence
        lines = [f"{'':22}{'value':>8}   95% interval"]
        for name, title in evidence.titles.items():
            low, high = self.intervals[name]
            lines.append(f"{title:22}{values[name]:8.4f}   {low:.4f} to {high:.4f}")
        share = evidence.share and f"; Wilson's for {evidence.titles[evidence.share]}"
        lines += [
            f"Over other {evidence.unit} of the same kind, for this trained model: "
            f"{RESAMPLES:,} resamples of them,",
            f"percentiles{share or ''}.",
        ]
        return "\n".join(lines) + "\n"


def write_evaluation(
    directory: Path,
    scores: Scores,
    evidence: Evidence,
    texts: Iterable[Mapping[str, Any]],
    about: Mapping[str, Any],
    spoiled: Sequence[Spoiled] = (),
) -> Report:
    """Judge a model's answers, and leave all that is known of them in a directory.

    Args:
        directory: made if it isn't there; its files of these names are replaced.
        scores: the task's.
        evidence: the answers that were scored.
        texts: of each row its place in the file and its texts, by name; they pass through, and
            are not kept.
        about: what evaluation.json says besides; `file` and `sha256` of the rows are among it.
        spoiled: what noise does, where that was tested.

    Raises:
        ModuleNotFoundError: scipy, of the extra report, is missing.
        ValueError: there are not as many texts as answers.
        OSError: a file can't be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    report = Report.of(scores, evidence, spoiled)
    write_predictions(directory / PREDICTIONS, evidence, texts)
    write_mistakes(
        directory / "mistakes.html", directory / PREDICTIONS, evidence, str(about["file"])
    )
    draw(evidence, directory)
    with whole_file(directory / "report.txt") as file:
        file.write(report.text)
    with whole_file(directory / EVALUATION) as file:
        told = {**about, "kind": kinds.name_of(evidence), "scores": report.as_json()}
        json.dump(told, file, indent=1)
    return report


def draw(evidence: Evidence, directory: Path) -> None:
    """Draw the pictures; without matplotlib say so, and draw nothing."""
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError:
        say("no pictures of the predictions: install the extra report for matplotlib")
        return
    evidence.draw(directory)
