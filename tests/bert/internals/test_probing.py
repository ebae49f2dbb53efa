"""Probes: what is planted in a state is found, what isn't is not, and the control tells apart."""

from collections import Counter

import numpy as np
import pytest
import torch

from bert.config import BertConfig
from bert.internals.probing import (
    WordStates,
    control_tags,
    draw_probes,
    length_tags,
    probe_layers,
    word_states,
)
from bert.model import Bert
from bert.tokenization import Tokenizer

WORDS = "the cat sat on mat and dog ran to it".split()
TOKENIZER = Tokenizer(
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "k", "##e", "##us", "##s"]
)
SHAPE = BertConfig(
    vocab_size=TOKENIZER.vocab_size, hidden_size=12, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=20, max_position_embeddings=12, initializer_range=0.5,
)  # fmt: skip


def test_a_words_state_is_that_of_its_first_piece(monkeypatch):
    monkeypatch.setattr("bert.internals.probing.TOKENS", 12)  # more than one batch
    model = Bert(SHAPE).eval()
    sentences = [["the", "cats", "\x07", "sat"], ["\x07"], ["keus", "ran"], ["it"]]
    tags = [list("abcd"), ["x"], list("ef"), ["g"]]
    found = word_states(model, TOKENIZER, sentences, tags)
    assert found.words == ["the", "cats", "sat", "keus", "ran", "it"]
    assert found.tags == list("abdefg")  # what has no piece is left out
    assert found.sentences == [0, 0, 0, 2, 2, 3]
    places = [(0, 1), (0, 2), (0, 4), (1, 1), (1, 4), (2, 1)]
    texts = ["the cats sat", "keus ran", "it"]
    for layer, states in enumerate(found.states):
        for state, (text, place) in zip(states, places, strict=True):
            ids = torch.tensor([TOKENIZER.encode(texts[text]).ids])
            hidden = model(ids, output_hidden_states=True).hidden_states
            np.testing.assert_allclose(state, hidden[layer][0, place].detach(), atol=1e-5)


def test_words_beyond_the_models_positions_are_left_out():
    sentences = [["the"] * 8 + ["keus", "dog"], ["it"]]
    found = word_states(Bert(SHAPE).eval(), TOKENIZER, sentences, [["a"] * 10, ["b"]])
    assert found.words == ["the"] * 8 + ["it"]  # "keus" has three pieces, and there is room for 2


def planted(sentences=120, length=5, types=120):
    """Words of random types and tags; their states are noise, the tag, the word, in turn."""
    generator = np.random.default_rng(0)
    type_of = generator.integers(types, size=sentences * length)
    tags = generator.integers(3, size=sentences * length)
    noise = generator.normal(size=(sentences * length, 5)).astype(np.float32)
    identity = np.eye(types, dtype=np.float32)[type_of]
    states = [noise, np.eye(3, dtype=np.float32)[tags] + 0.1 * noise[:, :3], identity]
    return WordStates(
        [np.pad(state, ((0, 0), (0, types - state.shape[1]))) for state in states],
        [f"w{number}" for number in type_of],
        [number // length for number in range(sentences * length)],
        [f"t{number}" for number in tags],
    )


def test_the_planted_tag_is_found_and_the_control_is_not(tmp_path):
    pytest.importorskip("sklearn")
    probing = probe_layers(planted())
    noise, tag, word = probing.probes
    assert [probe.layer for probe in probing.probes] == [0, 1, 2]
    assert tag.accuracy == 1 and tag.control < 0.45 and tag.selectivity > 0.5
    assert noise.accuracy < 0.45 and noise.control < 0.45
    # The word's identity knows what the control wants, where the word was met, and no tag.
    assert word.accuracy < 0.45 and word.control > 0.8 and word.selectivity < -0.4
    assert word.control <= probing.known + 0.05 and 0.9 < probing.known < 1
    assert 1 / 3 < probing.majority + 0.1 < 0.55
    assert probing.learnt + probing.tested == 600 and 0.2 < probing.tested / 600 < 0.4
    assert probe_layers(planted()) == probing
    assert probe_layers(planted(), seed=1) != probing
    pytest.importorskip("matplotlib")
    draw_probes(probing, tmp_path / "probes.png")
    assert (tmp_path / "probes.png").stat().st_size > 5_000


def test_a_sentence_is_learnt_from_or_tested_on_as_a_whole():
    """States that say which sentence a word is of, whose tags are the sentence's, tell nothing."""
    pytest.importorskip("sklearn")
    found = planted()
    of = np.array(found.sentences)
    tags = [f"t{number % 2}" for number in of]
    states = [np.eye(of.max() + 1, dtype=np.float32)[of]]
    (probe,) = probe_layers(WordStates(states, found.words, found.sentences, tags)).probes
    assert probe.accuracy < 0.65


def test_the_control_gives_a_type_one_tag_as_often_as_the_tags_are():
    words = [f"w{number}" for number in range(3000)]
    tags = ["a", "a", "a", "b"] * 750
    drawn = control_tags(words, tags)
    assert drawn == control_tags(words[:1500], tags) + control_tags(words[1500:], tags)
    assert drawn != control_tags(words, tags, seed=1)
    assert Counter(drawn)["a"] / 3000 == pytest.approx(0.75, abs=0.03)
    assert len(set(control_tags(["x"] * 50, tags))) == 1


def test_lengths_as_tags():
    sentences = [["a"] * n for n in (9, 1, 2, 5, 4, 30)]
    kinds = [tags[0] for tags in length_tags(sentences)]
    assert kinds == ["2", "0", "0", "1", "1", "2"]
    assert [len(tags) for tags in length_tags(sentences)] == [9, 1, 2, 5, 4, 30]
    assert {tags[0] for tags in length_tags(sentences, 2)} == {"0", "1"}


@pytest.mark.errors
def test_what_cannot_be_probed():
    model = Bert(SHAPE).eval()
    with pytest.raises(ValueError, match="tags: expected 2 for sentence 1, one a word, got 1"):
        word_states(model, TOKENIZER, [["it"], ["a", "b"]], [["x"], ["y"]])
    with pytest.raises(ValueError, match="sentences: expected at least one word, got none"):
        word_states(model, TOKENIZER, [["\x07"]], [["x"]])
    with pytest.raises(ValueError, match="model: expected evaluation mode"):
        word_states(model.train(), TOKENIZER, [["it"]], [["x"]])
    with pytest.raises(ValueError, match="kinds: expected 2 or more, got 1"):
        length_tags([["it"]], 1)
    with pytest.raises(ValueError, match="sentences: expected at least one, got none"):
        length_tags([])
    found = planted()
    alike = WordStates(found.states, found.words, found.sentences, ["a"] * len(found.words))
    with pytest.raises(ValueError, match="tags: expected .*got 1 tags in "):
        probe_layers(alike)
    one = WordStates([state[:8] for state in found.states], ["a"] * 8, [0] * 8, ["a", "b"] * 4)
    with pytest.raises(ValueError, match="tags: expected .* to test on"):
        probe_layers(one)
