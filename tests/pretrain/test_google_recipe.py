"""Pairs and masks have the distributions of Google's recipe, and a wrong recipe would be seen.

Each test takes two samples, ours and the one of the loops in google_recipe.py, and asks of many
features whether both come from one distribution (Pearson's chi-squared test of homogeneity). The
seeds are fixed. That the tests would notice is tested as well: the same samples of ours against
recipes with one thing wrong.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from random import Random

import numpy as np
import pytest
from scipy import stats

from pretrain.masking import MaskRecipe, mask_tokens
from pretrain.pairs import plan_pairs
from tests.pretrain import google_recipe as google
from tests.pretrain.google_recipe import MaskingRecipe, PairRecipe
from tests.pretrain.test_masking import ORDINARY, TOKENS, VOCABULARY, random_batch
from tests.pretrain.test_pairs import MAX_LENGTH, make_offsets, random_documents, rows_of

SAME = 1e-3
"""A p value above it: not told apart. Below `DIFFERENT` they are, beyond doubt."""
DIFFERENT = 1e-9


def p_value(ours: Sequence[int], theirs: Sequence[int]) -> float:
    """The p value of two samples of small integers coming from one distribution."""
    samples = [np.asarray(sample, np.int64) for sample in (ours, theirs)]
    values = max(sample.max(initial=0) for sample in samples) + 1
    table = np.stack([np.bincount(sample, minlength=values) for sample in samples])
    # Rare values are put together with their neighbours, until each cell expects enough.
    cells, waiting = [], np.zeros(2)
    for column in table.T:
        waiting = waiting + column
        if (waiting.sum() * table.sum(axis=1) / table.sum()).min() >= 20:
            cells.append(waiting)
            waiting = np.zeros(2)
    if len(cells) < 2:
        return 1.0
    cells[-1] = cells[-1] + waiting
    return float(stats.chi2_contingency(np.array(cells).T).pvalue)


def p_values(ours: Mapping[str, Sequence[int]], theirs: Mapping[str, Sequence[int]]):
    assert ours.keys() == theirs.keys()
    return {name: p_value(ours[name], theirs[name]) for name in ours}


DOCUMENTS = random_documents(1, 40)
EPOCHS, THEIR_EPOCHS = 250, 80


@cache
def our_pairs(short_probability: float) -> np.ndarray:
    """Rows of a_start, a_length, b_start, b_length, label."""
    options = {"max_length": MAX_LENGTH, "short_probability": short_probability}
    offsets = make_offsets(DOCUMENTS)
    plans = [plan_pairs(*offsets, seed=3, epoch=epoch, **options) for epoch in range(EPOCHS)]
    return np.concatenate([rows_of(plan) for plan in plans])


@cache
def their_pairs(recipe: PairRecipe) -> np.ndarray:
    numbers = iter(range(10**9))
    texts = [[[next(numbers) for _ in range(n)] for n in document] for document in DOCUMENTS]
    rng = Random(7)
    return np.array(
        [
            (pair.a[0], len(pair.a), pair.b[0], len(pair.b), pair.is_random)
            for _ in range(THEIR_EPOCHS)
            for pair in google.make_pairs(texts, recipe, rng)
        ]
    )


def pair_features(rows: np.ndarray) -> dict[str, np.ndarray]:
    sentence_offsets, document_offsets = make_offsets(DOCUMENTS)
    a_start, a_length, b_start, b_length, is_random = rows.T
    a_sentence = np.searchsorted(sentence_offsets, a_start, side="right") - 1
    b_sentence = np.searchsorted(sentence_offsets, b_start, side="right") - 1
    b_document = np.searchsorted(sentence_offsets[document_offsets], b_start, side="right") - 1
    return {
        "labels": is_random,
        "lengths of A": a_length,
        "lengths of B": b_length,
        "lengths of B that is next": b_length[is_random == 0],
        "lengths of pairs": a_length + b_length,
        "short pairs": (a_length + b_length < MAX_LENGTH - 3).astype(int),
        "sentence of A": a_sentence,
        "sentence of B that is random": b_sentence[is_random == 1],
        "document of B that is random": b_document[is_random == 1],
        "tokens cut from A's front": np.minimum(a_start - sentence_offsets[a_sentence], 40),
        "tokens cut from B's front": np.minimum(b_start - sentence_offsets[b_sentence], 40),
        "A and B together": np.minimum(a_length, 45) * 46 + np.minimum(b_length, 45),
    }


@pytest.mark.parametrize("short_probability", [0.1, 0.0, 1.0])
def test_pairs_are_distributed_as_in_the_recipe(short_probability):
    recipe = PairRecipe(MAX_LENGTH, short_probability)
    ours, theirs = our_pairs(short_probability), their_pairs(recipe)
    found = p_values(pair_features(ours), pair_features(theirs))
    assert min(found.values()) > SAME, found
    # Pairs of one epoch hang together, so their number is compared by its mean.
    assert len(ours) / EPOCHS == pytest.approx(len(theirs) / THEIR_EPOCHS, rel=0.01)


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({"random_probability": 0.45}, "labels"),
        ({"gives_back": False}, "sentence of A"),
        ({"short_probability": 0.15}, "short pairs"),
        ({"cuts_both_ends": False}, "tokens cut from A's front"),
        # Google's own: short documents' worth of short chunks. Ours deviates on purpose.
        ({"target_per_document": True}, "short pairs"),
    ],
)
def test_another_recipe_for_pairs_would_be_seen(wrong, where):
    theirs = their_pairs(PairRecipe(**{"max_length": MAX_LENGTH, **wrong}))
    found = p_values(pair_features(our_pairs(0.1)), pair_features(theirs))
    assert found[where] < DIFFERENT, found


def test_of_googles_own_pairs_more_are_short():
    """A document of short chunks has more of them: what pretrain/pairs.py says of its difference.

    Documents of 2,000 sentences of one token, so a chunk is as long as its target.
    """
    documents = [[[0]] * 2_000 for _ in range(60)]
    shares = []
    for per_document in (False, True):
        recipe = PairRecipe(MAX_LENGTH, target_per_document=per_document)
        pairs = google.make_pairs(documents, recipe, Random(1))
        shares.append(np.mean([len(a) + len(b) < MAX_LENGTH - 4 for a, b, _ in pairs]))
    assert shares[0] < 0.13 and shares[1] > 0.25, shares


def test_blocks_leave_no_seam(monkeypatch):
    """Sentences are drawn in blocks; a chunk may reach over the end of one."""
    monkeypatch.setattr("pretrain.pairs._BLOCK", 100)
    ours = our_pairs.__wrapped__(0.1)
    found = p_values(pair_features(ours), pair_features(their_pairs(PairRecipe(MAX_LENGTH))))
    assert min(found.values()) > SAME, found


IDS, LENGTHS = random_batch(4, 40)
SEQUENCES = [[TOKENS[i] for i in row] for row in np.split(IDS, np.cumsum(LENGTHS)[:-1])]
WORDS = [google.words_of(tokens) for tokens in SEQUENCES]


@cache
def our_masks(recipe: MaskRecipe) -> dict[str, list[int]]:
    results, ends = [], np.cumsum(LENGTHS)
    for seed in range(120):
        masked = mask_tokens(IDS, LENGTHS, VOCABULARY, recipe, np.random.default_rng(seed))
        for number, (end, length) in enumerate(zip(ends, LENGTHS, strict=True)):
            begin, stop = np.searchsorted(masked.positions, [end - length, end])
            shown = [TOKENS[i] for i in masked.input_ids[end - length : end]]
            places = (masked.positions[begin:stop] - end + length).tolist()
            results.append((number, shown, places))
    return mask_features(results)


@cache
def their_masks(recipe: MaskingRecipe) -> dict[str, list[int]]:
    rng, ordinary = Random(5), [TOKENS[i] for i in ORDINARY]
    results = []
    for _ in range(80):
        for number, tokens in enumerate(SEQUENCES):
            masked = google.mask(tokens, ordinary, recipe, rng)
            results.append((number, masked.shown, masked.places))
    return mask_features(results)


def mask_features(results) -> dict[str, list[int]]:
    """What was chosen and became of it; results: number of sequence, tokens shown, places."""
    found: dict[str, list[int]] = {
        name: [] for name in ("count", "place", "fate", "random token", "pieces of a word")
    }
    for number, shown, places in results:
        tokens = SEQUENCES[number]
        found["count"].append(len(places))
        found["place"] += places
        for place in places:
            is_kept, is_mask = shown[place] == tokens[place], shown[place] == google.MASK
            found["fate"].append(0 if is_mask else 1 if is_kept else 2)
            if found["fate"][-1] == 2:
                found["random token"].append(TOKENS.index(shown[place]))
        for word in WORDS[number]:
            pieces = len(set(word) & set(places))
            if pieces:
                found["pieces of a word"].append(min(len(word), 9) * 10 + min(pieces, 9))
    return found


MASKS = [
    (MaskRecipe(), MaskingRecipe()),
    (MaskRecipe(whole_words=True), MaskingRecipe(whole_words=True)),
    (
        MaskRecipe(0.3, max_predictions=8, whole_words=True),
        MaskingRecipe(0.3, max_predictions=8, whole_words=True),
    ),
]


@pytest.mark.parametrize(("ours", "theirs"), MASKS)
def test_masks_are_distributed_as_in_the_recipe(ours, theirs):
    found = p_values(our_masks(ours), their_masks(theirs))
    assert min(found.values()) > SAME, found


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        (MaskingRecipe(fates=(0.7, 0.2)), "fate"),
        (MaskingRecipe(fates=(1.0, 0.0)), "fate"),
        (MaskingRecipe(rate=0.16), "count"),
        (MaskingRecipe(max_predictions=8), "count"),
        (MaskingRecipe(whole_words=True), "pieces of a word"),
    ],
)
def test_another_recipe_for_masks_would_be_seen(wrong, where):
    found = p_values(our_masks(MaskRecipe()), their_masks(wrong))
    assert found[where] < DIFFERENT, found
