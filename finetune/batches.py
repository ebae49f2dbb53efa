"""Rows of token ids, and packed micro-batches of them in an order that a seed gives."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int32, Int64, UInt8

from bert.packing import PackedBatch
from kernels import PackedSequences

EVALUATION_TOKENS = 2048
"""Tokens of a batch that is only looked at. On a CPU more are no faster, and take more memory."""


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
        lengths, place = self.lengths[rows], self.places(rows)
        position = place - np.repeat(self.offsets[:-1][rows], lengths)
        return PackedBatch(
            torch.from_numpy(self.input_ids[place].astype(np.int64)),
            torch.from_numpy(self.token_type_ids[place].astype(np.int64)),
            torch.from_numpy(position),
            PackedSequences.from_lengths(lengths.tolist()),
        )

    def places(
        self, rows: Sequence[int] | Int64[np.ndarray, " chosen"]
    ) -> Int64[np.ndarray, " tokens"]:
        """Return where the tokens of the chosen rows are, in the order that `batch` has them."""
        starts, lengths = self.offsets[:-1][rows], self.lengths[rows]
        begins = np.cumsum(lengths) - lengths
        return np.arange(lengths.sum()) + np.repeat(starts - begins, lengths)

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


@runtime_checkable
class PackedRows(Protocol):
    """Rows that can be packed into micro-batches; they are as many as there are `lengths`."""

    @property
    def lengths(self) -> Int64[np.ndarray, " rows"]:
        """The tokens of each row."""
        ...

    def batch(self, rows: Int64[np.ndarray, " chosen"], /) -> Any:
        """Pack the chosen rows, in the given order, as a MicroBatch with a `packed`."""
        ...


class ShuffledBatches:
    """Endless micro-batches: each epoch all rows once, in an order of its own.

    An epoch's last micro-batch has what is left, so that no row is passed over. Micro-batch i
    follows from the rows, the batch size, the seed and i alone.

    Args:
        rows: what is packed.
        batch_size: rows of a micro-batch.
        seed: of the order.
        balanced: the class of each row, to have as many rows of each class in an epoch as of any
            other, see `balanced_order`; None: each row once.
    """

    def __init__(
        self,
        rows: PackedRows,
        batch_size: int,
        seed: int,
        balanced: Int64[np.ndarray, " rows"] | None = None,
    ) -> None:
        self.rows, self.batch_size, self.seed, self.balanced = rows, batch_size, seed, balanced
        self._count = len(rows.lengths)
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    @property
    def per_epoch(self) -> int:
        """Micro-batches in an epoch."""
        return -(-self._count // self.batch_size)

    @property
    def mean_length(self) -> float:
        """Tokens of a row, on average."""
        return float(self.rows.lengths.mean())

    @property
    def mean_tokens(self) -> float:
        """Tokens of a micro-batch, on average."""
        return self.mean_length * self._count / self.per_epoch

    def chosen(self, index: int) -> Int64[np.ndarray, " chosen"]:
        """Return the rows of micro-batch `index`."""
        epoch, place = divmod(index, self.per_epoch)
        if epoch != self._epoch:
            generator = np.random.default_rng((self.seed, epoch))
            self._epoch = epoch
            if self.balanced is None:
                self._order = generator.permutation(self._count)
            else:
                self._order = balanced_order(self.balanced, generator)
        return self._order[place * self.batch_size : (place + 1) * self.batch_size]

    def __getitem__(self, index: int) -> Any:
        return self.rows.batch(self.chosen(index))

    def tokens(self, batch: Any) -> int:
        """Return the tokens of a micro-batch."""
        return batch.packed.sequences.tokens


def balanced_order(
    classes: Int64[np.ndarray, " rows"], generator: np.random.Generator
) -> Int64[np.ndarray, " rows"]:
    """Draw as many rows as there are, of each class the same number or one more, in any order.

    A row comes once more only where all others of its class have come as often: rare classes
    have their rows several times, of frequent ones some rows wait for another epoch.
    """
    members = [np.flatnonzero(classes == number) for number in np.unique(classes)]
    sizes = np.full(len(members), len(classes) // len(members))
    sizes[generator.permutation(len(members))[: len(classes) % len(members)]] += 1
    drawn = [
        np.concatenate([generator.permutation(own) for _ in range(-(-size // len(own)))])[:size]
        for own, size in zip(members, sizes, strict=True)
    ]
    return generator.permutation(np.concatenate(drawn))
