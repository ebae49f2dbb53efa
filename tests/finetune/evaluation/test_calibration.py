"""Calibration against its definition, and on predictions that are calibrated by construction."""

import numpy as np
import pytest

from finetune.evaluation.calibration import BINS, calibrate
from finetune.evaluation.predictions import Predictions
from tests.finetune.evaluation.made import NAMES, drawn


def calibrated(rows, seed, sharpened=1.0):
    """Labels are drawn by the very probabilities that are stated; then these are sharpened."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.normal(size=(rows, 3))
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    labels = (rng.random((rows, 1)) > probabilities.cumsum(-1)).sum(-1).clip(max=2)
    return Predictions(NAMES, labels, (sharpened * logits).astype(np.float32))


def test_the_error_is_that_of_its_definition():
    made = drawn(300, skill=2.0)
    confidences, right = made.confidences, made.correct
    expected = 0.0
    for i in range(BINS):
        chosen = (confidences > i / BINS) & (confidences <= (i + 1) / BINS)
        if chosen.any():
            gap = abs(right[chosen].mean() - confidences[chosen].mean())
            expected += chosen.mean() * gap
    found = calibrate(made)
    assert found.error == pytest.approx(expected, abs=1e-12)
    assert sum(each.rows for each in found.bins) == 300
    for each in found.bins:
        assert each.low < each.confidence <= each.high
        assert each.interval.low <= each.accuracy <= each.interval.high


def test_certainty_is_in_the_last_bin():
    logits = np.array([[1000, 0], [0, 1000]], dtype=np.float32)
    found = calibrate(Predictions(NAMES[:2], np.array([0, 0]), logits))
    (only,) = found.bins
    assert (only.low, only.high) == (pytest.approx(1 - 1 / BINS), 1)
    assert (only.rows, only.confidence, only.accuracy) == (2, 1, 0.5)
    assert found.error == 0.5 and found.by_chance == 0


def test_a_calibrated_model_is_told_from_one_that_is_too_sure():
    kept = 0
    errors, expected = [], []
    for seed in range(60):
        found = calibrate(calibrated(400, seed))
        errors.append(found.error)
        expected.append(found.by_chance)
        kept += found.error <= found.by_chance_at_most
    # Of 60 such, 95 of 100 are 57, with a standard error of 1.7.
    assert 50 <= kept <= 60
    spread = np.std(errors) / np.sqrt(60)
    assert np.mean(errors) == pytest.approx(np.mean(expected), abs=4 * spread)
    too_sure = calibrate(calibrated(400, 0, sharpened=3.0))
    assert too_sure.error > 2 * too_sure.by_chance_at_most
