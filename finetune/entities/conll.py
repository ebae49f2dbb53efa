"""Read tagged sentences: CoNLL files, a word a line, and .jsonl, a sentence a line.

In a CoNLL file a blank line ends a sentence, columns stand apart by TABs, or by spaces where a
line has no TAB, and lines of -DOCSTART- are passed over. Where columns stand apart by TABs, a
line without one that begins with # is a comment. A .jsonl has lists of words and of tags. Both
may be packed as .xz or .gz.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert.text import TextReport
from finetune.config import Columns
from finetune.labels import shown
from finetune.tables import Lines, read_jsonl, reading

WORD_KEYS = ("tokens", "words")
TAG_KEYS = ("tags", "ner_tags", "labels")
_SUFFIXES = (".conll", ".iob2", ".iob", ".bio", ".tsv", ".txt")


@dataclass(frozen=True)
class Sentence:
    """Words with their tags, and where each stands in the file."""

    words: list[str]
    tags: list[str]
    lines: list[int]
    column: str
    """Of the tags, for errors."""


def read_sentences(
    path: Path, columns: Columns, word_column: int, tag_column: int, report: TextReport
) -> Iterator[Sentence]:
    """Yield the sentences of a file.

    Args:
        path: its name says the format.
        columns: of a .jsonl, text_a and label: the keys of the words and tags; None: the usual.
        word_column: of a CoNLL file, from 0; −1 is the last.
        tag_column: likewise.
        report: counts invalid bytes and the byte order mark.

    Raises:
        ValueError: the file can't be read, or a line isn't a word and its tag; the message names
            the file, the line and the column.
    """
    packed = path.suffix in (".xz", ".gz")
    format_ = path.with_suffix("").suffix if packed else path.suffix
    if format_ != ".jsonl" and format_ not in _SUFFIXES:
        raise ValueError(
            f"{path}: expected a name that ends in .jsonl, {', '.join(_SUFFIXES)}, "
            "and .xz or .gz after it"
        )
    with reading(path, report) as lines:
        if format_ == ".jsonl":
            yield from _from_json(lines, columns)
        else:
            yield from _from_columns(lines, word_column, tag_column)


def _from_columns(lines: Lines, word_column: int, tag_column: int) -> Iterator[Sentence]:
    wanted = (word_column, tag_column)
    least = max(column + 1 if column >= 0 else -column for column in wanted)
    least = max(least, 2)
    name = f"column {tag_column + 1}" if tag_column >= 0 else f"column {tag_column}"
    has_tabs: bool | None = None
    sentence = Sentence([], [], [], name)
    for text in lines:
        line = text.rstrip("\r\n")
        if line.startswith("#") and "\t" not in line and has_tabs is not False:
            continue
        fields = line.split("\t") if "\t" in line else line.split()
        is_end = not line.strip() or fields[0] == "-DOCSTART-"
        if is_end:
            if sentence.words:
                yield sentence
                sentence = Sentence([], [], [], name)
            continue
        has_tabs = "\t" in line if has_tabs is None else has_tabs
        if len(fields) < least:
            raise ValueError(
                f"{lines.path}, line {lines.number}: expected a word and its tag, {least} columns "
                f"or more (options word_column and tag_column), got {len(fields)}"
            )
        sentence.words.append(fields[word_column])
        sentence.tags.append(fields[tag_column].strip())
        sentence.lines.append(lines.number)
    if sentence.words:
        yield sentence


def _from_json(lines: Lines, columns: Columns) -> Iterator[Sentence]:
    for number, record in read_jsonl(lines):
        place = f"{lines.path}, line {number}"
        word_key = columns.text_a or usual_key(record, WORD_KEYS, place)
        tag_key = columns.label or usual_key(record, TAG_KEYS, place)
        words = list_of_texts(record.get(word_key), f"{place}, column {word_key!r}")
        tags = list_of_texts(record.get(tag_key), f"{place}, column {tag_key!r}")
        if len(tags) != len(words):
            raise ValueError(
                f"{place}, column {tag_key!r}: expected {len(words)} tags, one a word, "
                f"got {len(tags)}"
            )
        if words:
            yield Sentence(words, tags, [number] * len(words), f"column {tag_key!r}")


def usual_key(record: dict[str, Any], names: tuple[str, ...], place: str) -> str:
    """Find the one of a record's keys that has a usual name.

    Raises:
        ValueError: none has, or two; the message begins with `place`.
    """
    found = [name for name in names if name in record]
    if len(found) != 1:
        got = " and ".join(found) or ", ".join(record) or "none"
        raise ValueError(f"{place}: expected one key of {', '.join(names)}, got {got}")
    return found[0]


def list_of_texts(value: Any, place: str) -> list[str]:
    """Check that a value is a list of texts.

    Raises:
        ValueError: it isn't; the message begins with `place`.
    """
    if not isinstance(value, list):
        raise ValueError(f"{place}: expected a list of texts, got {shown(value)}")
    for item in value:
        if not isinstance(item, str):
            raise ValueError(f"{place}: expected a list of texts, got {shown(item)} in it")
    return value
