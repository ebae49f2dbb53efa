"""Files of text → documents, as a stream of paragraphs.

| file | a document | its paragraphs |
| --- | --- | --- |
| .jsonl | a row: an object, whose text lies in one of its fields | the lines of that text |
| .txt, and any other | what lies between blank lines, or a file's ends | its lines |

Each may be packed as .gz, .xz or .zst. The stream holds no blank paragraph; a None ends a
document. Memory stays bounded: a long line comes in parts (`bert.text.read_lines`), and a row,
which has to be parsed whole, may have `LARGEST_ROW` bytes.
"""

import hashlib
import json
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert.text import (
    CONTROL,
    SURROGATE,
    TextReport,
    open_unpacked,
    parts,
    read_lines,
    unpacking_errors,
)

PACKED = (".gz", ".xz", ".zst")
LARGEST_ROW = 1 << 25  # bytes; parsing takes several times as much memory
_MARK = b"\xef\xbb\xbf"
# What a file is judged by: so many bytes of its start, and the share of its characters that may be
# no text. Of fewer than LEAST characters nothing is concluded.
_SAMPLE, _LEAST, _ODD_SHARE = 1 << 16, 1024, 0.1


@dataclass
class Rows:
    """How the rows of .jsonl files are read, and how many were not."""

    text_field: str = "text"
    skip_bad: bool = False
    """Count a row that can't be used instead of refusing it."""
    skipped: int = 0


def read_paragraphs(path: Path, report: TextReport, rows: Rows) -> Iterator[str | None]:
    """Yield a file's paragraphs, with None at the end of each document.

    Args:
        path: see the table above.
        report: counts what the policies of bert/text.py meet.
        rows: counts the rows that were skipped.

    Raises:
        ValueError: a packed file is broken, or a row is no JSON object with a text in the field;
            the message names the file and the line.
    """
    name = path.with_suffix("") if path.suffix in PACKED else path
    if name.suffix == ".jsonl":
        yield from _paragraphs_of_rows(path, report, rows)
        return
    for line in read_lines(path, report):
        yield line if line and not line.isspace() else None
    yield None


def _paragraphs_of_rows(path: Path, report: TextReport, rows: Rows) -> Iterator[str | None]:
    for number, row in _rows(path):
        try:
            text = _text_of(row, rows.text_field, report)
        except ValueError as error:
            if not rows.skip_bad:
                raise ValueError(f"{path}: row {number}: {error}") from None
            rows.skipped += 1
            continue
        for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
            for _, part in parts(line):
                if not part.isspace():
                    yield part
        yield None


def _rows(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Yield each row that isn't blank with its number; None for one that is too long."""
    number = 0
    try:
        with open_unpacked(path) as file:
            while row := file.readline(LARGEST_ROW + 1):
                number += 1
                if len(row) > LARGEST_ROW and not row.endswith(b"\n"):
                    while row and not row.endswith(b"\n"):
                        row = file.readline(1 << 20)
                    yield number, None
                elif row.strip():
                    yield number, row
    except unpacking_errors(path) as error:
        raise ValueError(f"{path}: row {number + 1}: cannot be unpacked: {error}") from error


def _text_of(row: bytes | None, field: str, report: TextReport) -> str:
    """Return the text in a row, without what UTF-8 can't hold."""
    if row is None:
        raise ValueError(f"expected at most {LARGEST_ROW:,} bytes, got more")
    if row.startswith(_MARK):
        row = row.removeprefix(_MARK)
        report.byte_order_marks += 1
    content, invalid = SURROGATE.subn("\ufffd", row.decode("utf-8", "surrogateescape"))
    report.invalid_bytes += invalid
    try:
        record: Any = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected JSON, got {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, got {reprlib.repr(record)}")
    if not isinstance(text := record.get(field), str):
        got = reprlib.repr(text) if field in record else f"only {reprlib.repr([*record])}"
        raise ValueError(f"expected a text in the field {field!r}, got {got}")
    text, surrogates = SURROGATE.subn("\ufffd", text)
    report.surrogates += surrogates
    return text


def describe_sources(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Return name, size and SHA-256 of each text file, so that all are known to be there.

    Raises:
        ValueError: there is none, or one is missing, no file, unreadable, no text, or there twice.
    """
    if not paths:
        raise ValueError("files: expected at least one text file, got none")
    sources: dict[str, dict[str, Any]] = {}
    for path in paths:
        try:
            if not path.is_file():
                kind = (
                    "a directory" if path.is_dir() else "none" if not path.exists() else "a device"
                )
                raise ValueError(f"{path}: expected a text file, got {kind}")
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
        if digest in sources:
            raise ValueError(f"{path}: holds the same bytes as {sources[digest]['name']}")
        _refuse_binary(path)
        entry = {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}
        sources[digest] = entry
    return list(sources.values())


def _refuse_binary(path: Path) -> None:
    """Refuse a file whose start is mostly no UTF-8: a picture, an archive, another encoding."""
    try:
        with open_unpacked(path) as file:
            text = file.read(_SAMPLE).decode("utf-8", "surrogateescape")
    except unpacking_errors(path):
        return  # refused where it is read, with the line
    odd = len(SURROGATE.findall(text)) + len(CONTROL.findall(text))
    if len(text) >= _LEAST and odd > _ODD_SHARE * len(text):
        raise ValueError(
            f"{path}: expected text in UTF-8, got a file with {odd:,} of the first "
            f"{len(text):,} characters that are no text"
        )
