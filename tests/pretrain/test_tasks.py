"""Sequences for the other objectives: sentence order, one segment, nothing masked, other rates."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pretrain.batches import PretrainingBatches
from pretrain.masking import MaskRecipe, MaskSchedule
from pretrain.pairs import plan_pairs
from pretrain.preparation import prepare
from tests.pretrain.test_pairs import documents_strategy, make_offsets, random_documents, rows_of
from tests.pretrain.texts import TOKENIZER, make_documents, write_text


def chunks_of(document: list[int], target: int, whole: bool) -> list[tuple[int, int]]:
    """Cut a document into chunks: first sentence, and the one after the last.

    Args:
        document: the lengths of its sentences.
        target: tokens.
        whole: up to the last sentence that fits, and one at least; else up to the sentence that
            reaches the target, and two at least.
    """
    chunks, start = [], 0
    while start < len(document):
        end = start + 1
        while end < len(document):
            tokens = sum(document[start:end])
            if whole and tokens + document[end] > target:
                break
            if not whole and tokens >= target and end - start >= 2:
                break
            end += 1
        chunks.append((start, end))
        start = end
    return chunks


@given(documents_strategy, st.integers(5, 40))
def test_one_segment_is_whole_sentences_of_one_document(documents, max_length):
    sentences, document_offsets = make_offsets(documents)
    room = max_length - 2
    plan = plan_pairs(
        sentences,
        document_offsets,
        max_length=max_length,
        seed=1,
        epoch=2,
        short_probability=0.0,
        task=None,
    )
    expected = [
        (sentences[first + start], sentences[first + end])
        for first, document in zip(document_offsets, documents, strict=False)
        for start, end in chunks_of(document, room, whole=True)
    ]
    assert not plan.label.any() and not plan.b_length.any()
    assert (plan.lengths == plan.a_length + 2).all() and plan.lengths.max() <= max_length
    order = np.argsort(plan.a_start)
    found = zip(plan.a_start[order], plan.a_length[order], strict=True)
    for (start, length), (begin, end) in zip(found, expected, strict=True):
        assert length == min(end - begin, room)  # only one long sentence is ever cut
        assert begin <= start and start + length <= end


def test_one_segment_may_aim_at_a_shorter_length():
    offsets = make_offsets([[1] * 30_000] * 2)
    plan = plan_pairs(*offsets, max_length=47, seed=0, epoch=0, task=None, short_probability=0.1)
    counts = np.bincount(plan.a_length, minlength=46)
    assert 1 - counts[45] / counts.sum() == pytest.approx(0.1 * 43 / 44, abs=0.03)
    assert plan.a_length.sum() == 60_000


@given(documents_strategy, st.integers(5, 40), st.integers(0, 5))
def test_a_pair_for_sentence_order_is_two_neighbouring_segments(documents, max_length, seed):
    documents = [[3, 4], *documents]
    sentences, document_offsets = make_offsets(documents)
    plan = plan_pairs(
        sentences,
        document_offsets,
        max_length=max_length,
        seed=seed,
        epoch=0,
        short_probability=0.0,
        task="sop",
    )
    expected = [
        (sentences[first + start], sentences[first + end])
        for first, document in zip(document_offsets, documents, strict=False)
        for start, end in chunks_of(document, max_length - 3, whole=False)
        if end - start > 1
    ]
    rows = rows_of(plan)
    rows = rows[np.argsort(np.minimum(rows[:, 0], rows[:, 2]))]
    assert len(rows) == len(expected)
    for (a, a_length, b, b_length, is_swapped), (begin, end) in zip(rows, expected, strict=True):
        first, second = (
            ((b, b_length), (a, a_length)) if is_swapped else ((a, a_length), (b, b_length))
        )
        assert begin <= first[0] and sum(first) <= second[0] and sum(second) <= end
        assert a_length >= 1 and b_length >= 1
        total = min(end - begin, max_length - 3)
        assert a_length + b_length == total
        if total == end - begin:
            assert sum(first) == second[0]  # nothing between them


def test_half_of_the_pairs_are_swapped_and_their_lengths_do_not_tell():
    plans = [
        plan_pairs(
            *make_offsets(random_documents(5, 60)), max_length=48, seed=0, epoch=epoch, task="sop"
        )
        for epoch in range(100)
    ]
    labels = np.concatenate([plan.label for plan in plans])
    assert len(labels) > 10_000 and stats.binomtest(int(labels.sum()), len(labels)).pvalue > 1e-3
    # Where both are cut, B loses the ties, whichever of the two it was in the text.
    cut = plan_pairs(*make_offsets([[100] * 4] * 40), max_length=48, seed=0, epoch=0, task="sop")
    assert (cut.a_length == 23).all() and (cut.b_length == 22).all()
    assert 0 < cut.label.sum() < len(cut)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tasks")
    text = write_text(directory / "text.txt", make_documents(60, seed=1))
    return prepare([text], directory / "corpus", TOKENIZER, progress=False)


def make(corpus, **options) -> PretrainingBatches:
    return PretrainingBatches(
        corpus, TOKENIZER, max_length=40, tokens_per_batch=300, seed=3, **options
    )


def test_a_batch_of_one_segment(corpus):
    batches = make(corpus, task=None)
    batch, plan = batches[0], batches.plan(0)
    assert batch.next_sentence_label is None and batch.to("meta").next_sentence_label is None
    assert not batch.packed.token_type_ids.any()
    ids = batch.packed.input_ids.clone()
    ids[batch.masked_positions] = batch.masked_labels
    rows = ids.split(batch.packed.sequences.lengths)
    for row, start, length in zip(rows, plan.a_start, plan.a_length, strict=False):
        text = corpus.tokens[start : start + length].tolist()
        assert row.tolist() == [TOKENIZER.cls_id, *text, TOKENIZER.sep_id]


def test_a_batch_without_masks(corpus):
    masked, plain = make(corpus)[4], make(corpus, masks=None)[4]
    assert len(plain.masked_positions) == len(plain.masked_labels) == 0
    ids = masked.packed.input_ids.clone()
    ids[masked.masked_positions] = masked.masked_labels
    assert torch.equal(plain.packed.input_ids, ids)
    assert not (plain.packed.input_ids == TOKENIZER.mask_id).any()
    assert torch.equal(plain.next_sentence_label, masked.next_sentence_label)


def test_a_scheduled_rate_follows_from_the_index_alone(corpus):
    schedule = MaskSchedule(MaskRecipe(0.5), 0.1, batches=41)
    batches = make(corpus, masks=schedule)
    for index in (40, 0, 20, 10, 400):
        rate = max(0.5 - 0.01 * index, 0.1)
        batch, same = batches[index], make(corpus, masks=MaskRecipe(rate))[index]
        assert torch.equal(batch.masked_positions, same.masked_positions), index
        assert torch.equal(batch.packed.input_ids, same.packed.input_ids), index


@pytest.mark.errors
def test_documents_of_one_sentence_have_no_order():
    offsets = make_offsets([[5], [4], [9]])
    with pytest.raises(ValueError, match="^document_offsets: expected a document of at least 2"):
        plan_pairs(*offsets, max_length=20, seed=0, epoch=0, task="sop")
    assert (
        len(plan_pairs(*make_offsets([[5, 3]]), max_length=20, seed=0, epoch=0, task="sop")) == 1
    )
    assert len(plan_pairs(*make_offsets([[5]]), max_length=20, seed=0, epoch=0, task=None)) == 1
