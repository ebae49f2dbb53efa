"""The report on predictions, and the directory that holds all that is known of them.

DIRECTORY/
    evaluation.json     the file and its SHA-256, the model, all numbers
    predictions.jsonl   a line for each row, see predictions.py
    report.txt          the report
    mistakes.html       the worst mistakes, to look at in a browser
    confusion.png       which classes are taken for which
    calibration.png     how often the model is right, by how sure it is
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bert.training.progress import say
from finetune.evaluation.calibration import Calibration, calibrate
from finetune.evaluation.mistakes import write_mistakes
from finetune.evaluation.noise import Spoiled, describe_noise
from finetune.evaluation.pictures import draw_calibration, draw_confusion
from finetune.evaluation.predictions import (
    EVALUATION,
    PREDICTIONS,
    Predictions,
    write_predictions,
)
from finetune.evaluation.resampling import METRICS, RESAMPLES, TITLES, Interval, intervals
from finetune.metrics import ClassificationScores, score
from finetune.tables import Row
from finetune.whole_file import whole_file


@dataclass(frozen=True)
class Report:
    """What predictions are worth, and how sure that is."""

    scores: ClassificationScores
    intervals: dict[str, Interval]
    """Of each of resampling.METRICS."""
    calibration: Calibration
    spoiled: Sequence[Spoiled] = ()
    """What noise does, where that was tested."""

    @staticmethod
    def of(predictions: Predictions, spoiled: Sequence[Spoiled] = ()) -> "Report":
        """Judge predictions.

        Raises:
            ModuleNotFoundError: scikit-learn is missing.
        """
        return Report(
            score(predictions.logits, predictions.labels, predictions.class_names),
            intervals(predictions),
            calibrate(predictions),
            spoiled,
        )

    @property
    def text(self) -> str:
        """All of it, to print."""
        return self.scores.text + self.sureness

    @property
    def sureness(self) -> str:
        """What it says after the scores: how sure they are."""
        parts = [self._intervals_text(), self._calibration_text()]
        parts += [describe_noise(self.spoiled)] if self.spoiled else []
        return "".join(f"\n{part}" for part in parts)

    def as_json(self) -> dict[str, Any]:
        """Return all numbers."""
        return {
            **self.scores.as_json(),
            "micro_f1": self.scores.accuracy,
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "calibration": {
                **self.calibration._asdict(),
                "bins": [each._asdict() for each in self.calibration.bins],
            },
            "noise": [each.as_json() for each in self.spoiled],
        }

    def _intervals_text(self) -> str:
        values = self.scores.summary()
        lines = [f"{'':22}{'value':>8}   95% interval"]
        for name in METRICS:
            low, high = self.intervals[name]
            lines.append(f"{TITLES[name]:22}{values[name]:8.4f}   {low:.4f} to {high:.4f}")
        lines += [
            "Over other rows of the same kind, for this trained model: "
            f"{RESAMPLES:,} resamples of the rows,",
            "percentiles; Wilson's for accuracy. Micro F1 is the accuracy: a row has one class.",
        ]
        return "\n".join(lines) + "\n"

    def _calibration_text(self) -> str:
        found = self.calibration
        confidence = sum(each.rows * each.confidence for each in found.bins)
        confidence /= sum(each.rows for each in found.bins)
        return (
            f"Calibration: {confidence:.1%} sure on average and {self.scores.accuracy:.1%} right; "
            f"expected calibration error {found.error:.4f}.\n"
            f"A calibrated model as sure as this one would show {found.by_chance:.4f}, and in 95 "
            f"of 100 cases {found.by_chance_at_most:.4f} or less.\n"
        )


def write_evaluation(
    directory: Path,
    predictions: Predictions,
    rows: Iterable[Row],
    about: Mapping[str, Any],
    spoiled: Sequence[Spoiled] = (),
) -> Report:
    """Judge predictions, and leave all that is known of them in a directory.

    Args:
        directory: made if it isn't there; its files of these names are replaced.
        predictions: one for each of `rows`.
        rows: the texts; they pass through, and are not kept.
        about: what evaluation.json says besides; `file` and `sha256` of the rows are among it.
        spoiled: what noise does, where that was tested.

    Raises:
        ModuleNotFoundError: scikit-learn is missing.
        ValueError: there are not as many rows as predictions.
        OSError: a file can't be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    report = Report.of(predictions, spoiled)
    write_predictions(directory / PREDICTIONS, predictions, rows)
    write_mistakes(
        directory / "mistakes.html", directory / PREDICTIONS, predictions, str(about["file"])
    )
    draw(report, predictions.class_names, directory)
    with whole_file(directory / "report.txt") as file:
        file.write(report.text)
    with whole_file(directory / EVALUATION) as file:
        json.dump({**about, "scores": report.as_json()}, file, indent=1)
    return report


def draw(report: Report, names: Sequence[str], directory: Path) -> None:
    """Draw the pictures; without matplotlib say so, and draw nothing."""
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError:
        say("no pictures of the predictions: install the extra report for matplotlib")
        return
    draw_confusion(np.array(report.scores.confusion), tuple(names), directory / "confusion.png")
    draw_calibration(report.calibration, len(names), directory / "calibration.png")
