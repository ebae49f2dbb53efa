"""The planned pairs: what holds of each of them, and in which order they come."""

import random
from time import process_time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pretrain.pairs import PairPlan, plan_pairs
from tests.pretrain.google_recipe import cut_to_fit

P_VALUE = 1e-4  # of every chi-squared test below; the seeds are fixed
MAX_LENGTH = 48


def make_offsets(documents: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Offsets of documents that are given as the lengths of their sentences."""
    sentences = [length for document in documents for length in document]
    return np.cumsum([0, *sentences]), np.cumsum([0, *map(len, documents)])


def random_documents(seed: int, count: int) -> list[list[int]]:
    """Documents of 1 to 40 sentences; sentences of 1 to 70 tokens, mostly short."""
    rng = random.Random(seed)
    return [
        [min(1 + int(rng.expovariate(1 / 9)), 70) for _ in range(rng.choice([1, 2, 5, 12, 40]))]
        for _ in range(count)
    ]


def planned_pairs(documents, epochs: int, **options):
    offsets = make_offsets(documents)
    plans = [plan_pairs(*offsets, seed=3, epoch=epoch, **options) for epoch in range(epochs)]
    return np.concatenate([rows_of(plan) for plan in plans])


def rows_of(plan: PairPlan) -> np.ndarray:
    columns = plan.a_start, plan.a_length, plan.b_start, plan.b_length, plan.label
    return np.stack([column.astype(np.int64) for column in columns], axis=1)


def test_the_other_document_is_drawn_evenly_whatever_its_length():
    documents = random_documents(2, 12)
    rows = planned_pairs(documents, 400, max_length=MAX_LENGTH)
    sentence_offsets, document_offsets = make_offsets(documents)
    starts = sentence_offsets[document_offsets]
    rows = rows[rows[:, 4] == 1]
    own = np.bincount(np.searchsorted(starts, rows[:, 0], side="right") - 1, minlength=12)
    other = np.bincount(np.searchsorted(starts, rows[:, 2], side="right") - 1, minlength=12)
    expected = (own.sum() - own) / 11
    assert stats.chisquare(other, expected).pvalue > P_VALUE


def test_ten_percent_are_short():
    documents = [[1] * 30_000] * 2  # far from a document's end, a chunk is as long as its target
    lengths = planned_pairs(documents, 12, max_length=MAX_LENGTH)[:, [1, 3]].sum(axis=1)
    # A target of 2 to 45, each equally likely; only those below 45 can be told apart.
    counts = np.bincount(lengths, minlength=46)
    share = 1 - counts[45] / counts.sum()
    assert counts.sum() > 15_000
    assert share == pytest.approx(0.1 * 43 / 44, abs=0.01)  # four standard deviations
    assert stats.chisquare(counts[10:45]).pvalue > P_VALUE


documents_strategy = st.lists(
    st.lists(st.integers(1, 30), min_size=1, max_size=12), min_size=2, max_size=9
)


@given(documents_strategy, st.integers(5, 40), st.integers(0, 5), st.sampled_from([0.0, 0.1, 1.0]))
def test_each_pair_is_what_it_says(documents, max_length, seed, short_probability):
    sentence_offsets, document_offsets = make_offsets(documents)
    plan = plan_pairs(
        sentence_offsets,
        document_offsets,
        max_length=max_length,
        seed=seed,
        epoch=0,
        short_probability=short_probability,
    )
    starts = sentence_offsets[document_offsets]
    a_end, b_end = plan.a_start + plan.a_length, plan.b_start + plan.b_length
    a_document = np.searchsorted(starts, plan.a_start, side="right")
    b_document = np.searchsorted(starts, plan.b_start, side="right")
    assert plan.a_length.min() >= 1 and plan.b_length.min() >= 1
    assert plan.lengths.max() <= max_length
    assert (a_end <= starts[a_document]).all() and (b_end <= starts[b_document]).all()
    assert ((a_document != b_document) == plan.label).all()
    assert (plan.b_start >= a_end)[~plan.label].all()
    assert plan.majority_rate >= 0.5
    # Of a document's own tokens, none is used twice.
    used = np.zeros(sentence_offsets[-1], int)
    for row in rows_of(plan):
        used[row[0] : row[0] + row[1]] += 1
        if not row[4]:
            used[row[2] : row[2] + row[3]] += 1
    assert used.max() <= 1
    # What isn't used was cut off; where all fits, nothing is cut.
    if max(map(max, documents)) == 1:
        assert used.min() == 1


@given(st.integers(2, 30), st.integers(2, 30), st.integers(5, 20))
def test_without_truncation_every_token_is_used_once_an_epoch(count, length, max_length):
    sentence_offsets, document_offsets = make_offsets([[1] * length] * count)
    plan = plan_pairs(sentence_offsets, document_offsets, max_length=max_length, seed=0, epoch=1)
    used = np.zeros(count * length, int)
    for row in rows_of(plan):
        used[row[0] : row[0] + row[1]] += 1
        used[row[2] : row[2] + row[3] * (1 - row[4])] += 1
    assert (used == 1).all()


def test_a_chunk_of_one_sentence_is_followed_by_another_document():
    offsets = make_offsets([[50], [60], [4], [3]] * 20)
    plan = plan_pairs(*offsets, max_length=20, seed=0, epoch=0)
    assert plan.label.all() and len(plan) == 80
    assert plan.majority_rate == 1


def test_the_longer_segment_loses_tokens_one_by_one():
    """Two documents of one sentence each: A is one of them, B the other, whole."""
    for a in range(1, 13):
        for b in range(1, 13):
            for room in (2, 3, 6, 7, 12):
                first, second = ["a"] * a, ["b"] * b
                cut_to_fit(first, second, room, random.Random(0))
                plan = plan_pairs(*make_offsets([[a], [b]]), max_length=room + 3, seed=a, epoch=b)
                row = int(np.argmin(plan.a_start))
                got = plan.a_length[row], plan.b_length[row]
                assert got == (len(first), len(second)), (a, b, room)


def test_the_plan_follows_from_seed_and_epoch_alone():
    offsets = make_offsets(random_documents(3, 30))

    def rows(seed, epoch):
        return rows_of(plan_pairs(*offsets, max_length=MAX_LENGTH, seed=seed, epoch=epoch))

    expected = rows(1, 2)
    np.random.seed(5)
    rows(9, 9)
    np.testing.assert_array_equal(rows(1, 2), expected)
    for other in ((1, 3), (2, 2), (2, 1), (1, 0)):
        assert not np.array_equal(rows(*other)[:20], expected[:20])


def test_the_order_is_random():
    plan = plan_pairs(*make_offsets([[5] * 40] * 300), max_length=MAX_LENGTH, seed=0, epoch=0)
    assert abs(stats.spearmanr(np.arange(len(plan)), plan.a_start).statistic) < 0.05
    assert abs(stats.spearmanr(plan.a_start[1:], plan.a_start[:-1]).statistic) < 0.05


def test_a_whole_corpus_in_one_document_costs_no_more():
    rng = np.random.default_rng(0)
    sentence_offsets = np.concatenate([[0], np.cumsum(rng.integers(5, 45, 200_000))])

    def seconds(documents: int) -> float:
        document_offsets = np.linspace(0, 200_000, documents + 1).astype(np.int64)
        begin = process_time()
        plan = plan_pairs(sentence_offsets, document_offsets, max_length=128, seed=0, epoch=0)
        assert len(plan) > 40_000
        return process_time() - begin

    # A loop over the pairs of a document would take a hundred times as long for the second.
    assert seconds(2) < 5 * max(seconds(2000), 0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"document_offsets": [0, 3]}, "document_offsets: expected at least 2 documents"),
        ({"max_length": 4}, "max_length: expected at least 5 tokens, got 4"),
        ({"short_probability": 1.5}, "short_probability: expected 0 to 1, got 1.5"),
        ({"seed": -1}, "seed, epoch: expected no negative number, got -1, 0"),
        ({"epoch": -1}, "seed, epoch: expected no negative number, got 0, -1"),
    ],
)
@pytest.mark.errors
def test_what_cannot_be_planned_is_refused(options, message):
    given = {
        "sentence_offsets": [0, 2, 4, 6],
        "document_offsets": [0, 1, 3],
        "max_length": 20,
        "seed": 0,
        "epoch": 0,
        **options,
    }
    arrays = {name: np.array(given.pop(name)) for name in ("sentence_offsets", "document_offsets")}
    with pytest.raises(ValueError, match=message):
        plan_pairs(**arrays, **given)
