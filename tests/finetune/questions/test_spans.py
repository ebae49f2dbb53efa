"""The best spans, against a search of all of them."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.questions.spans import Span, Spans, find_spans
from finetune.questions.windows import OUTSIDE

WINDOWS = [(0, 9), (6, 15), (12, 17)]  # words of a context, two characters each


def make_windows(values, windows=WINDOWS):
    """Windows of [CLS], a question's token, [SEP], some words, [SEP], with logits."""
    made = []
    values = iter(values)
    for first, end in windows:
        edges = [(2 * i, 2 * i + 1) for i in range(first, end)]
        characters = np.array([(OUTSIDE, OUTSIDE)] * 3 + edges + [(OUTSIDE, OUTSIDE)], np.int32)
        logits = np.array([[next(values), next(values)] for _ in characters], np.float32)
        made.append((logits, characters))
    return made


def all_spans(windows, longest):
    """Every span that is allowed, by a double loop; of one that is there twice the best score."""
    scores = {}
    for logits, characters in windows:
        for i, j in itertools.combinations_with_replacement(range(len(logits)), 2):
            if characters[i, 0] != OUTSIDE != characters[j, 0] and j - i < longest:
                place = int(characters[i, 0]), int(characters[j, 1])
                score = float(logits[i, 0]) + float(logits[j, 1])
                scores[place] = max(score, scores.get(place, -np.inf))
    return sorted((-score, place) for place, score in scores.items())


COUNT = sum(end - first + 4 for first, end in WINDOWS) * 2
numbers = st.lists(
    st.one_of(st.integers(-3, 3).map(float), st.floats(-9, 9, width=32)),
    min_size=COUNT, max_size=COUNT,
)  # fmt: skip


@settings(max_examples=30)
@given(numbers, st.integers(1, 12), st.integers(1, 30))
def test_the_best_spans_are_those_of_a_full_search(values, longest, n_best):
    windows = make_windows(values)
    found = find_spans(windows, n_best, longest)
    expected = all_spans(windows, longest)[:n_best]
    scores = [span.score for span in found.best]
    assert scores == pytest.approx([-negative for negative, _ in expected])
    assert found.best[0][:2] == expected[0][1]
    for span in found.best:
        assert span.start < span.end and (span.end - span.start + 1) // 2 <= longest
    assert found.null_score == min(float(lo[0, 0]) + float(lo[0, 1]) for lo, _ in windows)


def test_where_the_logits_are_infinite_or_no_numbers_there_is_no_span():
    windows = make_windows(itertools.repeat(float("nan")))
    assert find_spans(windows, 5, 5).best == []
    assert find_spans(make_windows(itertools.repeat(0.0), [(3, 3)]), 5, 5).best == []


def test_the_text_is_the_contexts_own():
    assert Span(2, 8, 0.0).text("a Çà—B c") == "Çà—B c"
    assert Span(0, 3, 0.0).text("a\ud800b") == "a\ufffdb"


def test_no_answer_is_one_where_its_odds_exceed_the_threshold():
    spans = Spans([Span(0, 1, 2.0), Span(0, 2, 1.0)], 2.5)
    assert spans.null_odds == 0.5
    assert [spans.is_null(threshold) for threshold in (None, 0.4, 0.5)] == [False, True, False]
    shares = np.exp([2.0, 1.0, 2.5]) / np.exp([2.0, 1.0, 2.5]).sum()
    assert spans.probability(0.4) == pytest.approx(shares[2])
    assert spans.probability(0.5) == pytest.approx(shares[0])
    assert spans.probability(None) == pytest.approx(1 / (1 + np.exp(-1)))


def test_a_context_without_a_token_has_no_answer():
    spans = Spans([], -3.0)
    assert spans.is_null(None) and spans.is_null(9.0) and spans.null_odds == np.inf
    assert spans.probability(None) == spans.probability(0.0) == 1.0
