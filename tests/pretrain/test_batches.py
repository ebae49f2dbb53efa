"""Micro-batches: what they hold, and that an index alone decides it, in any process."""

import pickle
from collections import Counter
from dataclasses import fields
from time import process_time

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from bert.tokenization import Tokenizer
from pretrain.batches import PretrainingBatch, PretrainingBatches, held_out_batches
from pretrain.masking import MaskRecipe
from pretrain.preparation import prepare
from tests.pretrain.texts import TOKENIZER, make_documents, write_text

MAX_LENGTH, BUDGET = 40, 300


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("batches")
    text = write_text(directory / "text.txt", make_documents(60, seed=1))
    return prepare([text], directory / "corpus", TOKENIZER, progress=False)


def make_batches(corpus, **options) -> PretrainingBatches:
    defaults = {"max_length": MAX_LENGTH, "tokens_per_batch": BUDGET, "seed": 3}
    return PretrainingBatches(corpus, TOKENIZER, **(defaults | options))


def tensors(batch: PretrainingBatch) -> list[torch.Tensor]:
    packed = batch.packed
    return [
        packed.input_ids,
        packed.token_type_ids,
        packed.position_ids,
        packed.sequences.cu_seqlens,
        batch.masked_positions,
        batch.masked_labels,
        batch.next_sentence_label,
    ]


def is_equal(first: PretrainingBatch, second: PretrainingBatch) -> bool:
    return first.packed.sequences.lengths == second.packed.sequences.lengths and all(
        a.dtype == b.dtype and torch.equal(a, b)
        for a, b in zip(tensors(first), tensors(second), strict=True)
    )


def pairs_in(batch: PretrainingBatch) -> list[tuple[tuple[int, ...], tuple[int, ...], int]]:
    """Take a batch apart again: A, B and label of each pair, without masks."""
    ids = batch.packed.input_ids.clone()
    ids[batch.masked_positions] = batch.masked_labels
    pairs = []
    for row, types, places, label in zip(
        ids.split(batch.packed.sequences.lengths),
        batch.packed.token_type_ids.split(batch.packed.sequences.lengths),
        batch.packed.position_ids.split(batch.packed.sequences.lengths),
        batch.next_sentence_label.tolist(),
        strict=True,
    ):
        row = row.tolist()
        first, last = row.index(TOKENIZER.sep_id), len(row) - 1
        assert row[0] == TOKENIZER.cls_id and row[last] == TOKENIZER.sep_id
        assert [i for i in row[1:last] if i in (2, 3)] == [TOKENIZER.sep_id]
        assert types.tolist() == [0] * (first + 1) + [1] * (last - first)
        assert places.tolist() == list(range(len(row)))
        pairs.append((tuple(row[1:first]), tuple(row[first + 1 : last]), label))
    return pairs


def planned_pairs(batches: PretrainingBatches, epoch: int):
    plan = batches.plan(epoch)
    tokens = batches.corpus.tokens.tolist()
    columns = plan.a_start, plan.a_length, plan.b_start, plan.b_length, plan.label
    return [
        (tuple(tokens[a : a + n]), tuple(tokens[b : b + m]), int(label))
        for a, n, b, m, label in zip(*(column.tolist() for column in columns), strict=True)
    ]


def test_the_batches_of_an_epoch_hold_its_pairs_in_order(corpus):
    batches = make_batches(corpus)
    count = batches.batches_per_epoch
    assert count > 10
    for epoch in (0, 1, 2):
        expected = planned_pairs(batches, epoch)
        found = []
        for index in range(epoch * count, (epoch + 1) * count):
            batch = batches[index]
            assert batches.tokens(batch) == len(batch.packed.input_ids) <= BUDGET
            found += pairs_in(batch)
        # Epoch 0 holds each pair, and then its first ones; another one may lack the last ones.
        assert found == (expected + expected)[: len(found)]
        assert len(found) >= len(expected) if epoch == 0 else len(found) > 0.8 * len(expected)
        assert len(found) < len(expected) * 1.2


def test_batches_are_full(corpus):
    batches = make_batches(corpus)
    sizes = [batches.tokens(batches[i]) for i in range(2 * batches.batches_per_epoch)]
    assert min(sizes) > BUDGET - MAX_LENGTH


def test_labels_and_masks_are_the_recipe_s(corpus):
    recipe = MaskRecipe(rate=0.2, max_predictions=5)
    batches = make_batches(corpus, masks=recipe)
    for index in range(5):
        batch = batches[index]
        lengths = np.array(batch.packed.sequences.lengths)
        owner = np.searchsorted(lengths.cumsum(), batch.masked_positions.numpy(), side="right")
        expected = np.minimum(5, np.maximum(1, np.rint(lengths * 0.2)))
        assert np.bincount(owner, minlength=len(lengths)).tolist() == expected.tolist()
        assert len(batch.next_sentence_label) == len(lengths)
    labels = torch.cat([batches[i].next_sentence_label for i in range(batches.batches_per_epoch)])
    majority = max(labels.double().mean().item(), 1 - labels.double().mean().item())
    assert majority == pytest.approx(batches.plan(0).majority_rate, abs=0.03)


def test_masks_change_with_the_epoch_the_batch_and_the_seed(tmp_path):
    # All pairs have one length here: the same random numbers would choose the same tokens,
    # counted without [CLS] and [SEP].
    text = write_text(tmp_path / "text.txt", [["The cat ran. " * 400], ["A dog sat. " * 400]])
    corpus = prepare([text], tmp_path / "corpus", TOKENIZER, progress=False)
    places = []
    for seed in (0, 1):
        batches = make_batches(corpus, seed=seed, short_probability=0.0)
        for index in range(3 * batches.batches_per_epoch):
            batch = batches[index]
            ids = batch.packed.input_ids
            text = ((ids != TOKENIZER.cls_id) & (ids != TOKENIZER.sep_id)).nonzero().squeeze(1)
            if set(batch.packed.sequences.lengths) == {MAX_LENGTH}:
                places.append(tuple(torch.searchsorted(text, batch.masked_positions).tolist()))
    assert len(places) > 50 and len(set(map(len, places))) == 1
    assert len(set(places)) == len(places)


def test_every_option_counts(corpus):
    first = make_batches(corpus)[0]
    for options in (
        {"seed": 4},
        {"masks": MaskRecipe(whole_words=True)},
        {"masks": MaskRecipe(rate=0.3)},
        {"short_probability": 1.0},
        {"max_length": 30},
        {"tokens_per_batch": 200},
    ):
        assert not is_equal(make_batches(corpus, **options)[0], first), options


def test_an_index_alone_decides(corpus):
    expected = [make_batches(corpus)[index] for index in range(40)]
    batches = make_batches(corpus)
    np.random.seed(1)
    torch.manual_seed(1)
    for index in np.random.default_rng(0).permutation(40).tolist():
        assert is_equal(batches[index], expected[index])
    copy = pickle.loads(pickle.dumps(batches))
    far = 7 * batches.batches_per_epoch + 3
    assert is_equal(copy[far], make_batches(corpus)[far])
    assert len(pickle.dumps(batches)) < 3_000


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_any_number_of_workers_gives_the_same_batches(corpus):
    batches = make_batches(corpus)
    count = batches.batches_per_epoch
    indices = range(count - 6, count + 7)  # over the end of an epoch, as a resumed run might
    expected = [batches[index] for index in indices]
    for workers in (0, 2, 4):
        loader = DataLoader(
            make_batches(corpus), batch_size=None, sampler=indices, num_workers=workers
        )
        found = list(loader)
        assert len(found) == len(expected)
        assert all(map(is_equal, found, expected)), workers


def test_a_corpus_smaller_than_a_batch_is_one_batch(corpus):
    batches = make_batches(corpus.select(0, 2), tokens_per_batch=100_000)
    assert batches.batches_per_epoch == 1
    for index in range(3):
        found = Counter(pairs_in(batches[index]))
        assert found == Counter(planned_pairs(batches, index))


def test_a_budget_of_one_pair(corpus):
    batches = make_batches(corpus.select(0, 4), tokens_per_batch=MAX_LENGTH)
    for index in range(4 * batches.batches_per_epoch):
        assert 1 <= len(pairs_in(batches[index])) <= 6
        assert batches.tokens(batches[index]) <= MAX_LENGTH


def test_held_out_batches_are_fixed_and_disjoint(corpus):
    def make(tokens: int) -> list[PretrainingBatch]:
        return held_out_batches(
            corpus, TOKENIZER, max_length=MAX_LENGTH, tokens_per_batch=BUDGET, tokens=tokens
        )

    some, all_of_them = make(1000), make(10**9)
    assert len(some) == 3 and len(all_of_them) > 10 and len(make(1)) == 1
    assert all(map(is_equal, some, all_of_them))
    pairs = [pair for batch in all_of_them for pair in pairs_in(batch)]
    plan = planned_pairs(make_batches(corpus, seed=0), 0)
    assert pairs == plan[: len(pairs)] and len(pairs) > 0.9 * len(plan)
    masked = sum(len(batch.masked_labels) for batch in all_of_them)
    tokens = sum(len(batch.packed.input_ids) for batch in all_of_them)
    assert masked / tokens == pytest.approx(0.15, abs=0.01)


def test_a_batch_moves_to_a_device(corpus):
    batch = make_batches(corpus)[0]
    moved = batch.to("meta")
    assert {tensor.device.type for tensor in tensors(moved)} == {"meta"}
    assert moved.packed.sequences.lengths == batch.packed.sequences.lengths
    assert [field.name for field in fields(moved)] == [
        "packed",
        "masked_positions",
        "masked_labels",
        "next_sentence_label",
    ]


@pytest.mark.parametrize("whole_words", [False, True])
def test_there_is_no_loop_over_tokens(corpus, whole_words):
    """A batch of 30 times the tokens takes little longer than a small one."""

    def seconds(budget: int) -> float:
        masks = MaskRecipe(whole_words=whole_words)
        batches = make_batches(corpus, tokens_per_batch=budget, masks=masks)
        times = []
        for index in range(8):
            begin = process_time()
            batches[index % batches.batches_per_epoch]
            times.append(process_time() - begin)
        return min(times)

    small, large = seconds(100), seconds(3000)
    assert large < 8 * small, (small, large)


@pytest.mark.errors
def test_what_makes_no_batches_is_refused(corpus):
    with pytest.raises(
        ValueError, match="tokens_per_batch: expected at least max_length, 40, got"
    ):
        make_batches(corpus, tokens_per_batch=39)
    with pytest.raises(ValueError, match="tokenizer: expected the one that"):
        PretrainingBatches(
            corpus,
            Tokenizer(TOKENIZER.vocab[:-1]),
            max_length=MAX_LENGTH,
            tokens_per_batch=BUDGET,
            seed=0,
        )
    with pytest.raises(ValueError, match="document_offsets: expected at least 2 documents"):
        make_batches(corpus.select(0, 1))
    with pytest.raises(IndexError, match="index: expected 0 or more, got -1"):
        make_batches(corpus)[-1]
