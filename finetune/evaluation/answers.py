"""Predicted answers to questions beside the right ones.

    {"row": 1, "id": "…", "question": "…", "context": "…", "gold": ["Ekeus", "Rolf Ekeus"],
     "gold_spans": [[5, 10], [0, 10]], "predicted": "Rolf", "span": [0, 4], "score": 0.8,
     "exact": 0.0, "f1": 0.67}

No answer is "", and no right one an empty list; spans are characters of the context. `score` is
the answer's share among the best ones, and exact and f1 are SQuAD's (questions/metrics.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from finetune.evaluation.evidence import Cell, Evidence, divide
from finetune.evaluation.markup import Mark, listed, marked, shown
from finetune.evaluation.records import read_each


class Answered(NamedTuple):
    """A question's right answers, and the model's."""

    gold: Sequence[str]
    gold_spans: Sequence[tuple[int, int]]
    """Of those right answers that stand where they are said to."""
    predicted: str
    span: tuple[int, int] | None
    """Where it stands; None: no answer."""
    score: float
    exact: float
    f1: float


@dataclass(frozen=True)
class Answers(Evidence):
    """What a model answered to each question of a file."""

    answered: Sequence[Answered]

    titles = {"f1": "F1 of the words", "exact": "exact match"}
    share = "exact"
    unit = "questions"
    compared = "F1 of the answers' words"
    sorted_by = (
        "how sure the model was of what is wrong, its score times (1 − F1); in green the right "
        "answers, in red the model's, underlined twice what they share"
    )
    columns = (
        Cell("text", "Text"),
        Cell("gold", "True"),
        Cell("said", "Predicted"),
        Cell("number", "F1"),
        Cell("number", "Score"),
    )

    def __len__(self) -> int:
        return len(self.answered)

    @property
    def gold(self) -> list[list[str]]:
        """The right answers."""
        return [list(each.gold) for each in self.answered]

    @property
    def correct(self) -> Bool[np.ndarray, " rows"]:
        """Whether an answer is a right one to the word."""
        return np.array([each.exact == 1 for each in self.answered])

    @property
    def row_scores(self) -> Float[np.ndarray, " rows"]:
        """F1."""
        return np.array([each.f1 for each in self.answered], dtype=np.float64)

    @property
    def badness(self) -> Float[np.ndarray, " rows"]:
        """1 − F1, times the score."""
        sure = np.array([each.score for each in self.answered], dtype=np.float64)
        return (1 - self.row_scores) * sure

    def scores(
        self, counts: Float[np.ndarray, "draws rows"]
    ) -> dict[str, Float[np.ndarray, " draws"]]:
        """Score each draw."""
        exact, rows = self.correct.astype(np.float64), counts.sum(1)
        return {"f1": divide(counts @ self.row_scores, rows), "exact": counts @ exact / rows}

    def record(self, row: int) -> dict[str, Any]:
        """Return the answers, where they stand, and what they are worth."""
        return self.answered[row]._asdict()

    @classmethod
    def read(cls, path: Path) -> "Answers":
        """Read a file."""

        def read(record: dict[str, Any]) -> Answered:
            found = Answered(*(record[name] for name in Answered._fields))
            if not isinstance(found.gold, list) or not isinstance(found.predicted, str):
                raise ValueError
            numbers = {name: float(getattr(found, name)) for name in ("score", "exact", "f1")}
            return found._replace(**numbers)

        return cls(
            read_each(path, read, "an answer, with the keys " + ", ".join(Answered._fields))
        )

    def cells(self, row: int, record: Mapping[str, Any]) -> list[str]:
        """Lay out the question, the part of the context around the answers, and the answers."""
        marks = [Mark(start, end, "gold") for start, end in record["gold_spans"]]
        if record["span"]:
            start, end = record["span"]
            marks.append(Mark(start, end, "said"))
        right = dict.fromkeys(record["gold"] or ["no answer"])
        return [
            shown(record["question"]) + marked(record["context"], marks),
            listed([(text, "gold") for text in right]),
            listed([(record["predicted"] or "no answer", "said")]),
            f"{record['f1']:.2f}",
            f"{record['score']:.1%}",
        ]
