"""A file of questions with choices as rows of token ids, and packed micro-batches of them."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from bert.packing import PackedBatch
from bert.tokenization import Tokenizer
from finetune.batches import Encoded, TokenRows
from finetune.choices.files import ChoiceColumns, Choices, read_choices
from finetune.config import Columns

# Questions tokenized at once.
CHUNK = 256


@dataclass(frozen=True)
class ChoiceBatch:
    """A packed micro-batch of choices, those of a question one after another."""

    packed: PackedBatch
    sizes: tuple[int, ...]
    """How many choices each question has."""
    labels: Int64[Tensor, " questions"]
    """The number of the right one."""

    def to(self, device: torch.device) -> "ChoiceBatch":
        """Move it to a device."""
        return ChoiceBatch(self.packed.to(device), self.sizes, self.labels.to(device))


@dataclass(frozen=True)
class ChoiceRows:
    """A file of questions, tokenized; the choices of question i are edges[i] to edges[i + 1]."""

    path: Path
    columns: ChoiceColumns
    unused: tuple[str, ...]
    tokens: TokenRows
    edges: Int64[np.ndarray, " questions_plus_one"]
    labels: Int64[np.ndarray, " questions"]
    max_length: int
    """Tokens that a choice was cut to, with its premise, if it was longer."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> Int64[np.ndarray, " questions"]:
        """The tokens of each question, with all its choices."""
        return np.diff(self.tokens.offsets[self.edges])

    @property
    def sizes(self) -> Int64[np.ndarray, " questions"]:
        """How many choices each has."""
        return np.diff(self.edges)

    def batch(self, chosen: Sequence[int] | Int64[np.ndarray, " chosen"]) -> ChoiceBatch:
        """Pack the chosen questions, in the given order."""
        sequences = [np.arange(self.edges[i], self.edges[i + 1]) for i in chosen]
        return ChoiceBatch(
            self.tokens.batch(np.concatenate(sequences)),
            tuple(map(len, sequences)),
            torch.from_numpy(self.labels[chosen]),
        )

    def describe(self) -> dict[str, Any]:
        """Return the file, its columns and its size, as JSON."""
        return {
            "file": str(self.path),
            "sha256": hashlib.sha256(self.path.read_bytes()).hexdigest(),
            "columns": asdict(self.columns),
            "unused_columns": list(self.unused),
            "rows": len(self),
            "fewest_choices": int(self.sizes.min()),
            "most_choices": int(self.sizes.max()),
            "tokens": int(self.lengths.sum()),
            "longest": int(self.tokens.lengths.max()),
            "full_choices": int((self.tokens.lengths == self.max_length).sum()),
        }

    def __str__(self) -> str:
        facts = self.describe()
        fewest, most = facts["fewest_choices"], facts["most_choices"]
        unused = f" (not used: {', '.join(self.unused)})" if self.unused else ""
        full = f"; {facts['full_choices']:,} fill the {self.max_length} tokens or were cut"
        return (
            f"{self.path}: {len(self):,} questions of {fewest}"
            + (f" to {most}" if most > fewest else "")
            + f" choices; columns {', '.join(self.columns.used)}{unused}; {facts['tokens']:,} "
            f"tokens, {facts['longest']} in the longest choice"
            + (full if facts["full_choices"] else "")
        )

    def sha256(self) -> str:
        """Return a hash of all that training or testing sees of the file."""
        digest = hashlib.sha256()
        tokens = self.tokens
        for part in (
            tokens.input_ids, tokens.token_type_ids, tokens.offsets, self.edges, self.labels
        ):  # fmt: skip
            digest.update(part.data)
        return digest.hexdigest()


def read_choice_rows(
    path: Path,
    asked: Columns,
    choices: str | None,
    tokenizer: Tokenizer,
    max_length: int,
    limit: int | None = None,
) -> ChoiceRows:
    """Read and tokenize a file; the texts themselves are not kept.

    Args:
        path: see finetune/choices/files.py.
        asked: the columns, see `ChoiceColumns.find`.
        choices: the columns of the choices, see there.
        tokenizer: its report counts the odd things met in the texts.
        max_length: tokens of a choice with its premise; the longer text is cut first.
        limit: questions to read, from the first; None: all.

    Raises:
        ValueError: a row that can't be; the message names the file, line and column. Fewer rows
            than `limit`.
    """
    columns, names, rows = read_choices(path, asked, choices, tokenizer.report)
    labels: list[int] = []
    sizes: list[int] = []

    def questions() -> Iterator[Choices]:
        for row, label in islice(rows, limit):
            labels.append(label)
            sizes.append(len(row.choices))
            yield row

    tokens = TokenRows.from_encodings(encode_choices(questions(), tokenizer, max_length))
    if limit is not None and len(labels) < limit:
        raise ValueError(f"train_rows: expected at most {len(labels)}, all of {path}, got {limit}")
    return ChoiceRows(
        path,
        columns,
        tuple(name for name in names if name not in columns.used),
        tokens,
        np.cumsum([0, *sizes], dtype=np.int64),
        np.array(labels, dtype=np.int64),
        max_length,
    )


def encode_choices(
    questions: Iterable[Choices], tokenizer: Tokenizer, max_length: int
) -> Iterator[Encoded]:
    """Yield a pair of texts for each choice; the longer text is cut first."""
    rows = iter(questions)
    while chunk := list(islice(rows, CHUNK)):
        yield from tokenizer.encode_batch(
            [row.premise for row in chunk for _ in row.seconds],
            [second for row in chunk for second in row.seconds],
            max_length=max_length,
        )
