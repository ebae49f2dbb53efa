"""What a model said of each row of a file, and what that is worth: the face of every task's kind.

A kind of evidence has the true and the predicted answers of all rows. It says how good they are
on any draw of the rows, writes a row as a line of predictions.jsonl, reads the lines again, and
lays a row out for the page of mistakes. With that the rest of this directory makes intervals,
reports, pages and comparisons, and knows no task.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Bool, Float


class Details(NamedTuple):
    """What a kind of evidence tells beyond its scores."""

    text: str = ""
    """To print after the intervals."""
    numbers: Mapping[str, Any] = {}
    """The same, for evaluation.json."""


class Cell(NamedTuple):
    """A column of the page of mistakes."""

    style: str
    """Its class in mistakes_page.py."""
    title: str


class Evidence(ABC):
    """The answers of a model on all rows of a file, with the true ones."""

    titles: ClassVar[Mapping[str, str]]
    """The scores and what they are called, the main one first; a task's scores have them too."""
    share: ClassVar[str | None] = None
    """The one of them that is the share of the rows that are right."""
    unit: ClassVar[str] = "rows"
    """What a row is."""
    compared: ClassVar[str] = ""
    """What of a row two models are compared by, where that is more than right or wrong."""
    sorted_by: ClassVar[str]
    """What `badness` is, in words that end a sentence."""
    columns: ClassVar[Sequence[Cell]]
    """Of the page of mistakes, before the number of the row."""

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def gold(self) -> Sequence[Any]:
        """The true answer of each row, as its record has it."""

    @property
    @abstractmethod
    def correct(self) -> Bool[np.ndarray, " rows"]:
        """Whether each row is right as a whole; the page of mistakes leaves these out."""

    @property
    @abstractmethod
    def badness(self) -> Float[np.ndarray, " rows"]:
        """How bad each row's answer is; the page of mistakes begins with the greatest."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Where each row has one class of a few: their names."""
        return ()

    @property
    def row_scores(self) -> Float[np.ndarray, " rows"]:
        """How good each row's answer is, the greater the better: what two models differ in."""
        return self.correct.astype(np.float64)

    @property
    def width(self) -> int:
        """Numbers that the scores of a draw take on the way."""
        return len(self)

    @abstractmethod
    def scores(
        self, counts: Float[np.ndarray, "draws rows"]
    ) -> dict[str, Float[np.ndarray, " draws"]]:
        """Score draws of the rows, given how often each row is in each; what isn't defined is 0.

        Returns:
            The scores of `titles`; with each row once, those of the task.
        """

    @abstractmethod
    def record(self, row: int) -> dict[str, Any]:
        """Return what predictions.jsonl says of a row, from 0, besides its texts."""

    @classmethod
    @abstractmethod
    def read(cls, path: Path) -> "Evidence":
        """Read what `record` gave of all rows.

        Raises:
            ValueError: a line isn't one of such a file; the message names it.
            OSError: the file can't be read.
        """

    def details(self) -> Details:
        """Return what there is to tell beyond the scores."""
        return Details()

    def draw(self, directory: Path) -> None:  # noqa: B027 - not every kind has pictures
        """Draw pictures into a directory; matplotlib is there."""

    # --- the page of mistakes ------------------------------------------------------------

    @abstractmethod
    def cells(self, row: int, record: Mapping[str, Any]) -> Sequence[str]:
        """Lay out a row for the page: HTML for each of `columns`, see markup.py.

        Args:
            row: its number, from 0.
            record: its line of predictions.jsonl.
        """

    def outcome(self, row: int) -> tuple[int, int] | None:
        """Return the true and the predicted class, by which the page filters; None: no filter."""
        return None

    @property
    def tally(self) -> str:
        """Say in a sentence how many rows are mistaken."""
        mistakes = int((~self.correct).sum())
        return (
            f"{mistakes:,} of {len(self):,} {self.unit} are mistaken ({mistakes / len(self):.1%})."
        )


def divide(
    above: Float[np.ndarray, "*shape"], below: Float[np.ndarray, "*shape"]
) -> Float[np.ndarray, "*shape"]:
    """Divide; what is divided by 0 is 0."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)
