"""Noise hits what it says, as often as it says, and nothing else."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.evaluation.noise import Spoiler
from finetune.tables import Row

KINDS = ("typos", "case", "punctuation", "words")
TEXTS = st.text(st.sampled_from("abcdefgHIJß \t.,!'é电影1"), max_size=60)


def spoil(text, noise, rate, seed=0, line=1, text_b=None):
    return Spoiler(noise, rate, seed)(Row(line, text, text_b, "x"))


@pytest.mark.parametrize("noise", KINDS)
def test_it_follows_from_the_seed_the_noise_and_the_line(noise):
    text = "The quick, brown fox; it jumps over the lazy dog. " * 4
    rows = [spoil(text, noise, 0.3, seed, line).text_a for seed, line in ((0, 1), (0, 2), (1, 1))]
    assert len({text, *rows}) == 4
    assert spoil(text, noise, 0.3).text_a == rows[0]
    both = spoil(text, noise, 0.3, text_b=text)
    assert both.text_a == rows[0] and both.text_b not in (text, rows[0], None)
    assert (both.line, both.label) == (1, "x")


@pytest.mark.parametrize("noise", ["typos", "case"])
@given(text=TEXTS, seed=st.integers(0, 99))
def test_words_stay_where_they_are_and_a_higher_rate_hits_the_same_and_more(noise, text, seed):
    little, much = (spoil(text, noise, rate, seed).text_a.split() for rate in (0.2, 0.6))
    words = text.split()
    assert len(little) == len(much) == len(words)
    for word, low, high in zip(words, little, much, strict=True):
        assert low == word or low == high


@given(text=TEXTS, seed=st.integers(0, 99))
def test_a_typo_moves_drops_or_doubles_one_letter(text, seed):
    for word, found in zip(
        text.split(), spoil(text, "typos", 1, seed).text_a.split(), strict=True
    ):
        letters = [c for c in word if c.isalpha()]
        if len(letters) < 2:
            assert found == word
            continue
        assert found != word and abs(len(found) - len(word)) <= 1
        if len(found) == len(word):
            places = [i for i in range(len(word)) if word[i] != found[i]]
            assert places == [places[0], places[0] + 1]
            assert sorted(word) == sorted(found)
        else:
            short, long = sorted((word, found), key=len)
            i = next(i for i in range(len(long)) if long[:i] + long[i + 1 :] == short)
            assert long[i].isalpha()
            assert len(found) < len(word) or long[i] in (long[i - 1 : i] + long[i + 1 : i + 2])


@given(text=TEXTS, seed=st.integers(0, 99))
def test_case_changes_nothing_but_case(text, seed):
    found = spoil(text, "case", 1, seed).text_a
    assert found.casefold() == text.casefold()
    for word, spoilt in zip(text.split(), found.split(), strict=True):
        assert spoilt == (word.lower() if word.isupper() else word.upper())


@given(text=TEXTS, seed=st.integers(0, 99))
def test_signs_are_left_out_and_nothing_else(text, seed):
    bare = "".join(c for c in text if c not in string.punctuation)
    assert spoil(text, "punctuation", 1, seed).text_a == bare
    some = spoil(text, "punctuation", 0.5, seed).text_a
    assert "".join(c for c in some if c not in string.punctuation) == bare


def test_signs_of_every_script_count():
    assert spoil("“¿电影，好。…” $x$", "punctuation", 1).text_a == "电影好 x"


@given(text=TEXTS, seed=st.integers(0, 99))
def test_words_are_left_out_but_never_the_last(text, seed):
    words = text.split()
    for rate in (0.4, 1):
        left = spoil(text, "words", rate, seed).text_a.split()
        rest = iter(words)
        assert all(word in rest for word in left)  # in their order
        assert bool(left) == bool(words)
    assert len(left) == min(1, len(words))


@pytest.mark.parametrize(
    ("noise", "hits"),
    [
        ("typos", lambda text: sum(word != "word," for word in text.split())),
        ("case", lambda text: sum(word != "word," for word in text.split())),
        ("punctuation", lambda text: 5000 - text.count(",")),
        ("words", lambda text: 5000 - len(text.split())),
    ],
)
def test_a_rate_is_a_share(noise, hits):
    # Of 5,000, one of ten is 500, with a standard error of 21.
    assert abs(hits(spoil("word, " * 5000, noise, 0.1).text_a) - 500) < 85
