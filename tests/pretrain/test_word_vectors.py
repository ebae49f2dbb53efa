import numpy as np
import pytest
import torch

from bert.tokenization import Tokenizer
from pretrain import word_vectors as module
from pretrain.preparation import prepare
from pretrain.word_vectors import count_neighbours, word_vectors

WORDS = ["king", "queen", "rules", "land", "dog", "cat", "chases", "mouse", "the", "a"]


@pytest.fixture
def corpus(tmp_path):
    tokenizer = Tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "never"])
    rng = np.random.default_rng(0)
    documents = []
    for _ in range(60):
        subject, verb, thing = (
            ("king queen", "rules", "land")
            if rng.random() < 0.5
            else ("dog cat", "chases", "mouse")
        )
        articles = rng.choice(["the", "a"], 2)
        documents.append(
            f"{articles[0]} {rng.choice(subject.split())} {verb} {articles[1]} {thing}"
        )
    (tmp_path / "text.txt").write_text("\n\n".join(documents))
    return prepare([tmp_path / "text.txt"], tmp_path / "data", tokenizer, progress=False)


def slow_counts(corpus, window):
    """The definition, one pair at a time."""
    counts = np.zeros((corpus.manifest["vocab_size"],) * 2)
    for first, last in zip(corpus.document_offsets, corpus.document_offsets[1:], strict=False):
        tokens = corpus.tokens[corpus.sentence_offsets[first] : corpus.sentence_offsets[last]]
        for i in range(len(tokens)):
            for j in range(max(0, i - window), min(len(tokens), i + window + 1)):
                if i != j:
                    counts[tokens[i], tokens[j]] += 1
    return counts


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("piece", [1 << 22, 7])
def test_counts_are_the_definitions_and_stay_in_documents(corpus, window, piece, monkeypatch):
    monkeypatch.setattr(module, "_PIECE", piece)
    counts = count_neighbours(corpus, window).to_dense().numpy()
    np.testing.assert_allclose(counts, slow_counts(corpus, window), rtol=1e-5)


def test_words_of_a_kind_come_to_lie_together(corpus):
    vectors = word_vectors([corpus], 4, seed=0)
    unit = torch.nn.functional.normalize(vectors, dim=1)
    of = {word: unit[5 + i] for i, word in enumerate(WORDS)}
    assert of["king"] @ of["queen"] > 0.8 and of["dog"] @ of["cat"] > 0.8
    assert of["king"] @ of["dog"] < 0.5 and of["land"] @ of["mouse"] < 0.5


def test_scale_seed_and_tokens_that_never_occur(corpus):
    vectors = word_vectors([corpus], 4, seed=0)
    assert vectors.shape == (16, 4) and vectors.dtype == torch.float32
    assert (vectors[:5] == 0).all() and (vectors[-1] == 0).all()
    assert vectors[5:15].square().mean().sqrt() == pytest.approx(1, abs=1e-5)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert torch.equal(vectors, word_vectors([corpus], 4, seed=0))
    assert torch.equal(state, torch.get_rng_state())
    # More columns than the text has directions are zeros, not noise.
    assert word_vectors([corpus], 40, seed=0).shape == (16, 40)


def test_each_corpus_weighs_the_same_whatever_its_size(corpus, tmp_path):
    """Text twice as long by repetition changes nothing; other text does."""
    tokenizer = Tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "never"])

    def prepared(name, text):
        (tmp_path / name).write_text(text)
        return prepare([tmp_path / name], tmp_path / f"{name}.data", tokenizer, progress=False)

    once = "king never rules\n\nqueen never rules"
    little, more = prepared("little", once), prepared("more", "\n\n".join([once] * 50))
    both = word_vectors([corpus, little], 4, seed=0)
    torch.testing.assert_close(both, word_vectors([corpus, more], 4, seed=0), rtol=0, atol=1e-4)
    assert not torch.allclose(both, word_vectors([corpus], 4, seed=0), atol=0.1)
    assert (both[-1] != 0).any()
