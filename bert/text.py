r"""Read users' text, whatever it holds: one policy for each oddity, and a count.

| in the text | what is done | counted as |
| --- | --- | --- |
| nothing, or only spaces | it has no tokens: [CLS] [SEP] | empty |
| a lone surrogate | read as U+FFFD, which BERT drops; offsets do not move | surrogates |
| NUL, other control characters | dropped, as in BERT; \t \n \r are spaces | controls |
| a byte order mark at the start | dropped | byte_order_marks |
| bytes that are not UTF-8, in a file | each is read as U+FFFD | invalid_bytes |
| more than LONGEST characters | tokenized part by part (`parts`) | long_texts |
| a literal [MASK], [SEP], ... | it is text: "[" "mask" "]" | special_literals |

Where the caller says `allow_special`, as fill-mask does, the last one is the special token.
No text can spoil another of its batch. Training a vocabulary follows the same policies.
"""

import gzip
import json
import lzma
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from io import BufferedIOBase, TextIOWrapper
from pathlib import Path
from typing import Any

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# Characters tokenized in one go. A text's time grows faster than its length: 9 MB at once take
# twice the time of 9 MB in parts, and 1.6 GB of memory.
LONGEST = 16_384

CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
SURROGATE = re.compile("[\ud800-\udfff]")
_SPECIAL = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))
# The last of BERT's spaces. To Python some control characters are spaces too; BERT drops them.
_TO_LAST_SPACE = re.compile(r"(?s:.*)[^\S\x0b\x0c\x1c-\x1f\x85]")


@dataclass
class TextReport:
    """Count the texts seen, and what the policies met in them."""

    texts: int = 0
    empty: int = 0
    surrogates: int = 0
    controls: int = 0
    byte_order_marks: int = 0
    invalid_bytes: int = 0
    long_texts: int = 0
    special_literals: int = 0


def odd_things(counts: Mapping[str, int]) -> list[str]:
    """Tell a user what the policies met, in one line; in none where the texts were plain.

    Args:
        counts: the fields of a TextReport.
    """
    odd = {name: count for name, count in counts.items() if count and name != "texts"}
    return [f"odd things in the texts (bert/text.py): {json.dumps(odd)}"] if odd else []


def clean(text: str, report: TextReport, *, allow_special: bool = False) -> str:
    """Replace what `tokenizers` cannot take, character by character, and count what is odd."""
    report.texts += 1
    report.long_texts += len(text) > LONGEST
    if not text.isprintable():  # the fast way to see that none of these is there
        text, surrogates = SURROGATE.subn("\ufffd", text)
        report.surrogates += surrogates
        report.controls += len(CONTROL.findall(text))
        report.byte_order_marks += text.startswith("\ufeff")
    if "[" in text and not allow_special:
        report.special_literals += len(_SPECIAL.findall(text))
    return text


def parts(text: str) -> Iterator[tuple[int, str]]:
    """Cut a text into parts of at most LONGEST characters; yield where each starts, and it.

    The cut comes after the last space of a part, so it changes no token. A run of LONGEST
    characters without a space is cut where it stands, and a word there may become two.
    """
    start = 0
    while start < len(text):
        end = start + LONGEST
        if end < len(text) and (space := _TO_LAST_SPACE.match(text, start, end)):
            end = space.end()
        yield start, text[start:end]
        start = end


def split_at_spaces(text: str) -> list[str]:
    """Split a text at BERT's spaces; a run of more than LONGEST characters is cut as above."""
    if not text.isprintable():
        text = CONTROL.sub("", text)  # else `split` would split there
    runs = text.split()
    if len(text) > LONGEST:
        runs = [run[i : i + LONGEST] for run in runs for i in range(0, len(run), LONGEST)]
    return runs


def read_lines(path: str | Path, report: TextReport | None = None) -> Iterator[str]:
    """Yield the lines of a text file (.gz, .xz and .zst are unpacked), without their ends.

    Memory stays bounded: a line of more than twice LONGEST characters comes in `parts`.

    Args:
        path: A UTF-8 file; see the policies above.
        report: Where to count them.

    Raises:
        ValueError: the file is packed, and broken or cut short; the message names the line.
    """
    path = Path(path)
    report = TextReport() if report is None else report
    number, line, is_cut = 1, "", False
    try:
        # "surrogateescape" turns a byte that is not UTF-8 into one of U+DC80 to U+DCFF: countable.
        raw: Any = open_unpacked(path)  # typeshed asks for a name, which BufferedIOBase lacks
        with TextIOWrapper(raw, "utf-8", "surrogateescape") as file:
            while chunk := file.readline(LONGEST):
                if number == 1 and not line and chunk.startswith("\ufeff"):
                    chunk = chunk[1:]
                    report.byte_order_marks += 1
                chunk, invalid = SURROGATE.subn("\ufffd", chunk)
                report.invalid_bytes += invalid
                line += chunk
                if line.endswith("\n"):
                    yield line[:-1]
                    number, line, is_cut = number + 1, "", False
                while len(line) > LONGEST:
                    report.long_texts += not is_cut
                    _, part = next(parts(line))
                    yield part
                    line, is_cut = line[len(part) :], True
        if line:
            yield line
    except unpacking_errors(path) as error:
        raise ValueError(f"{path}: line {number}: cannot be unpacked: {error}") from error


def open_unpacked(path: Path) -> BufferedIOBase:
    """Open a file for its bytes, unpacking .gz, .xz and .zst.

    Raises:
        ModuleNotFoundError: it ends in .zst, and nothing here reads that.
    """
    if path.suffix == ".zst":
        return _zstd(path).open(path, "rb")
    return {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)(path, "rb")


def unpacking_errors(path: Path) -> tuple[type[Exception], ...]:
    """List what reading a packed file raises where it is broken or cut short."""
    errors = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error)
    return (*errors, _zstd(path).ZstdError) if path.suffix == ".zst" else errors


def _zstd(path: Path) -> Any:
    """Find Python's own reader of .zst, which is there from 3.14 on, or its backport."""
    for package in ("compression", "backports"):
        try:
            return import_module(f"{package}.zstd")
        except ModuleNotFoundError:
            pass
    raise ModuleNotFoundError(
        f"{path}: backports.zstd is missing; install the extra zst: pip install -e .[zst]"
    )
