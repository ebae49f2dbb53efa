"""Predicted entities beside the true ones, of token classification.

    {"row": 1, "line": 1, "words": ["Ekeus", "heads", …], "gold": ["B-PER", "O", …],
     "predicted": ["B-ORG", "O", …], "labelled": 6, "loss": 4.1}

A row is a sentence, and an entity is right if its words and its type are. Tags are IOB2, repaired
where they were not. `labelled` counts the words that the model read a piece of, and `loss` is the
sum of their tags' cross-entropies, in nats.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from finetune.entities.iob import Span, spans
from finetune.evaluation.evidence import Cell, Details, Evidence, divide
from finetune.evaluation.markup import tagged
from finetune.evaluation.pictures import draw_confusion
from finetune.evaluation.records import read_each
from finetune.metrics import confusion_table

NONE = "no entity"


@dataclass(frozen=True)
class Entities(Evidence):
    """Which entities a model found in each sentence of a file."""

    tags: Sequence[Sequence[str]]
    """The true tags of each sentence's words."""
    predicted: Sequence[Sequence[str]]
    labelled: Int64[np.ndarray, " rows"]
    losses: Float[np.ndarray, " rows"]

    titles = {
        "f1": "F1",
        "precision": "precision",
        "recall": "recall",
        "macro_f1": "macro F1 of the types",
        "accuracy": "words with right tag",
        "loss": "cross-entropy",
    }
    unit = "sentences"
    compared = "entities that are missed or too many"
    sorted_by = (
        "loss, the sum of the negative logarithms of the true tags' probabilities, in nats; in "
        "green what is missed, in red what is too many, underlined twice what is right"
    )
    columns = (
        Cell("text", "True"),
        Cell("text", "Predicted"),
        Cell("number", "Wrong"),
        Cell("number", "Loss"),
    )

    def __len__(self) -> int:
        return len(self.tags)

    @property
    def gold(self) -> list[list[str]]:
        """The true tags."""
        return [list(tags) for tags in self.tags]

    @cached_property
    def found(self) -> list[tuple[set[Span], set[Span]]]:
        """The entities of each sentence, true and predicted."""
        return [
            ({*spans(tags)}, {*spans(predicted)})
            for tags, predicted in zip(self.tags, self.predicted, strict=True)
        ]

    @cached_property
    def wrong(self) -> Int64[np.ndarray, " rows"]:
        """Entities of each sentence that are missed or too many."""
        return np.array([len(true ^ said) for true, said in self.found], dtype=np.int64)

    @property
    def correct(self) -> Bool[np.ndarray, " rows"]:
        """Whether all entities of a sentence are right, and there are no others."""
        return self.wrong == 0

    @property
    def badness(self) -> Float[np.ndarray, " rows"]:
        """The loss."""
        return self.losses

    @property
    def row_scores(self) -> Float[np.ndarray, " rows"]:
        """The number of wrong entities, with a minus."""
        return -self.wrong.astype(np.float64)

    @cached_property
    def types(self) -> list[str]:
        """Those of all entities, by the alphabet."""
        return sorted({span.type for both in self.found for each in both for span in each})

    @cached_property
    def _table(self) -> Float[np.ndarray, "rows columns"]:
        """Of each sentence: for each type hits, and true and predicted entities; then words."""
        places = {kind: place for place, kind in enumerate(self.types)}
        entities = np.zeros((len(self), 3, len(places)))
        words = np.zeros((len(self), 2))
        for row, (true, said) in enumerate(self.found):
            for part, some in enumerate((true & said, true, said)):
                for span in some:
                    entities[row, part, places[span.type]] += 1
            tags, predicted = self.tags[row], self.predicted[row]
            words[row] = sum(a == b for a, b in zip(tags, predicted, strict=True)), len(tags)
        return np.concatenate([entities.reshape(len(self), -1), words], axis=1)

    def scores(
        self, counts: Float[np.ndarray, "draws rows"]
    ) -> dict[str, Float[np.ndarray, " draws"]]:
        """Score each draw from its numbers of entities and words, as seqeval does."""
        sums = counts @ self._table
        hits, true, said = sums[:, :-2].reshape(len(counts), 3, -1).transpose(1, 0, 2)
        kinds = divide(2 * hits, true + said)
        return {
            "f1": divide(2 * hits.sum(1), true.sum(1) + said.sum(1)),
            "precision": divide(hits.sum(1), said.sum(1)),
            "recall": divide(hits.sum(1), true.sum(1)),
            "macro_f1": divide(kinds.sum(1), np.full(len(counts), float(len(self.types)))),
            "accuracy": divide(sums[:, -2], sums[:, -1]),
            "loss": divide(counts @ self.losses, counts @ self.labelled.astype(np.float64)),
        }

    def record(self, row: int) -> dict[str, Any]:
        """Return the tags, and the loss."""
        return {
            "gold": list(self.tags[row]),
            "predicted": list(self.predicted[row]),
            "labelled": int(self.labelled[row]),
            "loss": float(self.losses[row]),
        }

    @classmethod
    def read(cls, path: Path) -> "Entities":
        """Read a file."""

        def read(record: dict[str, Any]) -> tuple[list[str], list[str], int, float]:
            gold, predicted = record["gold"], record["predicted"]
            for tags in (gold, predicted):
                spans(tags)  # raises where an entity goes on that none began
            if len(gold) != len(predicted):
                raise ValueError
            return gold, predicted, int(record["labelled"]), float(record["loss"])

        expected = "gold and predicted, as many tags in IOB2, labelled, and a loss"
        gold, predicted, labelled, losses = zip(*read_each(path, read, expected), strict=True)
        return cls(gold, predicted, np.array(labelled), np.array(losses))

    @cached_property
    def confusion(self) -> Int64[np.ndarray, "true predicted"]:
        """Which types are taken for which where the words agree; the last is no entity."""
        places = {kind: place for place, kind in enumerate([*self.types, NONE])}
        none = len(places) - 1
        counts: Counter[tuple[int, int]] = Counter()
        for true, said in self.found:
            # Two entities of one sentence never begin with the same word.
            types = {(span.start, span.end): places[span.type] for span in said}
            for span in true:
                counts[places[span.type], types.pop((span.start, span.end), none)] += 1
            counts.update((none, kind) for kind in types.values())
        matrix = np.zeros((none + 1, none + 1), dtype=np.int64)
        for cell, count in counts.items():
            matrix[cell] = count
        return matrix

    def details(self) -> Details:
        """Tell which types are taken for which."""
        names = [*self.types, NONE]
        table = confusion_table(self.confusion, names)
        return Details(
            f"\nTypes of entities, where the words of a true and a predicted one agree; the "
            f"others\nare taken for {NONE!r}, or from it:\n\n{table}\n",
            {"types": names, "confusion": self.confusion.tolist()},
        )

    def draw(self, directory: Path) -> None:
        """Draw which types are taken for which."""
        right, true = int(np.trace(self.confusion)), int(self.confusion[:-1].sum())
        title = f"{right:,} of {true:,} entities found"
        names, picture = (*self.types, NONE), directory / "confusion.png"
        draw_confusion(self.confusion, names, picture, "entities", title)

    def cells(self, row: int, record: Mapping[str, Any]) -> list[str]:
        """Lay out the sentence twice, with the true entities and with the predicted ones."""
        true, said = self.found[row]

        def sentence(some: set[Span], others: set[Span], style: str) -> str:
            styled = [
                (each.type, each.start, each.end, "both" if each in others else style)
                for each in sorted(some, key=lambda span: span.start)
            ]
            return tagged(record["words"], styled)

        return [
            sentence(true, said, "gold"),
            sentence(said, true, "said"),
            str(self.wrong[row]),
            f"{record['loss']:.2f}",
        ]
