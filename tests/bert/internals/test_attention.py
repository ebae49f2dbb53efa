"""What heads look at: against Hugging Face's probabilities, plain loops, and planted heads."""

import math

import pytest
import torch
from torch.testing import assert_close

from bert.internals.attention import (
    attention_maps,
    block_mass,
    distance,
    entropy,
    merge_words,
    rollout,
    token_parts,
    word_groups,
)
from bert.internals.capture import edit
from bert.internals.head_types import TYPES, head_scores, score_maps, type_keys
from tests.bert.internals.tiny import LENGTHS, batch_of, both, model_of

TOKENS = ["[CLS]", "un", "##believ", "##able", "cats", "[SEP]", "cats", "##able", "[SEP]"]
TYPE_IDS = [0, 0, 0, 0, 0, 0, 1, 1, 1]


def maps(length=9, layers=3, heads=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(layers, heads, length, length, generator=generator, dtype=torch.float64)
    return (3 * scores).softmax(-1)


def looks_at(target, layers=1):
    """Maps of one head whose query i looks at target[i] alone."""
    return torch.eye(len(target), dtype=torch.float64)[target].expand(layers, 1, -1, -1)


def test_the_maps_are_hugging_faces():
    ours, theirs = both()
    ids = torch.randint(1, 61, (1, 12))
    with torch.no_grad():
        expected = torch.stack(theirs(ids, output_attentions=True).attentions)[:, 0]
    from bert.packing import pack

    (found,) = attention_maps(ours, pack(ids)[0])
    assert_close(found, expected, rtol=0, atol=1e-12)
    several = attention_maps(ours, batch_of())
    assert [m.shape for m in several] == [(3, 4, n, n) for n in LENGTHS]
    for one in several:
        assert_close(one.sum(-1), torch.ones(one.shape[:-1], dtype=one.dtype))


def test_words_are_merged_by_sum_over_keys_and_mean_over_queries():
    groups = word_groups(TOKENS)
    assert groups == [[0], [1, 2, 3], [4], [5], [6, 7], [8]]
    assert word_groups(["##s", "##t", "[SEP]", "##u"]) == [[0, 1], [2], [3]]
    probabilities = maps()
    found = merge_words(probabilities, groups)
    for a, queries in enumerate(groups):
        for b, keys in enumerate(groups):
            picked = [probabilities[:, :, q, k] for q in queries for k in keys]
            expected = sum(picked) / len(queries)
            assert_close(found[:, :, a, b], expected, rtol=1e-12, atol=0)
    assert_close(found.sum(-1), torch.ones(3, 2, 6, dtype=torch.float64))
    alone = [[place] for place in range(9)]
    assert torch.equal(merge_words(probabilities, alone), probabilities)


def test_blocks_of_the_input():
    parts = token_parts(TOKENS, TYPE_IDS)
    names, mass = block_mass(maps(), parts)
    assert names == ["[CLS]", "first segment", "[SEP]", "second segment"]
    assert_close(mass.sum(-1), torch.ones(3, 2, 4, dtype=torch.float64))
    to_separators = maps()[:, :, 1:5, [5, 8]].sum(-1).mean(-1)
    assert_close(mass[:, :, 1, 2], to_separators)


def test_entropy_and_distance_of_heads_that_are_known():
    alike = torch.full((1, 1, 5, 5), 0.2, dtype=torch.float64)
    assert_close(entropy(alike), torch.full((1, 1, 5), math.log(5), dtype=torch.float64))
    assert_close(distance(alike)[0, 0, 0], torch.tensor(2.0, dtype=torch.float64))
    assert_close(distance(alike)[0, 0, 2], torch.tensor(1.2, dtype=torch.float64))
    one = looks_at([1, 2, 3, 4, 0])
    assert torch.equal(entropy(one), torch.zeros(1, 1, 5, dtype=torch.float64))
    assert distance(one)[0, 0].tolist() == [1, 1, 1, 1, 4]


def test_rollout_is_the_papers_recursion_and_its_rows_sum_to_1():
    probabilities = maps()
    found = rollout(probabilities)
    assert_close(found.sum(-1), torch.ones(3, 9, dtype=torch.float64))
    for query in range(9):  # by paths, from the top: where is a walker after layer 3, 2, 1?
        at = torch.zeros(9, dtype=torch.float64)
        at[query] = 1
        for layer in (2, 1, 0):
            stays_or_goes = [
                0.5 * at[key]
                + 0.5 * sum(at[q] * probabilities[layer, :, q, key].mean() for q in range(9))
                for key in range(9)
            ]
            at = torch.stack(stays_or_goes)
        assert_close(found[2, query], at, rtol=1e-12, atol=1e-15)


# --- types -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("next", [1, 2, 3, 4, 5, 6, 7, 8, 8]),
        ("previous", [0, 0, 1, 2, 3, 4, 5, 6, 7]),
        ("self", list(range(9))),
        ("separator", [5, 5, 8, 5, 8, 8, 8, 5, 5]),
        ("classifier", [0] * 9),
        ("same_word", [0, 3, 1, 2, 0, 0, 7, 6, 0]),
        ("repeated", [0, 0, 0, 7, 6, 0, 4, 3, 0]),
    ],
)
def test_a_planted_head_is_found(name, target):
    found = score_maps([looks_at(target)], [TOKENS])
    assert found.scores[name].tolist() == [[1.0]]
    assert (0, 0, name, 1.0) in found.found() or name in ("same_word", "repeated")
    # In the company of a head that does nothing in particular.
    mixed = torch.cat([torch.full((1, 1, 9, 9), 1 / 9, dtype=torch.float64), looks_at(target)], 1)
    scores = score_maps([mixed], [TOKENS])
    for kind in TYPES:
        assert float(scores.scores[kind][0, 0]) == pytest.approx(scores.uniform[kind])
    assert [head[:2] for head in scores.found()] == [(0, 1)]


def test_the_queries_are_those_that_have_such_a_key():
    found = score_maps([maps()], [TOKENS])
    assert found.queries == {
        "next": 6, "previous": 6, "self": 6, "separator": 6, "classifier": 6,
        "same_word": 5, "repeated": 4,
    }  # fmt: skip
    assert found.uniform["separator"] == pytest.approx(2 / 9)
    assert found.uniform["same_word"] == pytest.approx((2 + 2 + 2 + 1 + 1) / 5 / 9)
    keys = type_keys(TOKENS)["repeated"]
    assert keys.nonzero().tolist() == [[3, 7], [4, 6], [6, 4], [7, 3]]
    nothing = score_maps([maps(3)], [["[CLS]", "a", "[SEP]"]])
    assert nothing.scores["repeated"].isnan().all() and nothing.queries["repeated"] == 0
    assert all(kind != "repeated" for _, _, kind, _ in nothing.found(0.0))


def test_sequences_count_by_their_queries():
    both_maps, rows = [maps(9), maps(4, seed=1)], [TOKENS, ["[CLS]", "a", "b", "[SEP]"]]
    together = score_maps(both_maps, rows)
    apart = [score_maps([one], [row]) for one, row in zip(both_maps, rows, strict=True)]
    expected = (6 * apart[0].scores["next"] + 2 * apart[1].scores["next"]) / 8
    assert_close(together.scores["next"], expected)


def test_a_head_planted_in_a_model():
    model, batch = model_of(), batch_of()
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(56))]

    def previous(x):
        for row, length in enumerate(LENGTHS):
            x[row, 2, :length] = 0
            x[row, 2, range(length), [0, *range(length - 1)]] = 1
        return x

    with edit(model, {"layers.1.attention.probabilities": previous}):
        found = head_scores(model, batch, vocab).found(0.9)
    assert (1, 2, "previous", 1.0) in found


@pytest.mark.errors
def test_mistakes():
    with pytest.raises(ValueError, match="^groups: expected each of 9 tokens once, got other"):
        merge_words(maps(), [[0, 1, 2]])
    with pytest.raises(
        ValueError, match=r"^tokens\[0\]: expected 9, as many as the map has, got 8"
    ):
        score_maps([maps()], [TOKENS[:8]])
    with pytest.raises(ValueError, match="^tokens: expected those of some maps, got 0$"):
        score_maps([], [])
