"""Means, deviations and intervals, against scipy's and against simulation."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from finetune.studies.summary import Spread, read_scores, summarise, table

VALUES = (0.81, 0.79, 0.84, 0.80)


def test_the_interval_is_that_of_a_t_test():
    found = Spread.of(VALUES)
    theirs = stats.ttest_1samp(VALUES, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))
    assert found.mean == pytest.approx(np.mean(VALUES))
    assert found.deviation == pytest.approx(np.std(VALUES, ddof=1))


def test_the_overlap_of_folds_widens_the_interval_as_nadeau_and_bengio_say():
    plain, corrected = Spread.of(VALUES), Spread.of(VALUES, overlap=1 / 3)
    widened = (corrected.high - corrected.mean) / (plain.high - plain.mean)
    assert widened == pytest.approx(math.sqrt((1 / 4 + 1 / 3) / (1 / 4)))
    assert corrected.deviation == plain.deviation


def test_the_interval_holds_the_mean_in_95_of_100_cases():
    rng = np.random.default_rng(0)
    drawn = (Spread.of(rng.normal(0.8, 0.01, 4).tolist()) for _ in range(2000))
    held = sum(each.low <= 0.8 <= each.high for each in drawn)
    assert abs(held / 2000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_what_is_one_number_is_a_score(tmp_path):
    values = {"test": {"f1": 0.5, "rows": 3, "per_class": {"a": 1}, "is": True}, "training": {}}
    (tmp_path / "metrics.json").write_text(json.dumps(values))
    assert read_scores(tmp_path) == {"test": {"f1": 0.5, "rows": 3.0}}


def test_the_table_has_each_run_and_what_they_are_together():
    scores = [{"test": {"accuracy": value, "loss": 1 - value}} for value in (0.5, 0.75)]
    found = summarise(scores)["test"]
    assert table(["seed-0", "seed-1"], found, ["accuracy"]).splitlines() == [
        "                      accuracy",
        "seed-0                  0.5000",
        "seed-1                  0.7500",
        "",
        "mean                    0.6250",
        "standard deviation      0.1768",
        "95% from               -0.9633",
        "95% to                  2.2133",
    ]
