"""Two runs on the same rows: the test, what it says, and what can't be compared."""

import json
import math

import numpy as np
import pytest

from bert.cli import main
from finetune.evaluation.compare import compare, conclude, read_evaluation, sign_test
from finetune.evaluation.kinds import name_of
from finetune.evaluation.records import write_predictions
from tests.finetune.evaluation.made import certain

NAMES = ("bad", "good")


def pair_of(both, only_first, only_second, neither):
    """Two sets of predictions that are right together, apart, and not at all, so many times."""
    first = [1] * both + [1] * only_first + [0] * only_second + [0] * neither
    second = [1] * both + [0] * only_first + [1] * only_second + [0] * neither
    labels = [1] * len(first)
    return certain(labels, first, NAMES), certain(labels, second, NAMES)


@pytest.fixture
def leave(tmp_path):
    """Leave predictions as a run does."""

    def write(name, predictions, sha256="a" * 64, **about):
        directory = tmp_path / name
        directory.mkdir(parents=True)
        rows = [{"line": i + 2, "text_a": "a"} for i in range(len(predictions))]
        write_predictions(directory / "predictions.jsonl", predictions, rows)
        about = {"file": "test.tsv", "sha256": sha256, "columns": {"label": "label"}, **about}
        about["kind"] = name_of(predictions)
        (directory / "evaluation.json").write_text(json.dumps(about))
        return directory

    return write


@pytest.mark.parametrize(("only_first", "only_second"), [(3, 12), (12, 3), (7, 7), (0, 1), (1, 9)])
def test_the_test_is_mcnemars(only_first, only_second):
    found = compare(*pair_of(20, only_first, only_second, 5))
    assert (found.only_first, found.only_second) == (only_first, only_second)
    apart, less = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(apart, i) for i in range(less + 1)) / 2**apart
    assert found.p_value == pytest.approx(min(1.0, 2 * tail))


def test_equal_models_are_told_apart_as_seldom_as_they_should():
    rng, told = np.random.default_rng(0), 0
    for _ in range(200):
        first = int(rng.binomial(30, 0.5))
        told += sign_test(first, 30 - first) < 0.05
    # An exact test errs at most 5 times of 100; of 30, 4.3 by the binomial distribution.
    assert 1 <= told <= 20


def test_what_may_be_concluded():
    def concluded(*counts):
        first, second = pair_of(*counts)
        return conclude(compare(first, second), first)

    assert concluded(50, 2, 20, 5).startswith("Model B is right in more rows")
    assert concluded(50, 20, 2, 5).startswith("Model A is right in more rows")
    for alike in ((50, 0, 0, 5), (50, 10, 12, 5), (50, 0, 5, 5)):
        assert concluded(*alike).startswith("It isn't shown that either model is right in more")


def test_the_command(leave, capsys):
    first, second = pair_of(50, 2, 20, 5)
    a, b = leave("a/test", first), leave("b", second)
    assert main(["finetune", "compare", str(a.parent), str(b)]) == 0
    out = capsys.readouterr().out
    assert f"A: {a}\nB: {b}\n77 rows of test.tsv\n" in out
    accuracy = next(line for line in out.splitlines() if line.startswith("accuracy")).split()
    assert accuracy[1:4] == [f"{52 / 77:.4f}", f"{70 / 77:.4f}", f"{18 / 77:+.4f}"]
    low, high = float(accuracy[4]), float(accuracy[6])
    assert 0 < low < 18 / 77 < high
    assert "Only A is right in 2 rows, only B in 20: p = 0.00012 (McNemar, exact)." in out
    assert out.rstrip().endswith("only runs with several seeds could show.")


@pytest.mark.errors
def test_only_predictions_of_the_same_rows_are_compared(leave, capsys):
    one, two = pair_of(5, 2, 1, 1)
    first = leave("first", one)
    flipped = certain(1 - one.labels, one.predicted, NAMES)
    others = {
        "file": (
            two,
            {"sha256": "b" * 64},
            f"the same file as in {first}, test.tsv (SHA-256 aaaa",
        ),
        "classes": (certain(two.labels, two.predicted, ("x", "y")), {}, "the same classes as in "),
        "labels": (flipped, {}, f"the same labels as in {first}, those of columns {{'label': "),
    }
    for name, (predictions, about, message) in others.items():
        second = leave(name, predictions, **about)
        assert main(["finetune", "compare", str(first), str(second)]) == 2
        error = capsys.readouterr().err
        assert f"SECOND: expected {message}" in error and error.count("\n") == 1, error


@pytest.mark.errors
def test_a_directory_without_predictions_is_told(tmp_path, leave):
    with pytest.raises(ValueError, match="expected a run with a test file, or what bert finetune"):
        read_evaluation(tmp_path)
    directory = leave("a", pair_of(1, 1, 1, 1)[0])
    (directory / "evaluation.json").write_text('{"file": "x"}')
    with pytest.raises(ValueError, match="evaluation.json: expected a file and its sha256"):
        read_evaluation(directory)
    (directory / "evaluation.json").write_text("[1]")
    with pytest.raises(ValueError, match="evaluation.json: expected a file and its sha256"):
        read_evaluation(directory)
