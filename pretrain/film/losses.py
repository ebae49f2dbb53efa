"""Held-out text with each token masked once, and the loss on it by how frequent a token is.

Sequences are cut from the documents without a gap. Each comes in seven copies, and each of its
tokens shows [MASK] in one of them, so that about 14 % are masked at a time, as in training, and
nothing depends on a lucky draw of masks: snapshots, runs and seeds are judged on the same tokens.
The other pieces of a masked token's word can be seen.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from bert.packing import PackedBatch
from bert.pretraining import BertForPreTraining
from bert.tokenization import Tokenizer
from pretrain.batches import PretrainingBatch
from pretrain.documents import Rows, read_paragraphs
from pretrain.evaluation import unigram_log_probabilities

COPIES = 7
TOKENS_PER_BATCH = 4096
LIMITS = (0.01, 0.001, 0.0001)
"""Shares of the training text's tokens that part one band from the next."""
NAMES = ("1 % and more", "0.1 to 1 %", "0.01 to 0.1 %", "under 0.01 %")


@dataclass(frozen=True)
class Band:
    """The held-out tokens that are about as frequent in the training text."""

    name: str
    """What share of the training text one token of the band is."""
    tokens: int
    """How many of the held-out text."""
    unigram_loss: float
    """Nats that a guess by frequency alone costs on them."""


def read_windows(
    path: Path, tokenizer: Tokenizer, max_length: int, tokens: int
) -> list[list[int]]:
    """Cut a text's documents into framed sequences, up to so many tokens without the frames.

    Raises:
        ValueError: the file can't be read, or has no token of the vocabulary but [UNK].
    """
    room, left, windows = max_length - 2, tokens, []
    for document in _documents(path, tokenizer):
        document = document[:left]
        for begin in range(0, len(document), room):
            part = document[begin : begin + room]
            windows.append([tokenizer.cls_id, *part, tokenizer.sep_id])
        left -= len(document)
        if not left:
            break
    special = set(tokenizer.special_ids)
    if all(special.issuperset(window) for window in windows):
        raise ValueError(f"{path}: expected text with a token of the vocabulary, got none")
    return windows


def _documents(path: Path, tokenizer: Tokenizer) -> Iterator[list[int]]:
    ids: list[int] = []
    for paragraph in read_paragraphs(path, tokenizer.report, Rows()):
        if paragraph is not None:
            ids += tokenizer.encode_plain([paragraph])[0]
        elif ids:
            yield ids
            ids = []


def mask_each_once(
    windows: Sequence[Sequence[int]], tokenizer: Tokenizer, seed: int = 0
) -> list[PretrainingBatch]:
    """Make the batches of all copies; special tokens, [UNK] among them, are never masked.

    Args:
        windows: of `read_windows`.
        tokenizer: theirs.
        seed: which tokens of a sequence are masked together.
    """
    special, rng = set(tokenizer.special_ids), np.random.default_rng(seed)
    copies = []
    for window in windows:
        places = [place for place, id in enumerate(window) if id not in special]
        for masked in np.array_split(rng.permutation(places), COPIES):
            if len(masked):
                copies.append((window, sorted(masked.tolist())))
    rest, batches = iter(copies), []
    most = max(TOKENS_PER_BATCH // max(map(len, windows)), 1)
    while some := list(islice(rest, most)):
        batches.append(_batch(some, tokenizer.mask_id))
    return batches


def _batch(copies: Sequence[tuple[Sequence[int], list[int]]], mask_id: int) -> PretrainingBatch:
    rows, positions, labels, offset = [], [], [], 0
    for window, masked in copies:
        row = list(window)
        for place in masked:
            row[place] = mask_id
        rows.append(row)
        positions += [offset + place for place in masked]
        labels += [window[place] for place in masked]
        offset += len(row)
    return PretrainingBatch(
        PackedBatch.from_lists(rows), torch.tensor(positions), torch.tensor(labels), None
    )


def labels_of(batches: Sequence[PretrainingBatch]) -> Int64[Tensor, " masked"]:
    """List what is to be predicted, in the order of `token_losses`."""
    return torch.cat([batch.masked_labels for batch in batches])


@torch.inference_mode()
def token_losses(
    model: BertForPreTraining, batches: Sequence[PretrainingBatch]
) -> Float64[Tensor, " masked"]:
    """Measure what each masked token costs, in nats, by a model in evaluation mode."""
    assert not model.training
    word, losses = model.bert.embeddings.word.weight, []
    for batch in batches:
        batch = batch.to(word.device)
        hidden = model.bert.encode(batch.packed).last_hidden_state
        logits = model.mlm_head(hidden.index_select(0, batch.masked_positions), word)
        loss = torch.nn.functional.cross_entropy(
            logits.float(), batch.masked_labels, reduction="none"
        )
        losses.append(loss.double().cpu())
    return torch.cat(losses)


class Bands:
    """The held-out tokens in bands of frequency, the commonest first; empty bands are left out.

    Args:
        counts: how often each token of the vocabulary occurs in the training text.
        labels: the tokens.
    """

    def __init__(self, counts: Int64[Tensor, " vocab"], labels: Int64[Tensor, " masked"]) -> None:
        shares = counts.double() / counts.sum().clamp(min=1)
        limits = torch.tensor(LIMITS, dtype=torch.float64)
        band_of = (shares[labels, None] < limits).sum(1)
        self._members = [members for n in range(len(NAMES)) if (members := band_of == n).any()]
        kept = [n for n in range(len(NAMES)) if (band_of == n).any()]
        unigram = -unigram_log_probabilities(counts)[labels]
        self.bands = [
            Band(NAMES[n], int(members.sum()), float(unigram[members].mean()))
            for n, members in zip(kept, self._members, strict=True)
        ]

    def means(self, losses: Float64[Tensor, " masked"]) -> list[float]:
        """Average the losses of each band's tokens."""
        return [float(losses[members].mean()) for members in self._members]
