"""Intervals against scipy's, against scikit-learn's scores, and against how often they hold."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

import finetune.evaluation.resampling as resampling
from finetune.evaluation.predictions import Predictions, score_confusions
from finetune.evaluation.resampling import differences, intervals, scores, wilson
from tests.finetune.evaluation.made import certain, drawn

METRICS = tuple(Predictions.titles)


@pytest.mark.parametrize("seed", range(20))
def test_scores_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    classes, rows = int(rng.integers(2, 6)), int(rng.integers(1, 40))
    labels, predicted = rng.integers(0, classes, (2, rows))
    all_classes = list(range(classes))
    matrix = sklearn.metrics.confusion_matrix(labels, predicted, labels=all_classes)
    found = score_confusions(np.stack([matrix, matrix.T]).astype(np.float64))
    f1 = sklearn.metrics.f1_score(
        labels, predicted, labels=all_classes, average="macro", zero_division=0
    )
    assert found["accuracy"][0] == pytest.approx((labels == predicted).mean(), abs=1e-12)
    assert found["macro_f1"] == pytest.approx([f1, f1], abs=1e-12)
    mcc = sklearn.metrics.matthews_corrcoef(labels, predicted)
    assert found["mcc"] == pytest.approx([mcc, mcc], abs=1e-12)
    made = certain(labels, predicted, tuple(map(str, all_classes)))
    assert scores(made)["macro_f1"] == pytest.approx(f1, abs=1e-12)
    # One of several classes each: micro F1 is the accuracy, as the report says.
    micro = sklearn.metrics.f1_score(labels, predicted, labels=all_classes, average="micro")
    assert scores(made)["accuracy"] == pytest.approx(micro, abs=1e-12)


def test_intervals_are_those_of_scipy_that_draws_rows():
    made = drawn(150, seed=3)

    def macro_f1(labels, predicted):
        hits = [
            2 * ((labels == c) & (predicted == c)).sum()
            / max(1, (labels == c).sum() + (predicted == c).sum())
            for c in range(3)
        ]  # fmt: skip
        return np.mean(hits)

    def mcc(labels, predicted):
        one_hot = [np.eye(3)[each] - np.eye(3)[each].mean(0) for each in (labels, predicted)]
        return (one_hot[0] * one_hot[1]).sum() / np.sqrt(
            (one_hot[0] ** 2).sum() * (one_hot[1] ** 2).sum()
        )

    ours = intervals(made)
    for name, statistic, data in (
        ("macro_f1", macro_f1, (made.labels, made.predicted)),
        ("mcc", mcc, (made.labels, made.predicted)),
        ("loss", np.mean, (made.losses,)),
    ):
        theirs = scipy.stats.bootstrap(
            data, statistic, paired=len(data) > 1, vectorized=False, n_resamples=2000,
            method="percentile", rng=np.random.default_rng(1),
        ).confidence_interval  # fmt: skip
        # An end is a quantile of 2,000 draws: its standard error is 0.06 of the scores', and that
        # of the difference of two such 0.085; a width's is 1.4 times that. Three of them each.
        deviation = (theirs.high - theirs.low) / 3.92
        assert ours[name] == pytest.approx((theirs.low, theirs.high), abs=0.255 * deviation), name
        width = ours[name].high - ours[name].low
        assert width == pytest.approx(3.92 * deviation, abs=0.36 * deviation), name


def population_of(skill, classes=3):
    """The scores that a model has on all rows that there could be, nearly: on a million."""
    return scores(drawn(1_000_000, seed=99, classes=classes, skill=skill))


def test_intervals_hold_the_truth_as_often_as_they_say():
    truth, files = population_of(1.0), 200
    held = dict.fromkeys(METRICS, 0)
    for seed in range(files):
        for name, (low, high) in intervals(drawn(200, seed)).items():
            held[name] += low <= truth[name] <= high
    # Of 200 such, 95 of 100 are 190, with a standard error of 3.1.
    for name, count in held.items():
        assert 178 <= count <= 199, (name, count)


@pytest.mark.slow
def test_intervals_of_differences_hold_the_truth_as_often_as_they_say():
    truth = [population_of(skill) for skill in (1.0, 1.4)]
    held, files = dict.fromkeys(METRICS, 0), 150
    for seed in range(files):
        pair = [drawn(200, seed, skill=skill) for skill in (1.0, 1.4)]
        for name, found in differences(*pair).items():
            held[name] += (
                found.interval.low <= truth[1][name] - truth[0][name] <= found.interval.high
            )
    for name, count in held.items():
        assert 132 <= count <= 150, (name, count)


def test_wilson_holds_where_every_row_is_right():
    # n / (n + z²), by hand.
    assert wilson(50, 50) == pytest.approx((50 / (50 + 1.959964**2), 1), abs=1e-6)
    everything = certain([0, 1, 2] * 10, [0, 1, 2] * 10)
    found = intervals(everything)
    assert found["accuracy"].low < 0.9 and found["macro_f1"] == (1, 1)


def test_rows_are_drawn_in_pairs():
    first = drawn(100, seed=5)
    same = differences(first, first)
    assert {name: d.interval for name, d in same.items()} == dict.fromkeys(METRICS, (0, 0))
    # A second that is right in every row that the first is, and in ten more, is never worse.
    predicted = first.predicted.copy()
    wrong = np.flatnonzero(~first.correct)[:10]
    predicted[wrong] = first.labels[wrong]
    found = differences(certain(first.labels, first.predicted), certain(first.labels, predicted))
    assert found["accuracy"].value == pytest.approx(0.1)
    assert 0 < found["accuracy"].interval.low < 0.1 < found["accuracy"].interval.high
    assert found["loss"].value < 0 and found["loss"].interval.high < 0


def test_chunks_change_nothing(monkeypatch):
    pair = drawn(60, seed=1), drawn(60, seed=1, skill=2.0)
    whole = intervals(pair[0]), differences(*pair)
    monkeypatch.setattr(resampling, "CHUNK", 999)
    assert (intervals(pair[0]), differences(*pair)) == whole
    assert intervals(pair[0], seed=1) != whole[0]
