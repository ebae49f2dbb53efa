"""`bert embed MODEL < texts`: a vector for each text, in the same order, in bounded memory.

In:  a text a line; or (--format jsonl) an object a line with a `text`.
Out: {"row": 1, "embedding": [0.1, …]}, one line for each line of the input; or (--out X.npy) a
     float32 matrix with a row for each line.

An empty line is a row: a text of nothing. A row that can't be read is a line with an `error`
instead of an embedding, or a row of NaN, and is told on the standard error too. What was not
finished is no file: it is written aside, and moved into its place at the end.

Imports no torch, so that `--help` answers at once.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from bert.checked import Checked
from bert.sentence_layout import Pooling, SentenceLayout
from bert.text import TextReport
from finetune.predict import Sink, Source, read_rows, summary, windows

if TYPE_CHECKING:
    import numpy as np

    from finetune.sentence_encoder import SentenceEncoder


@dataclass(frozen=True)
class EmbedConfig(Checked):
    """Turn the texts on the standard input into vectors.

    A directory of sentence-transformers says itself how a text's token vectors become one; of
    another model, the mean is taken.

    Raises:
        ValueError: a field is out of its range; the message names it.
    """

    model: Path
    """Directory of a model and its tokenizer."""
    out: Path | None = None
    """File to write, .npy or .jsonl; None: JSON lines on the standard output."""
    format: Literal["text", "jsonl"] = "text"
    """text: a text a line; jsonl: an object a line with a text."""
    pooling: Pooling | None = None
    """mean: of all tokens; cls: the vector of [CLS]; None: as the model says, else mean."""
    normalize: Literal["yes", "no"] | None = None
    """Whether vectors get length 1; None: as the model says, else no."""
    max_length: int | None = None
    """Tokens of a text; what is longer is cut. None: as many as the model says or can take."""
    window: int = 1024
    """Rows that are read before they are computed."""
    batch_tokens: int = 2048
    """Tokens that are computed at once; a GPU is faster with more."""
    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:1; auto: cuda where there is one."""
    threads: int | None = None
    """CPU threads of torch; None: as many as torch chooses."""
    overwrite: bool = False
    """Replace the file `out`."""

    def __post_init__(self) -> None:
        """Check what can be checked without a file."""
        for name, least in (("max_length", 3), ("window", 1), ("batch_tokens", 1)):
            value = getattr(self, name)
            self._require(name, f"{least} or more", value is None or value >= least)
        if self.out is not None:
            self._require("out", "a name that ends in .npy or .jsonl", self._has_suffix())

    def _has_suffix(self) -> bool:
        return self.out is not None and self.out.suffix in (".npy", ".jsonl")


def run(config: EmbedConfig) -> int:
    """Embed the standard input; return the exit code: 1 where rows had errors."""
    from finetune.sentence_encoder import SentenceEncoder

    if config.out is not None and config.out.exists() and not config.overwrite:
        raise ValueError(f"out: expected no file, got {config.out}; --overwrite replaces it")
    layout = SentenceLayout.read(config.model).changed(config.pooling, config.normalize)
    layout = replace(layout, max_length=config.max_length or layout.max_length)
    encoder = SentenceEncoder.load(
        config.model,
        layout,
        batch_tokens=config.batch_tokens,
        device=config.device,
        threads=config.threads,
    )
    return int(embed(encoder, sys.stdin.buffer, config) > 0)


def embed(
    encoder: "SentenceEncoder", source: Source, config: EmbedConfig, messages: Sink | None = None
) -> int:
    """Write a vector for each line of `source`; return how many had errors.

    Args:
        encoder: makes the vectors.
        source: the rows.
        config: gives the formats, the window and the file.
        messages: gets a line for each bad row, and the counts; None: the standard error.
    """
    report, rows, errors = TextReport(), 0, 0
    encoder.full, encoder.tokenizer.report = 0, report
    messages = sys.stderr if messages is None else messages
    with _output(config.out, encoder.model.config.hidden_size) as write:
        read = read_rows(source, config.format, _text, report)
        for window in windows(read, config.window):
            vectors = iter(encoder.encode([r.example for r in window if r.error is None]))
            for row in window:
                rows += 1
                errors += row.error is not None
                write(row.number, None if row.error else next(vectors), row.error)
                if row.error is not None:
                    print(f"row {row.number}: {row.error}", file=messages)
    print(summary(rows, errors, report, encoder.full, encoder.max_length), file=messages)
    return errors


def _text(row: str | dict[str, Any]) -> str:
    """Read a row's text."""
    if isinstance(row, str):
        return row
    if not isinstance(row.get("text"), str):
        raise ValueError(f"expected a text under the key text, got the keys {', '.join(row)}")
    return row["text"]


# --- the output ------------------------------------------------------------------------------


@contextmanager
def _output(path: Path | None, width: int) -> Iterator[Any]:
    """Give a function that writes a row: its number, its vector or None, and its error."""
    if path is None:
        yield lambda *row: print(_as_json(*row))
        sys.stdout.flush()
        return
    aside = path.with_name(f".{path.name}.partial")
    try:
        with open(aside, "wb") as file:
            if path.suffix == ".npy":
                matrix = _Matrix(file, width)
                yield matrix.write
                matrix.close()
            else:
                yield lambda *row: file.write(f"{_as_json(*row)}\n".encode())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _as_json(number: int, vector: "np.ndarray | None", error: str | None) -> str:
    """Write a row as JSON; each number with the digits that tell it from other float32's."""
    if vector is None:
        return json.dumps({"row": number, "error": error}, ensure_ascii=False)
    return json.dumps({"row": number, "embedding": [float(str(value)) for value in vector]})


class _Matrix:
    """A float32 matrix in a .npy file that grows row by row."""

    def __init__(self, file: BinaryIO, width: int) -> None:
        self.file, self.width, self.rows = file, width, 0
        self._write_header()
        self.begin = file.tell()

    def write(self, number: int, vector: "np.ndarray | None", error: str | None) -> None:
        """Append a row; NaN where there is no vector."""
        import numpy as np

        row = np.full(self.width, np.nan) if vector is None else vector
        self.file.write(row.astype("<f4").tobytes())
        self.rows += 1

    def close(self) -> None:
        """Write the number of rows into the header, which numpy pads for that."""
        self.file.seek(0)
        self._write_header()
        assert self.file.tell() == self.begin

    def _write_header(self) -> None:
        from numpy.lib import format

        shape = (self.rows, self.width)
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        format.write_array_header_1_0(self.file, header)
