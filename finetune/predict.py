"""`bert predict MODEL < texts`: a line in, a line out, in the same order, in bounded memory.

The model's task says what a line is (finetune/tasks). Of a classifier:

In:  a text a line, or two with a TAB between them; or (--format jsonl) an object a line, whose
     keys are `text`, or `text_a` and `text_b`, or another of the usual names of columns.
Out: {"row": 1, "label": "…", "probabilities": {"…": 0.9, …}}, one line for each line of the input.

An empty line is a row: a text of nothing. A row that can't be read doesn't touch the others: it is
told on the standard error, counted, and is a line with an `error` instead of a label. It has no
line with --on-bad-row skip, and with stop it is the end, after the rows before it. Bytes that are
not UTF-8 are read as U+FFFD, and counted (bert/text.py).

A window of rows is read at a time, so that endless input takes no more memory than that; in it
rows of similar length share a batch (finetune/sequences.py).

Imports no torch, so that `--help` answers at once.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

from bert.text import TextReport
from finetune.tables import decode_line, read_object

if TYPE_CHECKING:
    from finetune.predictor import Predictor

LONGEST_LINE = 16 * 2**20
"""Bytes. A longer line is not kept: it is a row with an error."""
WINDOW_BYTES = 4 * 2**20
"""A window ends here, however few rows it has, unless its first row alone is longer."""


@dataclass(frozen=True)
class PredictConfig:
    """Answer the rows on the standard input, by the model's task; write a JSON object for each.

    A line is a text, or where the task has several, texts with TABs between: both texts of a
    pair; a question and its context; a premise and its choices.

    The object has the row's number, and: of classification, the label and the probabilities of
    all; of multi-label, labels and probabilities; of regression, a score; of multiple-choice, the
    choice (a number, from 0), its text and the probabilities; of token-classification, entities,
    each with type, text, score, and start and end, in characters of a text, or in words of a
    list; of question-answering, the answer, its score, and start and end, in characters of the
    context, which are null where there is no answer, and null_odds, by how much no answer exceeds
    the best one in logits, where the model may give none. An end is the place after the last.

    The exit code is 0; 1 where rows had errors, unless --on-bad-row skip asked to pass over them,
    which are counted on the standard error all the same; and 2 where they are the end.

    Raises:
        ValueError: a field is out of its range; the message names it.
    """

    model: Path
    """Directory of a fine-tuned model and its tokenizer."""
    format: Literal["text", "jsonl"] = "text"
    """text: a line is as the task reads it, such as a text, or a pair with a TAB between; jsonl:
    an object a line."""
    max_length: int | None = None
    """Tokens of a row; what is longer is cut. None: as many as the model can take."""
    on_bad_row: Literal["report", "skip", "stop"] = "report"
    """What becomes of a row that can't be read: a line with an error; no line; or the end."""
    window: int = 1024
    """Rows that are read before they are answered; 1: each row is answered at once."""
    batch_tokens: int = 2048
    """Tokens that are computed at once; a GPU is faster with more."""
    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:1; auto: cuda where there is one."""
    threads: int | None = None
    """CPU threads of torch; None: as many as torch chooses."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, least in (("max_length", 8), ("window", 1), ("batch_tokens", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}: expected {least} or more, got {value}")


@runtime_checkable
class Source(Protocol):
    """Where bytes come from, such as the standard input's buffer."""

    def readline(self, size: int, /) -> bytes:
        """Return a line with its end, or its first `size` bytes; nothing at the end."""
        ...


@runtime_checkable
class Sink(Protocol):
    """Where text goes, such as the standard output."""

    def write(self, text: str, /) -> object:
        """Take some text."""
        ...

    def flush(self) -> object:
        """Pass on what was taken."""
        ...


class InputRow(NamedTuple):
    """A row of the input: what the task read in it, or why there is nothing."""

    number: int
    size: int
    """Bytes of its line."""
    example: Any = None
    error: str | None = None


@dataclass
class PredictCounts:
    """What a stream held."""

    rows: int = 0
    errors: int = 0


def run(config: PredictConfig) -> int:
    """Answer the standard input; return the exit code: 1 where rows had errors that count."""
    from finetune.predictor import Predictor

    predictor = Predictor.load(
        config.model,
        max_length=config.max_length,
        batch_tokens=config.batch_tokens,
        device=config.device,
        threads=config.threads,
    )
    counts = predict(predictor, sys.stdin.buffer, sys.stdout, config)
    return int(counts.errors > 0 and config.on_bad_row != "skip")


def predict(
    predictor: "Predictor",
    source: Source,
    sink: Sink,
    config: PredictConfig,
    messages: Sink | None = None,
) -> PredictCounts:
    """Write a line to `sink` for each line of `source`.

    Args:
        predictor: answers.
        source: the rows.
        sink: gets JSONL, whole windows at a time.
        config: gives the format, the window, and the policy for bad rows.
        messages: gets a line for each bad row, and the counts; None: the standard error.

    Raises:
        ValueError: a row can't be read, and config.on_bad_row is stop.
    """
    counts, report = PredictCounts(), TextReport()
    predictor.full, predictor.tokenizer.report = 0, report
    messages = sys.stderr if messages is None else messages
    for window in windows(
        read_rows(source, config.format, predictor.task.parse, report), config.window
    ):
        for row, result in zip(window, _results(predictor, window), strict=True):
            counts.rows += 1
            if "error" in result:
                counts.errors += 1
                if config.on_bad_row == "stop":
                    sink.flush()
                    raise ValueError(f"row {row.number}: {result['error']}")
                print(f"row {row.number}: {result['error']}", file=messages)
                if config.on_bad_row == "skip":
                    continue
            print(json.dumps({"row": row.number, **result}, ensure_ascii=False), file=sink)
        sink.flush()
    told = summary(counts.rows, counts.errors, report, predictor.full, predictor.max_length)
    print(told, file=messages)
    return counts


def _results(predictor: "Predictor", window: list[InputRow]) -> Iterator[dict[str, Any]]:
    """Yield what is said of each row of a window."""
    good = [row.example for row in window if row.error is None]
    answers = iter(predictor.answer(good))
    for row in window:
        if row.error is not None:
            yield {"error": row.error}
        else:
            answer = next(answers)
            yield answer if isinstance(answer, dict) else {"error": answer}


def summary(rows: int, errors: int, report: TextReport, full: int, max_length: int) -> str:
    """Say in a line what a stream held.

    Args:
        rows: of the stream.
        errors: rows that had one.
        report: counts bytes that are no text.
        full: rows that fill `max_length` tokens or were cut.
        max_length: tokens of a row.
    """
    parts = [f"{rows} rows", f"{errors} with errors"]
    if full:
        parts.append(f"{full} fill the {max_length} tokens or were cut")
    if report.invalid_bytes:
        parts.append(f"{report.invalid_bytes} bytes that are not UTF-8, read as U+FFFD")
    return "; ".join(parts)


# --- the input -------------------------------------------------------------------------------


def windows(rows: Iterable[InputRow], size: int) -> Iterator[list[InputRow]]:
    """Cut the rows into lists of at most `size` rows and about WINDOW_BYTES bytes."""
    window: list[InputRow] = []
    held = 0
    for row in rows:
        window.append(row)
        held += row.size
        if len(window) == size or held >= WINDOW_BYTES:
            yield window
            window, held = [], 0
    if window:
        yield window


def read_rows(
    source: Source,
    format: str,
    parse: Callable[[str | dict[str, Any]], Any],
    report: TextReport,
) -> Iterator[InputRow]:
    """Yield a row for each line, numbered from 1; never raises because of what a line holds."""
    for number, raw in enumerate(_lines(source), start=1):
        if raw is None:
            error = f"expected at most {LONGEST_LINE} bytes, got a longer line"
            yield InputRow(number, 0, error=error)
            continue
        text = decode_line(raw.removesuffix(b"\n").removesuffix(b"\r"), report)
        try:
            example = parse(read_object(text) if format == "jsonl" else text)
            yield InputRow(number, len(raw), example)
        except ValueError as error:
            yield InputRow(number, len(raw), error=str(error))


def _lines(source: Source) -> Iterator[bytes | None]:
    """Yield the lines; None for one that is too long to be kept."""
    while line := source.readline(LONGEST_LINE + 1):
        if len(line) <= LONGEST_LINE:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = source.readline(LONGEST_LINE)
        yield None
