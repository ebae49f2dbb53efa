"""What a corpus is like: against numpy's quantiles and a count of Unicode's categories."""

import random
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain import quality
from pretrain.preparation import prepare
from pretrain.quality import DocumentJudge, describe_quality, render_quality
from tests.pretrain.texts import TOKENIZER, make_documents, write_text


@pytest.mark.parametrize("block", [7, 1 << 20])
def test_lengths_and_shares_are_those_of_the_definition(tmp_path, monkeypatch, block):
    monkeypatch.setattr(quality, "_BLOCK", block)
    text = write_text(tmp_path / "text.txt", make_documents(60))
    corpus = prepare([text], tmp_path / "out", TOKENIZER, progress=False)
    found = corpus.manifest["quality"]
    sentences = np.diff(corpus.sentence_offsets)
    documents = np.diff(corpus.sentence_offsets[corpus.document_offsets])
    shares = {"p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95}
    for name, lengths in (("sentence", sentences), ("document", documents)):
        expected = {
            key: np.quantile(lengths, share, method="inverted_cdf")
            for key, share in shares.items()
        }
        assert found[f"{name}_tokens"] == {"min": lengths.min(), **expected, "max": lengths.max()}
    assert found["short_share"] == pytest.approx((documents < 16).mean(), abs=1e-6) and (
        0 < found["short_share"] < 1
    )
    unknown = (corpus.tokens == TOKENIZER.unk_id).mean()
    assert found["unknown_share"] == pytest.approx(unknown, abs=1e-6)
    per_token = corpus.manifest["characters"] / len(corpus.tokens)
    assert found["characters_per_token"] == pytest.approx(per_token, abs=1e-4)


def test_lengths_beyond_the_histogram_are_given_as_its_end(monkeypatch):
    monkeypatch.setattr(quality, "LONGEST_COUNTED", 50)
    counts = dict.fromkeys(
        ("characters", "unknown_tokens", "marks_documents", "repetitive_documents"), 0
    )
    offsets = np.array([0, 10, 20, 1000])
    found = describe_quality(
        {**counts, "documents": 3, "tokens": 1000}, offsets, np.array([0, 1, 2, 3])
    )
    assert found["document_tokens"] == {
        "min": 10, "p5": 10, "p25": 10, "median": 10, "p75": 50, "p95": 50, "max": 980
    }  # fmt: skip


@given(st.lists(st.text(), max_size=3))
def test_marks_are_digits_punctuation_and_symbols(paragraphs):
    solid = [c for paragraph in paragraphs for c in paragraph if not c.isspace()]
    marks = [c for c in solid if unicodedata.category(c)[0] in "NPS"]
    assert judged(*paragraphs)[0] == (2 * len(marks) > len(solid))


def judged(*paragraphs):
    judge = DocumentJudge()
    for paragraph in paragraphs:
        judge.add(paragraph)
    judge.end_document()
    return judge.counts["marks_documents"], judge.counts["repetitive_documents"]


def test_odd_documents_are_told_from_prose():
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=6)) for _ in range(500)]
    prose = [" ".join(rng.choices(words, k=50)) + "." for _ in range(10)]
    assert judged(*prose) == (0, 0)
    assert judged("नमस्ते दुनिया, कैसे हैं आप?") == (0, 0)  # the vowel signs are no marks
    assert judged("ab 12") == (0, 0)  # half of them is not more than half
    assert judged("ab 123") == (1, 0)
    assert judged("1 | 2.50 | €3", "----") == (1, 0)
    assert judged(*["the same again and again"] * 60) == (0, 1)
    assert judged("the same again and again " * 60) == (0, 1)
    assert judged(*["the same again and again"] * 10) == (0, 0)  # too short to be judged


def test_a_document_ends_where_it_ends(tmp_path):
    text = write_text(tmp_path / "text.txt", [["1 2 3", "cat"], ["cat"], ["4 5 6 7"], ["dog 1"]])
    corpus = prepare([text], tmp_path / "out", TOKENIZER, progress=False)
    assert corpus.manifest["marks_documents"] == 1
    assert corpus.manifest["quality"]["marks_share"] == 0.25


def test_the_report_for_people(tmp_path):
    text = write_text(tmp_path / "text.txt", [["cat"] * 3, ["cat"], ["cat"]])
    corpus = prepare([text], tmp_path / "out", TOKENIZER, drop_duplicates=True, progress=False)
    assert render_quality(corpus.manifest) == (
        "2 documents, 4 sentences, 4 tokens\n"
        "left out: 1 duplicate documents, 0 bad rows\n"
        "3.00 characters per token, 0.000% unknown tokens\n"
        "tokens of a document: min 1, p5 1, p25 1, median 1, p75 3, p95 3, max 3\n"
        "tokens of a sentence: min 1, p5 1, p25 1, median 1, p75 1, p95 1, max 1\n"
        "documents under 16 tokens 100.00%, mostly digits and punctuation 0.00%, repetitive 0.00%"
    )
