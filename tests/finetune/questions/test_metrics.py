"""Exact match and F1, held against SQuAD's definition, and its thresholds against a search."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.questions.metrics import exact_match, normalize, score_answers, word_f1

# Answer, right answers, exact match and F1, as transformers 4.57.1 computes them: `get_raw_scores`
# of its squad_metrics.py, the last version that has SQuAD's script.
CASES = [
    ("the Cat!", ["cat"], 1, 1.0),
    ("a cat, and the dog", ["cat and dog", "dogs"], 1, 1.0),
    ("", [], 1, 1),
    ("cat", [], 0, 0),
    ("", ["cat"], 0, 0),
    ("the", ["an"], 1, 1),
    ("the the cat", ["cat cat"], 0, 2 / 3),
    ("Paris in France", ["paris", "France"], 0, 0.5),
    ("14%", ["14 percent", "14"], 1, 1.0),
    ("thé—end", ["end"], 0, 0),
    ("the—end", ["end", "—end"], 1, 1.0),
    ("a’s", ["’s"], 1, 1.0),
    ("New\xa0York  city", ["new york CITY"], 1, 1.0),
    ("b b b c", ["b c c", "b b"], 0, 2 / 3),
    ("!!", ["?"], 1, 1),
    ("An Example", ["example of an"], 0, 2 / 3),
    ("U.S.A.", ["usa"], 1, 1.0),
    ("x-ray", ["x ray", "xray"], 1, 1.0),
]
ODDS = [0.5, -1, 2, -3, 0.25, 1, -2, 4, -0.5, 0, 3, -4, 1.5, -1.5, 2.5, 0.75, -0.25, 5]


@pytest.mark.parametrize(("answer", "right", "exact", "f1"), CASES)
def test_each_answer_is_worth_what_the_script_says(answer, right, exact, f1):
    scores = score_answers([answer], [right], [0.0], None)
    assert scores.exact == exact
    assert scores.f1 == pytest.approx(f1, abs=1e-12)


def test_all_together_are_what_the_script_says():
    # `squad_evaluate` of the same file on these, with no_answer_probability_threshold=1.
    scores = score_answers([c[0] for c in CASES], [c[1] for c in CASES], ODDS, 1.0)
    assert scores.as_json() == {
        "exact": pytest.approx(0.38888888888888886),
        "f1": 0.5,
        "questions": 18,
        "HasAns": {"exact": 0.375, "f1": 0.5, "questions": 16},
        "NoAns": {"exact": 0.5, "f1": 0.5, "questions": 2},
        "best_threshold": {"f1": 0.75, "threshold": 5.0},
    }
    assert scores.summary() == {"f1": scores.f1, "exact": scores.exact}
    lines = scores.text.splitlines()
    assert lines[1].split() == ["all", "18", "0.3889", "0.5000"]
    assert "of all null thresholds: 0.7500, at 5.0000" in lines[-1]


def test_where_all_have_answers_there_is_one_kind():
    scores = score_answers(["cat", "dog"], [["cat"], ["a cat"]], [9.0, 9.0], None)
    assert scores.as_json() == {"exact": 0.5, "f1": 0.5, "questions": 2}
    assert len(scores.text.splitlines()) == 2


@given(st.text("ab the,.", max_size=12), st.text("ab the,.", max_size=12))
def test_f1_is_the_harmonic_mean_of_precision_and_recall(answer, right):
    words, wanted = normalize(answer).split(), normalize(right).split()
    left, hits = list(wanted), 0
    for word in words:
        if word in left:
            left.remove(word)
            hits += 1
    if hits:
        precision, recall = hits / len(words), hits / len(wanted)
        expected = 2 * precision * recall / (precision + recall)
    else:
        expected = float(not words and not wanted)
    assert word_f1(answer, right) == pytest.approx(expected)
    assert word_f1(answer, right) == pytest.approx(word_f1(right, answer))
    assert exact_match(answer, right) == (words == wanted)


rows = st.tuples(
    st.sampled_from(["cat", "cat sat", "dog", ""]),
    st.sampled_from([(), ("cat",), ("cat sat", "mat")]),
    st.sampled_from([-2.0, -0.5, 0.0, 1.0, 1.5]),
)


@given(st.lists(rows, min_size=1, max_size=8))
def test_the_best_threshold_is_the_best_of_all(chosen):
    spans, right, odds = zip(*chosen, strict=True)
    best = score_answers(spans, right, odds, None).best_threshold
    if not best:
        assert all(right)
        return
    thresholds = [-9.0, *odds]
    all_f1 = [score_answers(spans, right, odds, threshold).f1 for threshold in thresholds]
    assert best["f1"] == pytest.approx(max(all_f1))
    found = score_answers(spans, right, odds, best["threshold"])
    assert found.f1 == pytest.approx(best["f1"])
    assert best["threshold"] == np.float64(best["threshold"])
