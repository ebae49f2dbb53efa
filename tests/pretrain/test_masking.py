"""Masks: exact counts, the 80/10/10, whole words, and a rate that changes over a run."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bert.tokenization import Tokenizer
from pretrain.masking import (
    MaskedTokens,
    MaskingVocabulary,
    MaskRecipe,
    MaskSchedule,
    mask_tokens,
)
from tests.pretrain.google_recipe import choose, quota, words_of

P_VALUE = 1e-4  # of every chi-squared test below; the seeds are fixed
PAD, UNK, CLS, SEP, MASK = range(5)
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused7]", "##"]
TOKENS += [f"w{i}" for i in range(60)] + [f"##p{i}" for i in range(40)]
ORDINARY = [i for i in range(len(TOKENS)) if i > 5]
VOCABULARY = MaskingVocabulary.of(Tokenizer(TOKENS))


def make_batch(segments: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """[CLS] A [SEP] B [SEP] from each two segments."""
    rows = [[CLS, *a, SEP, *b, SEP] for a, b in zip(segments[::2], segments[1::2], strict=True)]
    lengths = np.array([len(row) for row in rows], np.int64)
    return np.array([token for row in rows for token in row], np.int64), lengths


def random_batch(seed: int, sequences: int, longest: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return make_batch(
        [rng.choice(ORDINARY, rng.integers(1, longest)).tolist() for _ in range(2 * sequences)]
    )


def mask(batch, recipe: MaskRecipe, seed: int = 0) -> MaskedTokens:
    return mask_tokens(*batch, VOCABULARY, recipe, np.random.default_rng(seed))


def texts_of(ids: np.ndarray) -> list[str]:
    return [TOKENS[i] for i in ids]


def counts_by_sequence(masked: MaskedTokens, lengths: np.ndarray) -> np.ndarray:
    owner = np.searchsorted(np.cumsum(lengths), masked.positions, side="right")
    return np.bincount(owner, minlength=len(lengths))


recipes = st.builds(
    MaskRecipe,
    rate=st.floats(0.01, 0.9),
    max_predictions=st.none() | st.integers(1, 20),
    whole_words=st.booleans(),
)
segments = st.lists(st.lists(st.sampled_from(ORDINARY), max_size=20), max_size=12).map(
    lambda rows: rows[: len(rows) // 2 * 2]
)


@given(segments, recipes, st.integers(0, 3))
def test_what_is_masked_and_what_is_left(rows, recipe, seed):
    batch = make_batch(rows)
    before = batch[0].copy()
    masked = mask(batch, recipe, seed)
    np.testing.assert_array_equal(batch[0], before)
    assert (np.diff(masked.positions) > 0).all()
    np.testing.assert_array_equal(masked.labels, before[masked.positions])
    assert not np.isin(masked.labels, [CLS, SEP]).any()
    untouched = np.ones(len(before), bool)
    untouched[masked.positions] = False
    np.testing.assert_array_equal(masked.input_ids[untouched], before[untouched])
    assert np.isin(masked.input_ids[masked.positions], [MASK, *ORDINARY]).all()
    for length, count in zip(batch[1], counts_by_sequence(masked, batch[1]), strict=True):
        expected = min(quota(length, recipe.rate, recipe.max_predictions), length - 3)
        assert count <= expected if recipe.whole_words else count == expected


@pytest.mark.parametrize("whole_words", [False, True])
def test_eighty_ten_ten(whole_words):
    # A word of two pieces: each piece draws for itself.
    batch = make_batch([[10, 70, 11, 71] * 10] * 600)
    fates = np.zeros(3)
    drawn, pairs = [], np.zeros((2, 2))
    for seed in range(30):
        masked = mask(batch, MaskRecipe(whole_words=whole_words), seed)
        shown = masked.input_ids[masked.positions]
        is_mask, is_kept = shown == MASK, shown == masked.labels
        fates += [is_mask.sum(), is_kept.sum(), (~is_mask & ~is_kept).sum()]
        drawn += shown[~is_mask & ~is_kept].tolist()
        if whole_words:
            np.add.at(pairs, (is_mask[::2].astype(int), is_mask[1::2].astype(int)), 1)
    # A random token may happen to be the same one.
    same = 0.1 / len(ORDINARY)
    expected = np.array([0.8, 0.1 + same, 0.1 - same]) * fates.sum()
    assert fates.sum() > 90_000
    assert stats.chisquare(fates, expected).pvalue > P_VALUE
    # Every ordinary token is drawn as often (these four are also those that may be kept).
    counts = np.bincount(drawn, minlength=len(TOKENS))
    assert counts[[PAD, UNK, CLS, SEP, MASK, 5]].sum() == 0
    others = [i for i in ORDINARY if i not in (10, 11, 70, 71)]
    assert stats.chisquare(counts[others]).pvalue > P_VALUE
    if whole_words:
        assert stats.chi2_contingency(pairs).pvalue > P_VALUE


def test_every_set_of_tokens_is_as_likely():
    batch = make_batch([[10, 11, 12], [13, 14]] * 400)  # 8 tokens, 5 of them maskable
    recipe = MaskRecipe(rate=0.25)
    chosen = []
    for seed in range(20):
        positions = mask(batch, recipe, seed).positions.reshape(-1, 2) % 8
        chosen += [tuple(pair) for pair in positions.tolist()]
    sets, counts = np.unique(chosen, axis=0, return_counts=True)
    assert len(sets) == 10 and counts.sum() == 8000
    assert stats.chisquare(counts).pvalue > P_VALUE


@given(segments, st.floats(0.05, 0.9), st.integers(0, 50))
def test_whole_words_are_those_that_a_loop_over_shuffled_words_takes(rows, rate, seed):
    recipe = MaskRecipe(rate, whole_words=True)
    ids, lengths = batch = make_batch(rows)
    masked = mask(batch, recipe, seed)
    # The same numbers shuffle the words here: one for each, sorted within its sequence.
    sequences = np.split(ids, np.cumsum(lengths)[:-1]) if len(lengths) else []
    words = [words_of(texts_of(sequence)) for sequence in sequences]
    numbers = iter(np.random.default_rng(seed).random(sum(map(len, words))))
    expected, start = [], 0
    for sequence, its_words in zip(sequences, words, strict=True):
        keys = [next(numbers) for _ in its_words]
        shuffled = [its_words[i] for i in np.argsort(keys)]
        limit = quota(len(sequence), recipe.rate, recipe.max_predictions)
        chosen = sorted(place for word in choose(shuffled, limit) for place in word)
        expected += [start + place for place in chosen]
        start += len(sequence)
    assert masked.positions.tolist() == expected


def test_a_word_is_never_cut():
    ids, lengths = batch = random_batch(5, 200)
    masked = mask(batch, MaskRecipe(whole_words=True))
    is_masked = np.zeros(len(ids), bool)
    is_masked[masked.positions] = True
    seen = 0
    for end, length in zip(np.cumsum(lengths), lengths, strict=True):
        for word in words_of(texts_of(ids[end - length : end])):
            states = {bool(is_masked[end - length + place]) for place in word}
            assert len(states) == 1
            seen += len(word) > 1 and states == {True}
    assert seen > 100


def test_masks_follow_from_the_generator_alone():
    batch = random_batch(6, 30)
    for whole_words in (False, True):
        recipe = MaskRecipe(whole_words=whole_words)
        expected = mask(batch, recipe, seed=1)
        np.random.seed(3)
        again = mask(batch, recipe, seed=1)
        np.testing.assert_array_equal(again.input_ids, expected.input_ids)
        np.testing.assert_array_equal(again.positions, expected.positions)
        other = mask(batch, recipe, seed=2)
        assert not np.array_equal(other.positions, expected.positions)


@pytest.mark.parametrize(("first", "last"), [(0.3, 0.15), (0.1, 0.4)])
def test_a_schedule_is_a_straight_line_and_then_stays(first, last):
    recipe = MaskRecipe(first, max_predictions=7, whole_words=True)
    schedule = MaskSchedule(recipe, last, batches=101)
    rates = np.array([schedule.at(index).rate for index in range(140)])
    np.testing.assert_allclose(rates[:101], np.linspace(first, last, 101), rtol=1e-12)
    np.testing.assert_allclose(rates[100:], last, rtol=1e-12)
    assert schedule.at(50).max_predictions == 7 and schedule.at(50).whole_words
    assert MaskSchedule(recipe, last, batches=1).at(0).rate == first


def test_what_the_vocabulary_says():
    assert VOCABULARY.ordinary_ids.tolist() == ORDINARY
    assert np.flatnonzero(VOCABULARY.is_continuation).tolist() == list(range(67, 107))
    assert (VOCABULARY.cls_id, VOCABULARY.sep_id, VOCABULARY.mask_id) == (CLS, SEP, MASK)


@pytest.mark.errors
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaskRecipe(0), "rate: expected more than 0 and less than 1, got 0"),
        (lambda: MaskRecipe(1.0), "rate: expected more than 0 and less than 1, got 1.0"),
        (lambda: MaskRecipe(max_predictions=0), "max_predictions: expected 1 or more, got 0"),
        (lambda: MaskSchedule(MaskRecipe(), 1.5, 9), "final_rate: expected more than 0 and less"),
        (lambda: MaskSchedule(MaskRecipe(), 0.2, 0), "batches: expected 1 or more, got 0"),
        (
            lambda: MaskingVocabulary.of(Tokenizer(TOKENS[:6])),
            "tokenizer: expected tokens that are not special",
        ),
    ],
)
def test_what_cannot_be_masked_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
