"""Long texts in windows that a model can take, and one answer from all the windows of a text.

    [CLS] text, tokens 0 to 125  [SEP]
    [CLS] text, tokens 84 to 209 [SEP]      the two share 42 tokens

A window is learned with its text's label, and the windows' probabilities are averaged: the plain
way beside the networks over windows of Pappagari et al. 2019 (arXiv 1910.10781). A window of a
text of n weighs 1/n, so that a text counts the same however long it is. A text that fits is one
window, with nothing changed.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64

from finetune.batches import TokenRows
from finetune.data import LabelledBatch, LabelledRows

Pooling = Literal["mean", "max"]


@dataclass(frozen=True)
class WindowedRows(LabelledRows):
    """A file of labelled texts whose tokens are cut into windows; a row is a text still.

    `tokens`, `lengths` and `batch` go by windows.
    """

    edges: Int64[np.ndarray, " rows_plus_one"]
    """The windows of text i are edges[i] to edges[i + 1]."""

    @property
    def sizes(self) -> Int64[np.ndarray, " rows"]:
        """How many windows each text has."""
        return np.diff(self.edges)

    def batch(self, rows: Int64[np.ndarray, " chosen"]) -> LabelledBatch:
        """Pack the chosen windows, each with its text's label and its weight.

        The weights of a text's windows add up to 1; where no text is long, there are none.
        """
        text = np.searchsorted(self.edges, rows, side="right") - 1
        batch = LabelledBatch(self.tokens.batch(rows), torch.from_numpy(self.labels[text]))
        if len(self.tokens) == len(self):
            return batch
        return LabelledBatch(batch.packed, batch.labels, torch.from_numpy(1 / self.sizes[text]))

    @property
    def full_rows(self) -> int:
        """None is cut."""
        return 0

    @property
    def long_texts(self) -> int:
        """Texts of several windows."""
        return int((self.sizes > 1).sum())

    def token_bytes(self, row: int) -> bytes:
        """Return the token ids of all the windows of a text, to be compared."""
        begin, end = self.tokens.offsets[self.edges[row : row + 2]]
        return self.tokens.input_ids[begin:end].tobytes()

    def __str__(self) -> str:
        long = f"; {self.long_texts:,} texts don't fit into {self.max_length} tokens"
        return super().__str__() + f"{long}: {len(self.tokens):,} windows in all"

    def describe(self) -> dict[str, Any]:
        """Return the same as of other rows, and how many windows there are."""
        windows = {"windows": len(self.tokens), "long_texts": self.long_texts}
        return {**super().describe(), "max_length": self.max_length, **windows}

    def sha256(self) -> str:
        """Return a hash of all that training or testing sees."""
        digest = hashlib.sha256(super().sha256().encode())
        digest.update(self.edges.data)
        return digest.hexdigest()


def windowed(rows: LabelledRows, window: int, stride: int) -> WindowedRows:
    """Cut rows that were read whole into windows; see `cut_windows`."""
    tokens, edges = cut_windows(rows.tokens, window, stride)
    return WindowedRows(rows.table, tokens, rows.labels, rows.class_names, window, edges)


def cut_windows(
    rows: TokenRows, window: int, stride: int
) -> tuple[TokenRows, Int64[np.ndarray, " rows_plus_one"]]:
    """Cut texts into windows, each with the frame of its text.

    Args:
        rows: single texts, [CLS] … [SEP].
        window: tokens of a window, with the frame; what fits stays as it is.
        stride: tokens that consecutive windows share, less than what a window holds of a text.

    Returns:
        The windows, and where those of each text begin: text i has edges[i] to edges[i + 1].
    """
    places: list[np.ndarray] = [np.empty(0, np.int64)]
    edges = [0]
    for start, end in pairwise(rows.offsets.tolist()):
        found = list(_windows(start, end, window, stride))
        places += found
        edges.append(edges[-1] + len(found))
    offsets = np.cumsum([len(part) for part in places], dtype=np.int64)
    at = np.concatenate(places)
    cut = TokenRows(rows.input_ids[at], rows.token_type_ids[at], offsets)
    return cut, np.array(edges, np.int64)


def _windows(
    start: int, end: int, window: int, stride: int
) -> Iterator[Int64[np.ndarray, " tokens"]]:
    """Yield where the tokens of each window of a text are."""
    if end - start <= window:
        yield np.arange(start, end)
        return
    for first, last in parts(end - start - 2, window - 2, stride):
        yield np.r_[start, start + 1 + first : start + 1 + last, end - 1]


def parts(tokens: int, room: int, stride: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of a text, one at least: where each starts, and ends.

    Args:
        tokens: of the text, without a frame.
        room: tokens of a part at most.
        stride: tokens that consecutive parts share, less than `room`.
    """
    first = 0
    while True:
        yield first, min(first + room, tokens)
        if first + room >= tokens:
            return
        first += room - stride


def pool(
    logits: Float[np.ndarray, "windows labels"],
    edges: Int64[np.ndarray, " rows_plus_one"],
    pooling: Pooling,
) -> Float[np.ndarray, "rows labels"]:
    """Return logits of each text, from those of its windows; of one window, its own.

    They are logarithms: of the mean of the windows' probabilities; or of each class's greatest,
    which a softmax brings to a sum of 1.

    Returns:
        logits' dtype, computed in float64; not finite where a window's are not.
    """
    pooled = np.empty((len(edges) - 1, logits.shape[1]), logits.dtype)
    for row, (first, end) in enumerate(pairwise(edges)):
        if end - first == 1:
            pooled[row] = logits[first]
            continue
        found = torch.from_numpy(logits[first:end].astype(np.float64)).log_softmax(-1)
        if pooling == "mean":
            answer = found.logsumexp(0) - np.log(end - first)
        else:
            answer = found.amax(0)
        pooled[row] = answer.numpy()
    return pooled
