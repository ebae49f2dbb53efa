"""Read labelled texts from files: .tsv, .csv and .jsonl, packed as .xz or .gz or not.

A .tsv has a header, a row a line, and no quoting: a quotation mark is text. A .csv has a header
and quoted fields, which may hold commas and line ends. A .jsonl has one object a line. Lines of
nothing are passed over. Texts are taken as they are: bert/text.py says what becomes of the odd
ones.
"""

import csv
import gzip
import hashlib
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bert.text import TextReport
from finetune.config import Columns
from finetune.labels import read_class, shown

USUAL_NAMES = {
    "text_a": ("text_a", "text", "sentence", "sentence1", "premise", "question1"),
    "text_b": ("text_b", "sentence2", "hypothesis", "question2"),
    "label": ("label", "labels", "class", "target", "gold_label"),
}

_OF_OTHER_TASKS = {
    ".json": "; a .json of SQuAD's is for --task question-answering",
    **dict.fromkeys(
        (".conll", ".iob2", ".iob", ".bio"),
        "; tagged words, a line each, are for --task token-classification",
    ),
}
"""What to say of a file that isn't one of rows, by the end of its name."""
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
_BROKEN = (EOFError, OSError, lzma.LZMAError, zlib.error)


class Row(NamedTuple):
    """One labelled text, or pair of texts, and the line of the file that it starts in.

    The label is as `rows` was told to read it.
    """

    line: int
    text_a: str
    text_b: str | None
    label: Any


@dataclass(frozen=True)
class Table:
    """A file of rows, its columns found; reading it again and again gives the same rows.

    `names` are all of the file's columns.
    """

    path: Path
    columns: Columns
    names: tuple[str, ...]

    @staticmethod
    def open(
        path: Path, columns: Columns, label_names: Sequence[str] = USUAL_NAMES["label"]
    ) -> "Table":
        """Find the columns of a file; `label_names` are the usual ones of the label's.

        Raises:
            ValueError: the file can't be read, or has not the columns.
        """
        for _, record in records(path, TextReport()):
            names = tuple(record)
            return Table(path, _find_columns(path, names, columns, label_names), names)
        raise ValueError(f"{path}: expected rows, got none")

    @property
    def is_pair(self) -> bool:
        """Whether a row has two texts."""
        return self.columns.text_b is not None

    @property
    def unused(self) -> tuple[str, ...]:
        """The columns that nothing is taken from."""
        used = (self.columns.text_a, self.columns.text_b, self.columns.label)
        return tuple(name for name in self.names if name not in used)

    def rows(
        self, report: TextReport, read_label: Callable[[Any, str], Any] = read_class
    ) -> Iterator[Row]:
        """Yield the rows.

        Args:
            report: counts invalid bytes and the byte order mark.
            read_label: makes a label of what stands in the column; told the place, for an error.

        Raises:
            ValueError: a row hasn't a text or a label; the message names the line and column.
        """
        text_a, text_b, label = self.columns.text_a, self.columns.text_b, self.columns.label
        assert text_a is not None and label is not None
        for line, record in records(self.path, report):
            place = f"{self.path}, line {line}"
            yield Row(
                line,
                read_text(record, text_a, place),
                None if text_b is None else read_text(record, text_b, place),
                read_label(record.get(label), f"{place}, column {label!r}"),
            )

    def sha256(self) -> str:
        """Return the hash of the file as it lies on the disk."""
        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def _find_columns(
    path: Path, names: Sequence[str], asked: Columns, label_names: Sequence[str]
) -> Columns:
    """Complete the mapping with the usual names."""

    def find(field: str, is_needed: bool) -> str | None:
        usual = label_names if field == "label" else USUAL_NAMES[field]
        return find_column(path, names, field, getattr(asked, field), usual, is_needed)

    has_second = asked.text_a is None or asked.text_b is not None
    return Columns(
        text_a=find("text_a", True),
        text_b=find("text_b", False) if has_second else None,
        label=find("label", True),
    )


def find_column(
    path: Path | str,
    names: Sequence[str],
    field: str,
    asked: str | None,
    usual: Sequence[str],
    is_needed: bool = True,
) -> str | None:
    """Find a column: the one asked for, or one of a usual name.

    Args:
        path: the file, for an error.
        names: its columns.
        field: of `Columns`, that the user asks with.
        asked: the column asked for.
        usual: the usual names, in small letters.
        is_needed: whether there must be one.

    Raises:
        ValueError: the column isn't there; or two have a usual name, and which is not guessed.
    """
    listed = ", ".join(names)
    if asked is not None:
        if asked not in names:
            raise ValueError(f"{path}: columns.{field}: expected one of {listed}, got {asked!r}")
        return asked
    found = [name for name in names if name.strip().lower() in usual]
    if len(found) > 1:
        raise ValueError(
            f"{path}: columns.{field}: expected one column of a usual name, "
            f"got {' and '.join(found)}; say which"
        )
    if is_needed and not found:
        raise ValueError(
            f"{path}: columns.{field}: expected a column named "
            f"{', '.join(usual)}, got {listed}; say which it is"
        )
    return found[0] if found else None


def read_text(record: dict[str, Any], column: str, place: str) -> str:
    """Return the text in a column.

    Raises:
        ValueError: there is none; the message begins with `place`.
    """
    text = record.get(column)
    if not isinstance(text, str):
        raise ValueError(f"{place}, column {column!r}: expected a text, got {shown(text)}")
    return text


# --- formats ---------------------------------------------------------------------------------


def records(path: Path, report: TextReport) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each record with the line that it starts in, whatever the format.

    Raises:
        ValueError: the file can't be read; the message names the line.
    """
    packed = path.suffix in (".xz", ".gz")
    format_ = path.with_suffix("").suffix if packed else path.suffix
    readers = {".tsv": _read_tsv, ".csv": _read_csv, ".jsonl": read_jsonl}
    if format_ not in readers:
        raise ValueError(
            f"{path}: expected a name that ends in .tsv, .csv or .jsonl, and .xz or .gz after it"
            + _OF_OTHER_TASKS.get(format_, "")
        )
    with reading(path, report) as lines:
        yield from readers[format_](lines)


@contextmanager
def reading(path: Path, report: TextReport) -> Iterator["Lines"]:
    """Give a file's lines, and turn a broken file into one line that names it.

    Raises:
        ValueError: it can't be read, or unpacked.
    """
    lines = Lines(path, report)
    try:
        yield lines
    except _BROKEN as error:
        reason = getattr(error, "strerror", None) or error
        place = f"{path}, line {lines.number}" if lines.number else str(path)
        raise ValueError(f"{place}: can't be read: {reason}") from error


def decode_line(raw: bytes, report: TextReport) -> str:
    """Decode UTF-8; a byte that isn't is read as U+FFFD, and counted."""
    text = raw.decode("utf-8", errors="surrogateescape")
    if not text.isascii():
        text, invalid = _ESCAPED_BYTE.subn("\ufffd", text)
        report.invalid_bytes += invalid
    return text


class Lines:
    """The decoded lines of a file, with their ends; `number` is the last one's, from 1.

    A byte that is not UTF-8 is read as U+FFFD, and a byte order mark is dropped (bert/text.py).
    """

    def __init__(self, path: Path, report: TextReport) -> None:
        self.path, self.report, self.number = path, report, 0

    def __iter__(self) -> Iterator[str]:
        unpack = {".xz": lzma.open, ".gz": gzip.open}.get(self.path.suffix, open)
        with unpack(self.path, "rb") as file:
            for raw in file:
                self.number += 1
                if self.number == 1:
                    raw = self._without_mark(raw)
                yield decode_line(raw, self.report)

    def _without_mark(self, raw: bytes) -> bytes:
        if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise ValueError(f"{self.path}, line 1: expected UTF-8, got UTF-16 (by its mark)")
        self.report.byte_order_marks += raw.startswith(b"\xef\xbb\xbf")
        return raw.removeprefix(b"\xef\xbb\xbf")


def _read_tsv(lines: Lines) -> Iterator[tuple[int, dict[str, Any]]]:
    header: list[str] | None = None
    for text in lines:
        fields = text.rstrip("\r\n").split("\t")
        if fields == [""]:
            continue
        if header is None:
            header = _checked_header(fields, lines)
        else:
            yield lines.number, _named(header, fields, lines.path, lines.number)


def _read_csv(lines: Lines) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(2**31 - 1)  # else a text of over 131,072 characters is an error
    header: list[str] | None = None
    # strict: an unclosed quotation mark is an error, and doesn't swallow the rest of the file.
    rows = csv.reader(iter(lines), strict=True)
    while True:
        start = lines.number + 1
        try:
            fields = next(rows, None)
        except csv.Error as error:
            raise ValueError(
                f"{lines.path}, line {start}: expected a row of a CSV file, got one with: {error}"
            ) from None
        if fields is None:
            return
        if header is None and fields:
            header = _checked_header(fields, lines)
        elif header is not None and fields:
            yield start, _named(header, fields, lines.path, start)


def read_jsonl(lines: Lines) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each object with its line.

    Raises:
        ValueError: a line is none; the message names the file and the line.
    """
    for text in lines:
        if not text.strip():
            continue
        try:
            record = read_object(text)
        except ValueError as error:
            raise ValueError(f"{lines.path}, line {lines.number}: {error}") from None
        yield lines.number, record


def read_object(text: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: it is none, or no JSON; the message doesn't say where.
    """
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        what = f": {error}" if text else ", got nothing"
        raise ValueError(f"expected JSON{what}") from None
    if not isinstance(record, dict):
        raise ValueError(f"expected an object, got {shown(record)}")
    return record


def _checked_header(fields: list[str], lines: Lines) -> list[str]:
    twice = sorted({name for name in fields if fields.count(name) > 1})
    if twice:
        raise ValueError(f"{lines.path}, line {lines.number}: column {twice[0]!r} is there twice")
    return fields


def _named(header: list[str], fields: list[str], path: Path, line: int) -> dict[str, str]:
    if len(fields) != len(header):
        raise ValueError(
            f"{path}, line {line}: expected {len(header)} columns ({', '.join(header)}), "
            f"got {len(fields)}"
        )
    return dict(zip(header, fields, strict=True))
