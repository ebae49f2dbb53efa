"""Read questions with choices from files: .tsv, .csv and .jsonl, as finetune/tables.py reads them.

A row has a premise, perhaps a question, its choices, and the number of the right one, from 0:

    {"context": "The woman retired.", "question": "effect", "label": 1,
     "choices": ["She paid off her mortgage.", "She received her pension."]}

The choices are a list in one column, or stand in columns of their own: choice1, choice2, … In the
second case a row may leave the last of them empty. Each choice makes a pair of texts: the premise,
and the question with the choice after it.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bert.text import TextReport
from finetune.config import Columns
from finetune.labels import shown
from finetune.tables import USUAL_NAMES, find_column, read_text, records

PREMISES = ("premise", "context", "article", "sent1", "text_a", "text", "sentence1")
QUESTIONS = ("question", "sent2", "text_b")
LISTS = ("choices", "options", "endings")
_NUMBERED = re.compile("(choice|option|ending)_?([0-9]+)")


class Choices(NamedTuple):
    """The pairs of texts of a question."""

    premise: str
    seconds: tuple[str, ...]
    """The question, where there is one, with each choice."""
    choices: tuple[str, ...]

    @staticmethod
    def of(premise: str, question: str | None, choices: Sequence[str]) -> "Choices":
        """Put the question before each choice."""
        before = f"{question} " if question else ""
        return Choices(premise, tuple(f"{before}{choice}" for choice in choices), tuple(choices))


@dataclass(frozen=True)
class ChoiceColumns:
    """Which columns hold what."""

    premise: str
    question: str | None
    choices: tuple[str, ...]
    """One that holds lists, or several that hold a choice each."""
    label: str | None

    @property
    def used(self) -> tuple[str, ...]:
        """All of them."""
        named = (self.premise, self.question, *self.choices, self.label)
        return tuple(name for name in named if name is not None)

    @staticmethod
    def find(
        path: Path | str,
        names: Sequence[str],
        asked: Columns,
        choices: str | None = None,
        has_label: bool = True,
    ) -> "ChoiceColumns":
        """Find the columns: those asked for, or those of usual names.

        Args:
            path: the file, for an error.
            names: its columns.
            asked: text_a is the premise's column, text_b the question's.
            choices: the columns of the choices, with commas between.
            has_label: whether there is a label.

        Raises:
            ValueError: there are no such columns, or several could be meant.
        """
        # Where there is no premise, the question is what the choices are held against.
        has_premise = asked.text_a is not None or any(n.strip().lower() in PREMISES for n in names)
        usual = PREMISES if has_premise else QUESTIONS
        premise = find_column(path, names, "text_a", asked.text_a, usual)
        question = None
        if asked.text_b is not None or (asked.text_a is None and has_premise):
            question = find_column(path, names, "text_b", asked.text_b, QUESTIONS, False)
        label = None
        if has_label:
            label = find_column(path, names, "label", asked.label, USUAL_NAMES["label"])
        assert premise is not None
        return ChoiceColumns(premise, question, _choice_columns(path, names, choices), label)

    def read(self, record: dict[str, Any], place: str) -> Choices:
        """Read a row's texts.

        Raises:
            ValueError: a text is missing, or there are fewer than two choices; the message begins
                with `place`.
        """
        question = None if self.question is None else read_text(record, self.question, place)
        premise = read_text(record, self.premise, place)
        return Choices.of(premise, question, self._choices(record, place))

    def _choices(self, record: dict[str, Any], place: str) -> list[str]:
        where = f"{place}, column{'s' * (len(self.choices) > 1)} {', '.join(self.choices)!r}"
        if len(self.choices) == 1:
            found = record.get(self.choices[0])
            if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
                raise ValueError(f"{where}: expected a list of texts, got {shown(found)}")
        else:
            found = [read_text(record, name, place) for name in self.choices if name in record]
            while found and not found[-1].strip():
                found.pop()
        if len(found) < 2 or not all(text.strip() for text in found):
            raise ValueError(
                f"{where}: expected two choices or more, none empty, got {shown(found)}"
            )
        return found

    def read_label(self, record: dict[str, Any], choices: int, place: str) -> int:
        """Read the number of the right choice.

        Raises:
            ValueError: there is no such choice; the message begins with `place`.
        """
        assert self.label is not None
        value = record.get(self.label)
        number = int(value) if isinstance(value, str) and value.strip().isdecimal() else value
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < choices:
            raise ValueError(
                f"{place}, column {self.label!r}: expected a choice from 0 to {choices - 1}, "
                f"got {shown(value)}"
            )
        return number


def _choice_columns(path: Path | str, names: Sequence[str], asked: str | None) -> tuple[str, ...]:
    """Find a column of lists, or the numbered ones in the order of their numbers."""
    if asked is not None:
        chosen = tuple(name.strip() for name in asked.split(","))
        absent = [name for name in chosen if name not in names]
        if absent:
            raise ValueError(
                f"{path}: options: choices: expected one of {', '.join(names)}, got {absent[0]!r}"
            )
        return chosen
    lists = [name for name in names if name.strip().lower() in LISTS]
    numbered = [
        (int(found[2]), name)
        for name in names
        if (found := _NUMBERED.fullmatch(name.strip().lower())) is not None
    ]
    if len(lists) + bool(numbered) != 1 or len(numbered) == 1:
        raise ValueError(
            f"{path}: options: choices: expected a column named {', '.join(LISTS)}, or columns "
            f"choice1, choice2, …, got {', '.join(names)}; say which"
        )
    return tuple(lists) or tuple(name for _, name in sorted(numbered))


def read_choices(
    path: Path, asked: Columns, choices: str | None, report: TextReport
) -> tuple[ChoiceColumns, tuple[str, ...], Iterator[tuple[Choices, int]]]:
    """Read a file.

    Args:
        path: see the head of the file.
        asked: see `ChoiceColumns.find`, for `choices` too.
        choices: see there.
        report: counts invalid bytes and the byte order mark.

    Returns:
        The columns that are used, all columns, and each row with the number of its right choice.

    Raises:
        ValueError: the file can't be read, or has not the columns; and, from a row on, that it
            can't be. The message names the file, line and column.
    """
    for _, record in records(path, TextReport()):
        names = tuple(record)
        columns = ChoiceColumns.find(path, names, asked, choices)
        return columns, names, _rows(path, columns, report)
    raise ValueError(f"{path}: expected rows, got none")


def _rows(path: Path, columns: ChoiceColumns, report: TextReport) -> Iterator[tuple[Choices, int]]:
    for line, record in records(path, report):
        place = f"{path}, line {line}"
        row = columns.read(record, place)
        yield row, columns.read_label(record, len(row.choices), place)
