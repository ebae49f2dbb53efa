"""What is written of predictions is read back as it was, and damage is told with its line."""

import json

import numpy as np
import pytest
from scipy.special import log_softmax

from finetune.evaluation.predictions import Predictions, read_predictions
from finetune.evaluation.records import read_records, write_predictions
from tests.finetune.evaluation.made import NAMES, drawn


def rows_of(predictions, **more):
    return [{"line": 2 * i + 3, "text_a": f"text {i}", **more} for i in range(len(predictions))]


def test_what_follows_from_logits():
    made = drawn(50)
    expected = log_softmax(made.logits.astype(np.float64), axis=-1)
    np.testing.assert_allclose(made.log_probabilities, expected, atol=1e-14)
    np.testing.assert_allclose(made.losses, -expected[np.arange(50), made.labels], atol=1e-14)
    np.testing.assert_allclose(made.confidences, np.exp(expected).max(-1), atol=1e-14)
    assert (made.correct == (made.logits.argmax(-1) == made.labels)).all()


def test_great_logits_have_finite_losses():
    logits = np.array([[3e38, -3e38], [-1e30, 0]], dtype=np.float32)
    made = Predictions(NAMES[:2], np.array([1, 1]), logits)
    assert np.isfinite(made.losses).all() and made.losses[1] == 0


def test_a_file_is_read_as_it_was_written(tmp_path):
    made, path = drawn(40), tmp_path / "predictions.jsonl"
    write_predictions(path, made, rows_of(made))
    again = read_predictions(path)
    assert again.class_names == made.class_names
    assert (again.labels == made.labels).all()
    assert (again.logits == made.logits).all() and (again.losses == made.losses).all()


def test_a_line_says_all_of_a_row(tmp_path):
    made, path = drawn(3), tmp_path / "predictions.jsonl"
    rows = rows_of(made, text_b="b\ud800\t“")
    write_predictions(path, made, rows)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["row"] for line in lines] == [1, 2, 3]
    assert [line["line"] for line in lines] == [3, 5, 7]
    for i, line in enumerate(lines):
        assert (line["text_a"], line["text_b"]) == (f"text {i}", "b\ufffd\t“")
        assert line["gold"] == NAMES[made.labels[i]]
        assert line["predicted"] == max(line["probabilities"], key=line["probabilities"].get)
        assert line["probabilities"][line["gold"]] == pytest.approx(
            np.exp(-line["loss"]), abs=1e-6
        )
    write_predictions(path, made, rows_of(made))
    assert "text_b" not in json.loads(path.read_text().splitlines()[0])
    assert read_records(path, {1}) == {1: json.loads(path.read_text().splitlines()[1])}


@pytest.mark.errors
@pytest.mark.parametrize(("count", "got"), [(2, "2"), (4, "more"), (0, "0")])
def test_rows_must_be_those_that_were_predicted(tmp_path, count, got):
    made, path = drawn(3), tmp_path / "predictions.jsonl"
    path.write_text("before")
    with pytest.raises(ValueError, match=f"^rows: expected 3, .* got {got}; was the file changed"):
        write_predictions(path, made, rows_of(drawn(4))[:count])
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "before"


@pytest.mark.errors
def test_logits_that_are_not_finite_are_refused():
    logits = np.zeros((3, 2), dtype=np.float32)
    logits[1, 0] = np.nan
    with pytest.raises(ValueError, match="^row 2: expected finite logits from the model, got NaN"):
        Predictions(NAMES[:2], np.zeros(3, dtype=np.int64), logits)


@pytest.mark.errors
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "expected JSON"),
        ("[1]", "expected an object, got [1]"),
        ('{"gold": "bad"}', "expected gold, one of the classes, and logits"),
        ('{"gold": "odd", "logits": {"bad": 1, "good": 0}}', "expected gold, one of the classes"),
        ('{"gold": "bad", "logits": {"bad": 1}}', "expected gold, one of the classes, and logits"),
        ('{"gold": "bad", "logits": {"bad": 1, "good": "x"}}', "expected gold, one of the cl"),
        ('{"gold": "bad", "logits": {"bad": 1, "good": 0, "x": 1}}', "expected gold, one of the"),
    ],
)
def test_damage_is_told_with_its_line(tmp_path, line, message):
    path = tmp_path / "predictions.jsonl"
    path.write_text('{"gold": "bad", "logits": {"bad": 1, "good": 0}}\n' + line + "\n")
    with pytest.raises(ValueError) as error:
        read_predictions(path)
    assert str(error.value).startswith(f"{path}, line 2: {message}")


@pytest.mark.errors
def test_an_empty_file_and_a_number_that_is_none_are_told(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text("")
    with pytest.raises(ValueError, match="expected predictions, got an empty file"):
        read_predictions(path)
    path.write_text('{"gold": "bad", "logits": {"bad": NaN, "good": 0}}\n')
    with pytest.raises(ValueError, match="predictions.jsonl, row 1: expected finite logits"):
        read_predictions(path)
