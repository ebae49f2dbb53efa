"""A prepared corpus: what is opened is what was written, or an error names the file."""

import pickle
import shutil

import numpy as np
import pytest

from bert.tokenization import Tokenizer
from pretrain.corpus import DOCUMENTS, MANIFEST, SENTENCES, TOKENS, Corpus
from pretrain.pairs import plan_pairs
from pretrain.preparation import prepare
from tests.pretrain.texts import DOCUMENTS_OF_TEXT, TOKENIZER, write_text


@pytest.fixture
def corpus(tmp_path):
    text = write_text(tmp_path / "text.txt", DOCUMENTS_OF_TEXT)
    return prepare([text], tmp_path / "corpus", TOKENIZER, progress=False)


def test_it_opens_as_it_was_written(corpus):
    again = Corpus.open(str(corpus.directory), verify=True)
    for name in ("tokens", "sentence_offsets", "document_offsets"):
        np.testing.assert_array_equal(getattr(again, name), getattr(corpus, name))
    assert again.manifest == corpus.manifest
    assert again.fingerprint == corpus.fingerprint
    with pytest.raises(ValueError, match="read-only"):
        again.tokens[0] = 1


@pytest.mark.parametrize("name", [TOKENS, SENTENCES, DOCUMENTS, MANIFEST])
def test_a_changed_byte_is_noticed(corpus, name):
    path = corpus.directory / name
    original = path.read_bytes()
    for place in np.linspace(0, len(original) - 1, 40).astype(int):
        for bit in (0, 3, 5):
            changed = bytearray(original)
            changed[place] ^= 1 << bit
            path.write_bytes(changed)
            with pytest.raises(ValueError, match=name):
                Corpus.open(corpus.directory, verify=True)
    path.write_bytes(original)
    Corpus.open(corpus.directory, verify=True)


@pytest.mark.parametrize("name", [TOKENS, SENTENCES, DOCUMENTS, MANIFEST])
def test_a_cut_or_missing_file_is_noticed_without_hashing(corpus, name):
    path = corpus.directory / name
    original = path.read_bytes()
    for size in (0, 1, len(original) // 2, len(original) - 1):
        path.write_bytes(original[:size])
        with pytest.raises(ValueError, match=name):
            Corpus.open(corpus.directory)
    path.write_bytes(original + b"\0")
    with pytest.raises(ValueError, match=name):
        Corpus.open(corpus.directory)
    path.unlink()
    with pytest.raises(ValueError, match=f"{name}: .*No such file"):
        Corpus.open(corpus.directory)


@pytest.mark.errors
def test_what_is_no_corpus_is_refused(tmp_path):
    with pytest.raises(ValueError, match="manifest.json: expected the manifest of a prepared"):
        Corpus.open(tmp_path / "absent")
    (tmp_path / MANIFEST).write_text("[1]")
    with pytest.raises(ValueError, match="manifest.json: its own SHA-256 does not fit"):
        Corpus.open(tmp_path)
    (tmp_path / MANIFEST).write_bytes(b"\xff{")
    with pytest.raises(ValueError, match="manifest.json: not JSON"):
        Corpus.open(tmp_path)


def test_another_tokenizer_is_refused(corpus):
    corpus.check_tokenizer(Tokenizer(TOKENIZER.vocab))
    with pytest.raises(ValueError, match="tokenizer: expected the one that .* was prepared with"):
        corpus.check_tokenizer(Tokenizer(TOKENIZER.vocab[:-1]))


def test_selected_documents_stand_alone(corpus):
    part = corpus.select(1, 3)
    begin, end = corpus.document_offsets[[1, 3]]
    assert part.document_offsets.tolist() == [
        0,
        corpus.document_offsets[2] - begin,
        end - begin,
    ]
    np.testing.assert_array_equal(part.sentence_offsets, corpus.sentence_offsets[begin : end + 1])
    # Its pairs hold none of the other documents' tokens.
    plan = plan_pairs(part.sentence_offsets, part.document_offsets, max_length=9, seed=0, epoch=0)
    first, last = corpus.sentence_offsets[[begin, end]]
    for start, length in ((plan.a_start, plan.a_length), (plan.b_start, plan.b_length)):
        assert start.min() >= first and (start + length).max() <= last
    again = part.select(1, 2)
    assert again.first_document == 2
    assert again.sentence_offsets[-1] == corpus.sentence_offsets[corpus.document_offsets[3]]
    assert len({c.fingerprint for c in (corpus, part, again, corpus.select(0, 2))}) == 4
    for first, last in ((0, 0), (2, 1), (-1, 2), (0, 99)):
        with pytest.raises(ValueError, match="first, last: expected a part of"):
            corpus.select(first, last)


def test_token_counts(corpus):
    counts = np.bincount(corpus.tokens, minlength=TOKENIZER.vocab_size)
    np.testing.assert_array_equal(corpus.token_counts(), counts)
    parts = [corpus.select(0, 2), corpus.select(2, len(corpus.document_offsets) - 1)]
    np.testing.assert_array_equal(sum(part.token_counts() for part in parts), counts)


def test_it_pickles_as_its_path(corpus):
    part = corpus.select(1, 3)
    content = pickle.dumps(part)
    assert len(content) < 1000
    again = pickle.loads(content)
    assert isinstance(again.tokens, np.memmap)
    assert again.fingerprint == part.fingerprint
    np.testing.assert_array_equal(again.document_offsets, part.document_offsets)
    np.testing.assert_array_equal(again.sentence_offsets, part.sentence_offsets)


def test_a_corpus_that_was_prepared_anew_is_another(corpus, tmp_path):
    content = pickle.dumps(corpus)
    shutil.rmtree(corpus.directory)
    text = write_text(tmp_path / "other.txt", DOCUMENTS_OF_TEXT[::-1])
    other = prepare([text], corpus.directory, TOKENIZER, progress=False)
    assert other.fingerprint != corpus.fingerprint
    with pytest.raises(ValueError, match="was prepared anew while it was in use"):
        pickle.loads(content)
