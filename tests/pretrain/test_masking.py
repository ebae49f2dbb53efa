"""Masks: exact counts, the 80/10/10, whole words, against a loop over words that is Google's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bert.tokenization import Tokenizer
from pretrain.masking import MaskedTokens, MaskingVocabulary, MaskRecipe, mask_tokens

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


def quota(length: int, recipe: MaskRecipe) -> int:
    limit = recipe.max_predictions or 10**9
    return min(limit, max(1, int(round(length * recipe.rate))))


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
        expected = min(quota(length, recipe), length - 3)
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


def words_of(row: list[int]) -> list[list[int]]:
    """The places of a sequence's words, "##" pieces with the piece before them."""
    words: list[list[int]] = []
    for place, token in enumerate(row):
        if token in (CLS, SEP):
            continue
        goes_on = TOKENS[token].startswith("##") and TOKENS[token] != "##"
        if goes_on and row[place - 1] not in (CLS, SEP):
            words[-1].append(place)
        else:
            words.append([place])
    return words


def choose_words(words: list[list[int]], limit: int) -> list[int]:
    """Google's `create_masked_lm_predictions` with whole words; the words come shuffled."""
    chosen: list[int] = []
    for word in words:
        if len(chosen) >= limit:
            break
        if len(chosen) + len(word) <= limit:
            chosen += word
    return sorted(chosen)


@given(segments, st.floats(0.05, 0.9), st.integers(0, 50))
def test_whole_words_are_those_that_a_loop_over_shuffled_words_takes(rows, rate, seed):
    recipe = MaskRecipe(rate, whole_words=True)
    ids, lengths = batch = make_batch(rows)
    masked = mask(batch, recipe, seed)
    # The same numbers shuffle the words here: one for each, sorted within its sequence.
    sequences = np.split(ids, np.cumsum(lengths)[:-1]) if len(lengths) else []
    words = [words_of(sequence.tolist()) for sequence in sequences]
    numbers = iter(np.random.default_rng(seed).random(sum(map(len, words))))
    expected, start = [], 0
    for sequence, its_words in zip(sequences, words, strict=True):
        keys = [next(numbers) for _ in its_words]
        shuffled = [its_words[i] for i in np.argsort(keys)]
        chosen = choose_words(shuffled, quota(len(sequence), recipe))
        expected += [start + place for place in chosen]
        start += len(sequence)
    assert masked.positions.tolist() == expected


def test_whole_words_are_distributed_as_in_the_recipe():
    """How many tokens, and how many words of each length: an own shuffle, many times."""
    batch = random_batch(4, 40)
    recipe = MaskRecipe(whole_words=True)
    sequences = np.split(batch[0], np.cumsum(batch[1])[:-1])
    words = [words_of(sequence.tolist()) for sequence in sequences]
    length_at = [{p: len(word) for word in its for p in word} for its in words]
    rng = np.random.default_rng(1)
    table = np.zeros((2, 2, 40), int)  # whose, what, value
    for seed in range(300):
        masked = mask(batch, recipe, seed)
        splits = np.cumsum(counts_by_sequence(masked, batch[1]))[:-1]
        ours = np.split(masked.positions, splits)
        starts = np.cumsum(batch[1]) - batch[1]
        for i, its_words in enumerate(words):
            shuffled = [its_words[j] for j in rng.permutation(len(its_words))]
            theirs = choose_words(shuffled, quota(batch[1][i], recipe))
            for whose, places in enumerate(((ours[i] - starts[i]).tolist(), theirs)):
                table[whose, 0, len(places)] += 1
                for place in places:
                    table[whose, 1, min(length_at[i][place], 8)] += 1
    for what in range(2):
        cells = table[:, what][:, table[:, what].min(axis=0) > 20]
        assert cells.shape[1] >= 4
        assert stats.chi2_contingency(cells).pvalue > P_VALUE


def test_a_word_is_never_cut():
    ids, lengths = batch = random_batch(5, 200)
    masked = mask(batch, MaskRecipe(whole_words=True))
    is_masked = np.zeros(len(ids), bool)
    is_masked[masked.positions] = True
    seen = 0
    for end, length in zip(np.cumsum(lengths), lengths, strict=True):
        for word in words_of(ids[end - length : end].tolist()):
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
        (
            lambda: MaskingVocabulary.of(Tokenizer(TOKENS[:6])),
            "tokenizer: expected tokens that are not special",
        ),
    ],
)
def test_what_cannot_be_masked_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
