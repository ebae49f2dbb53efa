"""A file of labelled texts as rows of token ids, with their labels."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bert.packing import PackedBatch
from bert.tokenization import Tokenizer
from finetune.batches import Encoded, TokenRows
from finetune.config import Columns
from finetune.labels import class_of, name_classes, read_class
from finetune.tables import USUAL_NAMES, Row, Table

# Rows tokenized at once: enough for the library's threads, and next to no memory.
CHUNK = 1024


@dataclass(frozen=True)
class LabelledBatch:
    """A packed micro-batch, and the label of each of its sequences, as `LabelledRows` has them."""

    packed: PackedBatch
    labels: Tensor
    weights: Float[Tensor, " seqs"] | None = None
    """How much each sequence counts; None: all the same."""

    def to(self, device: torch.device) -> "LabelledBatch":
        """Move it to a device."""
        weights = None if self.weights is None else self.weights.to(device)
        return LabelledBatch(self.packed.to(device), self.labels.to(device), weights)


@dataclass(frozen=True)
class LabelledRows:
    """A file of labelled rows, tokenized.

    The labels of the rows are classes, int64; or sets of classes, float32 [rows, classes] of 0
    and 1; or, without classes, numbers, float32.
    """

    table: Table
    tokens: TokenRows
    labels: np.ndarray
    class_names: tuple[str, ...]
    max_length: int | None
    """Tokens that a row was cut to, if it was longer; None: rows are whole."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> Int64[np.ndarray, " rows"]:
        """The tokens of each row."""
        return self.tokens.lengths

    def batch(self, rows: Int64[np.ndarray, " chosen"]) -> LabelledBatch:
        """Pack the chosen rows, in the given order."""
        return LabelledBatch(self.tokens.batch(rows), torch.from_numpy(self.labels[rows]))

    def token_bytes(self, row: int) -> bytes:
        """Return the token ids of a row, to be compared."""
        begin, end = self.tokens.offsets[row : row + 2]
        return self.tokens.input_ids[begin:end].tobytes()

    @property
    def class_counts(self) -> dict[str, int]:
        """How many rows each class has."""
        if self.labels.ndim == 2:
            counts = self.labels.sum(0, dtype=np.int64)
        else:
            counts = np.bincount(self.labels, minlength=len(self.class_names))
        return dict(zip(self.class_names, counts.tolist(), strict=True))

    @property
    def label_facts(self) -> Mapping[str, float]:
        """The rows of each class; or of numbers the least, the mean and the greatest."""
        if self.class_names:
            return self.class_counts
        found = {"least": self.labels.min(), "mean": self.labels.mean(dtype=np.float64)}
        return {name: float(n) for name, n in (found | {"greatest": self.labels.max()}).items()}

    @property
    def full_rows(self) -> int:
        """Rows of `max_length` tokens: those that were cut are among them."""
        return int((self.tokens.lengths == self.max_length).sum())

    def __str__(self) -> str:
        lengths = self.tokens.lengths
        labels = ", ".join(f"{name} {number:.6g}" for name, number in self.label_facts.items())
        columns = ", ".join(name for name in asdict(self.table.columns).values() if name)
        unused = f" (not used: {', '.join(self.table.unused)})" if self.table.unused else ""
        full = f"; {self.full_rows:,} rows fill the {self.max_length} tokens or were cut"
        return (
            f"{self.table.path}: {len(self):,} rows ({labels}); columns {columns}{unused}; "
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
            "classes" if self.class_names else "labels": self.label_facts,
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
    max_length: int | None,
    class_names: Sequence[str] | None = None,
    limit: int | None = None,
    change: Callable[[Row], Row] | None = None,
) -> LabelledRows:
    """Read and tokenize a file of rows that have one class each.

    Args:
        path: see `read_texts`, for columns, tokenizer, max_length and limit too.
        columns: see there.
        tokenizer: see there.
        max_length: see there.
        class_names: the classes. A label is one of the names, or, where no name is a number, the
            place of a name, from 0. None: the labels that are met, in order.
        limit: see there.
        change: see there.

    Raises:
        ValueError: as `read_texts` does; or a label that can't be.
    """
    codes: dict[str, int] = {}  # labels, numbered as they are met
    places: dict[str, str] = {}  # where each was met first

    def read_code(value: Any, place: str) -> int:
        label = read_class(value, place)
        places.setdefault(label, place)
        return codes.setdefault(label, len(codes))

    table, tokens, labels = read_texts(
        path, columns, tokenizer, max_length, read_code, limit, change
    )
    names = tuple(class_names) if class_names is not None else name_classes(places)
    classes = np.array([class_of(label, names, place) for label, place in places.items()])
    numbers = classes[np.array(labels, dtype=np.int64)]
    return LabelledRows(table, tokens, numbers, names, max_length)


def read_texts(
    path: Path,
    columns: Columns,
    tokenizer: Tokenizer,
    max_length: int | None,
    read_label: Callable[[Any, str], Any],
    limit: int | None = None,
    change: Callable[[Row], Row] | None = None,
    label_names: Sequence[str] = USUAL_NAMES["label"],
) -> tuple[Table, TokenRows, list[Any]]:
    """Read a file and tokenize its texts, which are not kept.

    Args:
        path: see finetune/tables.py.
        columns: see there too.
        tokenizer: its report counts the odd things met in the texts.
        max_length: tokens of a row; the longer text of a pair is cut first. None: rows are whole.
        read_label: see `Table.rows`.
        limit: rows to read, from the first; None: all.
        change: what each row goes through before it is tokenized; None: nothing.
        label_names: the usual names of the label's column.

    Returns:
        The file, its tokens, and its labels as `read_label` made them.

    Raises:
        ValueError: a row or a label that can't be; the message names the file, line and column.
            Fewer rows than `limit`.
    """
    table = Table.open(path, columns, label_names)
    labels: list[Any] = []

    def encodings() -> Iterator[Encoded]:
        rows = islice(table.rows(tokenizer.report, read_label), limit)
        rows = rows if change is None else map(change, rows)
        while chunk := list(islice(rows, CHUNK)):
            labels.extend(row.label for row in chunk)
            yield from tokenizer.encode_batch(
                [row.text_a for row in chunk],
                [row.text_b or "" for row in chunk] if table.is_pair else None,
                max_length=max_length,
            )

    tokens = TokenRows.from_encodings(encodings())
    if limit is not None and len(tokens) < limit:
        raise ValueError(f"train_rows: expected at most {len(tokens)}, all of {path}, got {limit}")
    return table, tokens, labels


def check_trainable(rows: LabelledRows) -> None:
    """Refuse a train file in which there is one class only, or a class without a row.

    Raises:
        ValueError: the message names the file and the class.
    """
    if len(rows.class_names) < 2:
        got = f"only {rows.class_names[0]!r}" if rows.class_names else "none"
        raise ValueError(f"{rows.table.path}: expected two classes or more, got {got}")
    absent = [name for name, count in rows.class_counts.items() if count == 0]
    if absent:
        raise ValueError(f"{rows.table.path}: no row has class {absent[0]!r}")
