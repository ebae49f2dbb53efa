"""Read questions on texts in SQuAD's JSON, v1.1 and v2.0 (Rajpurkar et al. 2016, 2018).

    {"data": [{"title": "…", "paragraphs": [{"context": "…", "qas": [
        {"id": "…", "question": "…", "is_impossible": false,
         "answers": [{"text": "…", "answer_start": 17}]}]}]}]}

`answer_start` is a character of the context, from 0. A question that the context does not answer
has no answers and says is_impossible; without that a missing answer is an error. The file may be
packed (.xz, .gz, .zst).

An answer whose text does not stand at its offset can't be pointed at. It is counted, and training
passes over it; when answers are scored, its text counts like any other.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bert.text import TextReport, open_unpacked, unpacking_errors
from finetune.tables import decode_line

_KINDS = {str: "a text", int: "a whole number", bool: "true or false", list: "a list"}


class Answer(NamedTuple):
    """A text, and the character of the context that it is said to begin with."""

    text: str
    start: int


class Question(NamedTuple):
    """A question on a context; one without answers is not answered by it."""

    id: str
    text: str
    context: str
    answers: tuple[Answer, ...] = ()

    @property
    def placed_answers(self) -> list[Answer]:
        """The answers that stand where they are said to."""
        return [a for a in self.answers if self.context.startswith(a.text, a.start)]


def read_squad(path: Path, report: TextReport) -> list[Question]:
    """Read a file's questions; those of a paragraph share its context.

    Args:
        path: the file.
        report: counts invalid bytes and a byte order mark.

    Raises:
        ValueError: the file can't be read, or is none of SQuAD's; the message names the file and
            the article, the paragraph and the question, which count from 1.
    """
    questions: list[Question] = []
    places: dict[str, str] = {}
    for place, context, record in _records(path, report):
        question = _question(record, context, place)
        if question.id in places:
            first = places[question.id].removeprefix(f"{path}, ")
            raise ValueError(
                f"{place} (id {question.id!r}): expected an id of its own, got that of {first}"
            )
        places[question.id] = f"{place} (id {question.id!r})"
        questions.append(question)
    if not questions:
        raise ValueError(f"{path}: expected questions, got none")
    return questions


def _records(path: Path, report: TextReport) -> Iterator[tuple[str, str, Any]]:
    """Yield the place, the context and the record of each question."""
    for in_data, article in _items(_load(path, report), "data", str(path), "article"):
        for in_article, paragraph in _items(article, "paragraphs", in_data, "paragraph"):
            context = _get(paragraph, "context", str, in_article)
            for place, record in _items(paragraph, "qas", in_article, "question"):
                yield place, context, record


def _load(path: Path, report: TextReport) -> Any:
    try:
        with open_unpacked(path) as file:
            raw = file.read()
    except (OSError, *unpacking_errors(path)) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path}: can't be read: {reason}") from error
    report.byte_order_marks += raw.startswith(b"\xef\xbb\xbf")
    try:
        return json.loads(decode_line(raw.removeprefix(b"\xef\xbb\xbf"), report))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON: {error}") from None


def _items(record: Any, key: str, place: str, what: str) -> Iterator[tuple[str, Any]]:
    """Yield each member of a list, and where it is."""
    for number, item in enumerate(_get(record, key, list, place), start=1):
        yield f"{place}, {what} {number}", item


def _question(record: Any, context: str, place: str) -> Question:
    id = _get(record, "id", str, place)
    place = f"{place} (id {id!r})"
    text = _get(record, "question", str, place)
    is_impossible = "is_impossible" in record and _get(record, "is_impossible", bool, place)
    answers = tuple(
        _answer(answer, at) for at, answer in _items(record, "answers", place, "answer")
    )
    if is_impossible and answers:
        raise ValueError(f"{place}: expected no answer, since is_impossible, got {len(answers)}")
    if not is_impossible and not answers:
        raise ValueError(f"{place}: expected an answer, or is_impossible, got neither")
    return Question(id, text, context, answers)


def _answer(record: Any, place: str) -> Answer:
    text, start = _get(record, "text", str, place), _get(record, "answer_start", int, place)
    if not text.strip():
        raise ValueError(f"{place}: text: expected a text, got {text!r}")
    if start < 0:
        raise ValueError(f"{place}: answer_start: expected 0 or more, got {start}")
    return Answer(text, start)


def _get(record: Any, key: str, kind: type, place: str) -> Any:
    if not isinstance(record, dict):
        raise ValueError(f"{place}: expected an object with {key!r}, got {record!r:.60}")
    value = record.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        shown = f"{value!r:.60}" if key in record else "nothing"
        raise ValueError(f"{place}: {key}: expected {_KINDS[kind]}, got {shown}")
    return value
