"""The report, against scikit-learn asked directly and against numbers worked out by hand."""

import math
import sys

import numpy as np
import pytest
import sklearn.metrics

from finetune.metrics import require_scikit_learn, require_seqeval, score

NAMES = ("bad", "fair", "good")


def test_the_report_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    logits = rng.normal(size=(200, 3)) + 1.2 * np.eye(3)[labels]
    scores = score(logits.astype(np.float32), labels, NAMES)
    predicted = logits.argmax(1)
    expected = sklearn.metrics.classification_report(
        labels, predicted, target_names=NAMES, digits=4, output_dict=True
    )
    assert scores.per_class == {name: expected[name] for name in NAMES}
    assert (
        sklearn.metrics.classification_report(labels, predicted, target_names=NAMES, digits=4)
        in scores.text
    )
    assert scores.macro_f1 == expected["macro avg"]["f1-score"]
    assert scores.accuracy == expected["accuracy"] == (labels == predicted).mean()
    assert scores.mcc == pytest.approx(
        np.corrcoef(np.eye(3)[labels].ravel(), np.eye(3)[predicted].ravel())[0, 1], abs=0.02
    )
    assert scores.mcc == sklearn.metrics.matthews_corrcoef(labels, predicted)
    assert scores.confusion == sklearn.metrics.confusion_matrix(labels, predicted).tolist()
    assert scores.loss == pytest.approx(
        sklearn.metrics.log_loss(labels, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)),
        rel=1e-6,
    )


def test_by_hand():
    # True 0 0 0 1, predicted 0 0 1 1: precision of "bad" 1, recall 2/3; of "fair" 1/2 and 1.
    logits = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]], dtype=np.float32)
    scores = score(logits, np.array([0, 0, 0, 1]), NAMES)
    assert scores.confusion == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert scores.per_class["bad"] == {
        "precision": 1.0,
        "recall": pytest.approx(2 / 3),
        "f1-score": pytest.approx(0.8),
        "support": 3.0,
    }
    assert scores.per_class["fair"]["precision"] == 0.5
    # The class that isn't there counts as 0, and nothing is NaN.
    assert scores.per_class["good"]["f1-score"] == 0.0
    assert scores.macro_f1 == pytest.approx((0.8 + 2 / 3 + 0) / 3)
    right, wrong = -math.log(math.e / (math.e + 2)), -math.log(1 / (math.e + 2))
    assert scores.loss == pytest.approx((3 * right + wrong) / 4)
    assert "true \\ predicted  bad  fair  good" in scores.text
    assert "             bad    2     1     0" in scores.text


def test_logits_of_any_size_give_a_finite_loss():
    scores = score(
        np.array([[3e38, -3e38], [-1e30, 0]], dtype=np.float32), np.array([0, 1]), NAMES[:2]
    )
    assert scores.loss == 0.0


def test_numbers_can_be_logged():
    scores = score(np.zeros((2, 2), dtype=np.float32), np.array([0, 1]), NAMES[:2])
    assert scores.summary() == {
        "accuracy": 0.5,
        "macro_f1": pytest.approx(1 / 3),
        "mcc": 0.0,
        "loss": pytest.approx(math.log(2)),
    }


@pytest.mark.errors
@pytest.mark.parametrize(
    ("package", "name", "require"),
    [("sklearn", "scikit-learn", require_scikit_learn), ("seqeval", "seqeval", require_seqeval)],
)
def test_without_a_library_the_extra_is_named(monkeypatch, package, name, require):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"{package}.metrics", raising=False)
    with pytest.raises(ModuleNotFoundError) as error:
        require()
    assert str(error.value) == (
        f"{name} is missing; install the extra report: pip install -e .[report]"
    )
    assert error.value.name == package  # by which the command line knows it


@pytest.mark.filterwarnings("ignore:A single label")
def test_predictions_of_one_class_are_told_in_a_line():
    labels = np.array([0, 1, 2, 1])
    same = np.tile(np.array([[0.0, 2.0, 1.0]], np.float32), (4, 1))
    hint = "Hint: all 4 predictions are 'fair': nothing was learned"
    assert sum(line.startswith(hint) for line in score(same, labels, NAMES).text.splitlines()) == 1
    varied = same.copy()
    varied[0, 0] = 9.0
    assert "Hint" not in score(varied, labels, NAMES).text
    assert "Hint" not in score(same, np.array([1, 1, 1, 1]), NAMES).text  # as it should be
