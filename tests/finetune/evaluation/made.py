"""Predictions of which the truth is known: drawn from a stated distribution."""

import numpy as np

from finetune.evaluation.predictions import Predictions

NAMES = ("bad", "fair", "good")


def drawn(rows, seed=0, classes=3, skill=1.0, names=None):
    """Logits that are normal, and greater by `skill` for the true class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    logits = rng.normal(size=(rows, classes)) + skill * np.eye(classes)[labels]
    names = names or (NAMES if classes == 3 else tuple(f"class {i}" for i in range(classes)))
    return Predictions(names, labels, logits.astype(np.float32))


def certain(labels, predicted, names=NAMES):
    """Predictions that are stated outright."""
    logits = np.where(np.eye(len(names))[np.array(predicted)] == 1, 2.0, 0.0)
    return Predictions(names, np.array(labels), logits.astype(np.float32))
