"""The report's text and numbers, and its pictures."""

import builtins
import json

import matplotlib.image
import numpy as np
import pytest
import sklearn.metrics

from finetune.evaluation.calibration import calibrate
from finetune.evaluation.pictures import draw_calibration, draw_confusion
from finetune.evaluation.report import Report, draw, write_evaluation
from finetune.evaluation.resampling import intervals
from finetune.metrics import score
from tests.finetune.evaluation.made import NAMES, certain, drawn


def score_of(made):
    return score(made.logits, made.labels, made.class_names)


def report_of(made):
    return Report.of(score_of(made), made)


def test_the_text_says_the_numbers():
    made = drawn(200, skill=2.0)
    report = report_of(made)
    assert report.text.startswith(score(made.logits, made.labels, NAMES).text)
    low, high = intervals(made)["macro_f1"]
    f1 = sklearn.metrics.f1_score(made.labels, made.predicted, average="macro")
    assert f"macro F1{f1:22.4f}   {low:.4f} to {high:.4f}\n" in report.text
    sure = (
        f"Calibration: {made.confidences.mean():.1%} sure on average and {made.correct.mean():.1%}"
    )
    assert sure in report.text
    assert f"expected calibration error {calibrate(made).error:.4f}." in report.text


def test_all_numbers_are_json():
    numbers = json.loads(json.dumps(report_of(drawn(50)).as_json(), allow_nan=False))
    assert numbers["micro_f1"] == numbers["accuracy"] and numbers["noise"] == []
    assert numbers["intervals"].keys() == {"accuracy", "macro_f1", "mcc", "loss"}
    assert sum(each["rows"] for each in numbers["calibration"]["bins"]) == 50


def test_one_row_and_no_mistake_have_a_report_too():
    for made in (certain([1], [1]), certain([0, 1, 2], [0, 1, 2])):
        json.dumps(report_of(made).as_json(), allow_nan=False)
        assert "nan" not in report_of(made).text


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("classes", [2, pytest.param(80, marks=pytest.mark.slow)])
def test_pictures_of_few_and_of_many_classes(tmp_path, classes):
    names = tuple(f"${i}_^{'x' * (i % 40)}" for i in range(classes))
    made = drawn(300, classes=classes, names=names)
    draw(made, tmp_path)
    for picture in ("confusion.png", "calibration.png"):
        pixels = matplotlib.image.imread(tmp_path / picture)
        assert min(pixels.shape[:2]) > 400
        assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 50


def test_a_picture_shows_its_numbers(tmp_path, monkeypatch):
    """The figures are caught as they are saved, and read."""
    from matplotlib.figure import Figure

    caught = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: caught.append(figure))
    made = drawn(200, seed=4, skill=2.0)
    confusion = np.array(score_of(made).confusion)
    draw_confusion(confusion, NAMES, tmp_path / "confusion.png")
    axis = caught[0].axes[0]
    assert {text.get_position(): int(text.get_text()) for text in axis.texts} == {
        (predicted, true): confusion[true, predicted]
        for true in range(3)
        for predicted in range(3)
    }
    assert axis.yaxis_inverted()  # the first class is above, as in the text
    assert [label.get_text() for label in axis.get_yticklabels()] == list(NAMES)
    assert axis.get_title() == f"{made.correct.sum()} of 200 rows right"

    found = calibrate(made)
    draw_calibration(found, 3, tmp_path / "calibration.png")
    above, below = caught[1].axes
    line = next(line for line in above.lines if line.get_marker() == "o")
    expected = [(each.confidence, each.accuracy) for each in found.bins]
    np.testing.assert_allclose(line.get_xydata(), expected)
    assert [bar.get_height() for bar in below.patches] == [each.rows for each in found.bins]
    ends = above.get_ylim()
    assert all(ends[0] <= end <= ends[1] for each in found.bins for end in each.interval)


def test_without_matplotlib_the_rest_is_there(tmp_path, monkeypatch, capsys):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}", name="matplotlib")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    made = drawn(5)
    rows = [{"line": i + 2, "text_a": "a"} for i in range(5)]
    about = {"file": "some.tsv", "sha256": "0"}
    write_evaluation(tmp_path / "out", score_of(made), made, rows, about)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "evaluation.json", "predictions.jsonl", "report.txt", "mistakes.html"
    }  # fmt: skip
    assert "no pictures of the predictions: install the extra report" in capsys.readouterr().err
