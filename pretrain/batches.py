"""Micro-batches for pretraining: the same index gives the same one, in any process.

Everything about micro-batch `index` follows from (seed, index): its epoch, its place in the epoch,
its pairs, its masks. So a run resumes at any step, and a data loader with any number of workers
gives the same batches.

Pairs are packed, without padding, up to a budget of tokens: the epoch's pairs in their random
order, each batch taking pairs while they fit. Every epoch has as many batches as epoch 0 needs for
all of its pairs; so an index tells its epoch without planning the ones before. The few pairs by
which another epoch differs (the count is random) are left out, or its first pairs fill its end.

Where there is no task for pairs, a sequence of one segment is what is called a pair here.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import Dataset

from bert.packing import PackedBatch
from bert.tokenization import Tokenizer
from kernels import PackedSequences
from pretrain.corpus import Corpus
from pretrain.masking import (
    MaskedTokens,
    MaskingVocabulary,
    MaskRecipe,
    MaskSchedule,
    mask_tokens,
)
from pretrain.pairs import PairPlan, PairTask, plan_pairs

_GOOGLES_MASKS = MaskRecipe()
_MASK_STREAM = 2  # beside the streams of pretrain.pairs
_HELD_OUT_SEED = 0


@dataclass(frozen=True, eq=False)
class PretrainingBatch:
    """Packed pairs with masks, and what is to be predicted."""

    packed: PackedBatch
    masked_positions: Int64[Tensor, " masked"]
    """Ascending rows of the packed batch; none where nothing is masked."""
    masked_labels: Int64[Tensor, " masked"]
    next_sentence_label: Int64[Tensor, " seqs"] | None
    """0 is next, 1 is random; for sentence order 1 is swapped. None where there are no pairs."""

    def to(self, device: torch.device | str) -> "PretrainingBatch":
        """Move the batch to a device."""
        label = self.next_sentence_label
        return PretrainingBatch(
            self.packed.to(device),
            self.masked_positions.to(device),
            self.masked_labels.to(device),
            None if label is None else label.to(device),
        )


@dataclass(frozen=True, eq=False)
class _Epoch:
    """One epoch's plan, and the pairs of each of its batches, counted on past the last pair."""

    number: int
    plan: PairPlan
    starts: list[int]
    ends: list[int]


class PretrainingBatches(Dataset[PretrainingBatch]):
    """An endless list of micro-batches; `batches[i]` for any i from 0.

    A plan is kept for one epoch at a time, in each process. Pickles small.

    Args:
        corpus: the documents to train on.
        tokenizer: the one that the corpus was prepared with.
        max_length: tokens of a pair, with [CLS] and both [SEP].
        tokens_per_batch: the most tokens of a micro-batch.
        seed: not negative; pairs, order and masks follow from it.
        masks: how much is masked, in each batch or over the run; None: nothing is.
        short_probability, task: see `plan_pairs`.

    Raises:
        ValueError: another tokenizer; a batch that can't hold a pair; what `plan_pairs` refuses.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        tokens_per_batch: int,
        seed: int,
        masks: MaskRecipe | MaskSchedule | None = _GOOGLES_MASKS,
        short_probability: float = 0.1,
        task: PairTask | None = "nsp",
    ) -> None:
        if tokens_per_batch < max_length:
            raise ValueError(
                f"tokens_per_batch: expected at least max_length, {max_length}, "
                f"got {tokens_per_batch}"
            )
        corpus.check_tokenizer(tokenizer)
        self.corpus = corpus
        self.vocabulary = MaskingVocabulary.of(tokenizer)
        self.max_length = max_length
        self.tokens_per_batch = tokens_per_batch
        self.seed = seed
        self.masks = masks
        self.short_probability = short_probability
        self.task: PairTask | None = task
        plan = self.plan(0)
        starts, ends = _pack(plan, tokens_per_batch, batches=None)
        self.batches_per_epoch = len(starts)
        self._kept: _Epoch | None = _Epoch(0, plan, starts, ends)

    def plan(self, epoch: int) -> PairPlan:
        """Plan an epoch's pairs, in their order."""
        return plan_pairs(
            self.corpus.sentence_offsets,
            self.corpus.document_offsets,
            max_length=self.max_length,
            seed=self.seed,
            epoch=epoch,
            short_probability=self.short_probability,
            task=self.task,
        )

    def __getitem__(self, index: int) -> PretrainingBatch:
        """Make micro-batch `index`, on the CPU."""
        if index < 0:
            raise IndexError(f"index: expected 0 or more, got {index}")
        epoch, position = divmod(index, self.batches_per_epoch)
        kept = self._kept
        if kept is None or kept.number != epoch:
            plan = self.plan(epoch)
            packing = _pack(plan, self.tokens_per_batch, self.batches_per_epoch)
            self._kept = kept = _Epoch(epoch, plan, *packing)
        pairs = np.arange(kept.starts[position], kept.ends[position]) % len(kept.plan)
        rng = np.random.default_rng((self.seed, epoch, _MASK_STREAM, position))
        masks = self.masks.at(index) if isinstance(self.masks, MaskSchedule) else self.masks
        return self._make(kept.plan.take(pairs), masks, rng)

    @staticmethod
    def tokens(batch: PretrainingBatch) -> int:
        """Count the tokens of a batch; it holds no others."""
        return batch.packed.sequences.tokens

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def _make(
        self, pairs: PairPlan, masks: MaskRecipe | None, rng: np.random.Generator
    ) -> PretrainingBatch:
        """Lay [CLS] A [SEP] B [SEP], or [CLS] A [SEP], one after another, and mask."""
        lengths = pairs.lengths.astype(np.int64)
        starts = np.cumsum(lengths) - lengths
        position_ids = np.arange(lengths.sum()) - np.repeat(starts, lengths)
        b_at = 2 + pairs.a_length  # where B starts in its pair
        input_ids = np.full(len(position_ids), self.vocabulary.sep_id, np.int64)
        input_ids[starts] = self.vocabulary.cls_id
        for segment, length, at in (
            (pairs.a_start, pairs.a_length, starts + 1),
            (pairs.b_start, pairs.b_length, starts + b_at),
        ):
            within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
            source = np.repeat(segment, length) + within
            input_ids[np.repeat(at, length) + within] = self.corpus.tokens[source]
        if masks is None:
            nothing = np.zeros(0, np.int64)
            masked = MaskedTokens(input_ids, nothing, nothing)
        else:
            masked = mask_tokens(input_ids, lengths, self.vocabulary, masks, rng)
        label = torch.from_numpy(pairs.label.astype(np.int64))
        packed = PackedBatch(
            torch.from_numpy(masked.input_ids),
            torch.from_numpy((position_ids >= np.repeat(b_at, lengths)).astype(np.int64)),
            torch.from_numpy(position_ids),
            PackedSequences.from_lengths(lengths.tolist()),
        )
        return PretrainingBatch(
            packed,
            torch.from_numpy(masked.positions),
            torch.from_numpy(masked.labels),
            None if self.task is None else label,
        )


def held_out_batches(
    corpus: Corpus,
    tokenizer: Tokenizer,
    *,
    max_length: int,
    tokens_per_batch: int,
    tokens: int,
    is_masked: bool = True,
    task: PairTask | None = "nsp",
) -> list[PretrainingBatch]:
    """Make the batches that a model is judged on: always the same.

    Args:
        corpus: documents that were not trained on.
        tokenizer: see `PretrainingBatches`, for the next two as well.
        max_length: tokens.
        tokens_per_batch: tokens.
        tokens: how many to judge on, at most; one batch at least, and no pair twice.
        is_masked: whether 15 % are masked, or nothing.
        task: see `plan_pairs`.
    """
    batches = PretrainingBatches(
        corpus,
        tokenizer,
        max_length=max_length,
        tokens_per_batch=tokens_per_batch,
        seed=_HELD_OUT_SEED,
        masks=_GOOGLES_MASKS if is_masked else None,
        task=task,
    )
    count = min(max(tokens // tokens_per_batch, 1), max(batches.batches_per_epoch - 1, 1))
    return [batches[index] for index in range(count)]


def _pack(plan: PairPlan, budget: int, batches: int | None) -> tuple[list[int], list[int]]:
    """Cut the plan's pairs, repeated endlessly, into batches that the budget holds.

    Args:
        plan: an epoch's pairs.
        budget: tokens.
        batches: how many; None for as many as hold every pair once.

    Returns:
        The first pair of each batch and the one after its last, counted on past the plan's end.
    """
    pairs = len(plan)
    before = np.concatenate([[0], np.cumsum(np.tile(plan.lengths, 2), dtype=np.int64)])
    # Where a batch ends that begins with each pair; no batch holds a pair twice.
    end_of = np.searchsorted(before, before[:pairs] + budget, side="right") - 1
    end_of = np.minimum(end_of, np.arange(pairs) + pairs).tolist()
    starts, ends = [], [0]
    while ends[-1] < pairs if batches is None else len(starts) < batches:
        start = ends[-1] % pairs
        starts.append(start)
        ends.append(end_of[start])
    return starts, ends[1:]
