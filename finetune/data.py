"""Labelled rows as arrays of token ids, and as micro-batches in an order that a seed gives."""

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int32, Int64, UInt8
from torch import Tensor

from bert.packing import PackedBatch
from bert.tokenization import Tokenizer
from finetune.config import Columns
from finetune.labels import class_of, name_classes
from finetune.tables import Table
from kernels import PackedSequences

# Rows tokenized at once: enough for the library's threads, and next to no memory.
CHUNK = 1024


@runtime_checkable
class Encoded(Protocol):
    """A tokenized row."""

    @property
    def ids(self) -> list[int]: ...  # noqa: D102
    @property
    def token_type_ids(self) -> list[int]: ...  # noqa: D102


@dataclass(frozen=True)
class TokenRows:
    """Rows of token ids, one after another, 5 bytes a token: the i-th from offsets[i] on."""

    input_ids: Int32[np.ndarray, " tokens"]
    token_type_ids: UInt8[np.ndarray, " tokens"]
    offsets: Int64[np.ndarray, " rows_plus_one"]

    @staticmethod
    def from_encodings(encodings: Iterable[Encoded]) -> "TokenRows":
        """Pack tokenized rows; only their ids are kept."""
        ids, types, offsets = array("i"), bytearray(), array("q", [0])
        for encoding in encodings:
            ids.extend(encoding.ids)
            types.extend(encoding.token_type_ids)
            offsets.append(len(ids))
        return TokenRows(
            np.frombuffer(ids, dtype=np.int32),
            np.frombuffer(types, dtype=np.uint8),
            np.frombuffer(offsets, dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int64[np.ndarray, " rows"]:
        """The tokens of each row."""
        return np.diff(self.offsets)

    def batch(self, rows: Sequence[int] | Int64[np.ndarray, " chosen"]) -> PackedBatch:
        """Pack the chosen rows, in the given order."""
        starts, lengths = self.offsets[:-1][rows], self.lengths[rows]
        begins = np.cumsum(lengths) - lengths
        position = np.arange(lengths.sum()) - np.repeat(begins, lengths)
        place = np.repeat(starts, lengths) + position
        return PackedBatch(
            torch.from_numpy(self.input_ids[place].astype(np.int64)),
            torch.from_numpy(self.token_type_ids[place].astype(np.int64)),
            torch.from_numpy(position),
            PackedSequences.from_lengths(lengths.tolist()),
        )

    def by_length(self, token_budget: int) -> Iterator[Int64[np.ndarray, " chosen"]]:
        """Yield all rows, the longest first, in groups of at most `token_budget` tokens.

        A row that is longer than the budget is a group of its own. The longest come first, so
        that memory that suffices for the first group suffices for all.
        """
        order = np.argsort(-self.lengths, kind="stable")
        begin = 0
        while begin < len(order):
            sums = np.cumsum(self.lengths[order[begin : begin + token_budget]])
            count = max(1, int(np.searchsorted(sums, token_budget, side="right")))
            yield order[begin : begin + count]
            begin += count


@dataclass(frozen=True)
class LabelledRows:
    """A file of labelled rows, tokenized; label i is the class class_names[i]."""

    table: Table
    tokens: TokenRows
    labels: Int64[np.ndarray, " rows"]
    class_names: tuple[str, ...]
    max_length: int
    """Tokens that a row was cut to, if it was longer."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def class_counts(self) -> dict[str, int]:
        """How many rows each class has."""
        counts = np.bincount(self.labels, minlength=len(self.class_names))
        return dict(zip(self.class_names, counts.tolist(), strict=True))

    @property
    def full_rows(self) -> int:
        """Rows of `max_length` tokens: those that were cut are among them."""
        return int((self.tokens.lengths == self.max_length).sum())

    def __str__(self) -> str:
        lengths = self.tokens.lengths
        classes = ", ".join(f"{name} {count}" for name, count in self.class_counts.items())
        columns = ", ".join(name for name in asdict(self.table.columns).values() if name)
        unused = f" (not used: {', '.join(self.table.unused)})" if self.table.unused else ""
        full = f"; {self.full_rows:,} rows fill the {self.max_length} tokens or were cut"
        return (
            f"{self.table.path}: {len(self):,} rows ({classes}); columns {columns}{unused}; "
            f"{lengths.sum():,} tokens, {lengths.max()} in the longest row"
            + (full if self.full_rows else "")
        )

    def describe(self) -> dict[str, Any]:
        """Return the file, its columns, its size and its classes, as JSON."""
        lengths = self.tokens.lengths
        return {
            "file": str(self.table.path),
            "sha256": self.table.sha256(),
            "columns": asdict(self.table.columns),
            "unused_columns": list(self.table.unused),
            "rows": len(self),
            "classes": self.class_counts,
            "tokens": int(lengths.sum()),
            "longest": int(lengths.max()),
            "full_rows": self.full_rows,
        }

    def sha256(self) -> str:
        """Return a hash of all that training or testing sees of the rows."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        for part in (
            self.tokens.input_ids,
            self.tokens.token_type_ids,
            self.tokens.offsets,
            self.labels,
        ):
            digest.update(part.data)
        return digest.hexdigest()


def read_rows(
    path: Path,
    columns: Columns,
    tokenizer: Tokenizer,
    max_length: int,
    class_names: Sequence[str] | None = None,
    limit: int | None = None,
) -> LabelledRows:
    """Read and tokenize a file; the texts themselves are not kept.

    Args:
        path: see finetune/tables.py.
        columns: see there too.
        tokenizer: its report counts the odd things met in the texts.
        max_length: tokens of a row; the longer text of a pair is cut first.
        class_names: the classes. A label is one of the names, or, where no name is a number, the
            place of a name, from 0. None: the labels that are met, in order.
        limit: rows to read, from the first; None: all.

    Raises:
        ValueError: a row or a label that can't be; the message names the file, line and column.
            Fewer rows than `limit`.
    """
    table = Table.open(path, columns)
    codes: dict[str, int] = {}  # labels, numbered as they are met
    lines: list[int] = []  # where each was met first
    labels = array("q")

    def encodings() -> Iterator[Encoded]:
        rows = islice(table.rows(tokenizer.report), limit)
        while chunk := list(islice(rows, CHUNK)):
            for row in chunk:
                if row.label not in codes:
                    codes[row.label] = len(codes)
                    lines.append(row.line)
                labels.append(codes[row.label])
            yield from tokenizer.encode_batch(
                [row.text_a for row in chunk],
                [row.text_b or "" for row in chunk] if table.is_pair else None,
                max_length=max_length,
            )

    tokens = TokenRows.from_encodings(encodings())
    if limit is not None and len(tokens) < limit:
        raise ValueError(f"train_rows: expected at most {len(tokens)}, all of {path}, got {limit}")
    places = {
        label: f"{path}, line {line}, column {table.columns.label!r}"
        for label, line in zip(codes, lines, strict=True)
    }
    names = tuple(class_names) if class_names is not None else name_classes(places)
    classes = np.array([class_of(label, names, place) for label, place in places.items()])
    numbers = classes[np.frombuffer(labels, dtype=np.int64)]
    return LabelledRows(table, tokens, numbers, names, max_length)


def check_trainable(rows: LabelledRows) -> None:
    """Refuse a train file in which there is one class only, or a class without a row.

    Raises:
        ValueError: the message names the file and the class.
    """
    if len(rows.class_names) < 2:
        only = ", ".join(rows.class_names)
        raise ValueError(f"{rows.table.path}: expected two classes or more, got only {only!r}")
    absent = [name for name, count in rows.class_counts.items() if count == 0]
    if absent:
        raise ValueError(f"{rows.table.path}: no row has class {absent[0]!r}")


# --- micro-batches ---------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelledBatch:
    """A packed micro-batch, and the class of each of its sequences."""

    packed: PackedBatch
    labels: Int64[Tensor, " seqs"]

    def to(self, device: torch.device) -> "LabelledBatch":
        """Move both to a device."""
        return LabelledBatch(self.packed.to(device), self.labels.to(device))


class LabelledBatches:
    """Endless micro-batches: each epoch all rows once, in an order of its own.

    An epoch's last micro-batch has what is left, so that no row is passed over. Micro-batch i
    follows from the rows, the batch size, the seed and i alone.
    """

    def __init__(self, rows: LabelledRows, batch_size: int, seed: int) -> None:
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    @property
    def per_epoch(self) -> int:
        """Micro-batches in an epoch."""
        return -(-len(self.rows) // self.batch_size)

    @property
    def mean_length(self) -> float:
        """Tokens of a row, on average."""
        return float(self.rows.tokens.lengths.mean())

    @property
    def mean_tokens(self) -> float:
        """Tokens of a micro-batch, on average."""
        return self.mean_length * len(self.rows) / self.per_epoch

    def chosen(self, index: int) -> Int64[np.ndarray, " chosen"]:
        """Return the rows of micro-batch `index`."""
        epoch, place = divmod(index, self.per_epoch)
        if epoch != self._epoch:
            generator = np.random.default_rng((self.seed, epoch))
            self._epoch, self._order = epoch, generator.permutation(len(self.rows))
        return self._order[place * self.batch_size : (place + 1) * self.batch_size]

    def __getitem__(self, index: int) -> LabelledBatch:
        chosen = self.chosen(index)
        return LabelledBatch(
            self.rows.tokens.batch(chosen), torch.from_numpy(self.rows.labels[chosen])
        )

    def tokens(self, batch: LabelledBatch) -> int:
        """Return the tokens of a micro-batch."""
        return batch.packed.sequences.tokens
