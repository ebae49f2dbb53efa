"""A saved model on a file: the run's own numbers again, other files, noise, and the command."""

import json
from pathlib import Path

import numpy as np
import pytest

from bert.cli import main
from finetune.evaluation.config import EvaluateConfig
from finetune.evaluation.evaluate import evaluate
from finetune.evaluation.predictions import read_predictions
from tests.finetune.conftest import planted, write_tsv

FILES = {
    "evaluation.json", "predictions.jsonl", "report.txt", "mistakes.html", "confusion.png",
    "calibration.png",
}  # fmt: skip


def configure(learned, file, out, **changes):
    fields = {"max_length": 32, "device": "cpu", "threads": 1} | changes
    return EvaluateConfig(learned.model, file, out, **fields)


@pytest.fixture(scope="module")
def evaluated(learned, files, tmp_path_factory):
    """The test file of the run, evaluated again, with noise."""
    out = tmp_path_factory.mktemp("evaluated") / "out"
    config = configure(
        learned, files["test"], out, noise=("words", "case", "typos"), noise_rates=(0.1, 1.0)
    )
    return out, evaluate(config)


def test_a_run_leaves_its_predictions_and_what_is_made_of_them(learned, files):
    for purpose in ("validation", "test"):
        directory = learned.run_dir / purpose
        assert {path.name for path in directory.iterdir()} == FILES
        made = read_predictions(directory / "predictions.jsonl")
        assert (made.predicted == made.labels).mean() == learned.scores[purpose].accuracy
        lines = [json.loads(x) for x in (directory / "predictions.jsonl").open(encoding="utf-8")]
        written = [line.split("\t") for line in files[purpose].read_text().splitlines()[1:]]
        assert [[line["text_a"], line["gold"]] for line in lines] == written
        about = json.loads((directory / "evaluation.json").read_text())
        assert about["file"] == str(files[purpose])
        assert about["scores"]["accuracy"] == learned.scores[purpose].accuracy
        assert about["scores"]["micro_f1"] == about["scores"]["accuracy"]
        low, high = about["scores"]["intervals"]["accuracy"]
        assert low < about["scores"]["accuracy"] <= high
        report = (directory / "report.txt").read_text()
        assert report.startswith(learned.scores[purpose].text) and "95% interval" in report
        assert report in (learned.run_dir / "report.txt").read_text()


def test_a_saved_model_gives_the_runs_predictions_again(evaluated, learned):
    out, report = evaluated
    again = read_predictions(out / "predictions.jsonl")
    first = read_predictions(learned.run_dir / "test" / "predictions.jsonl")
    assert again.class_names == first.class_names == ("bad", "good")
    np.testing.assert_array_equal(again.logits, first.logits)
    assert report.scores == learned.scores["test"]
    assert report.text == (out / "report.txt").read_text()
    about = json.loads((out / "evaluation.json").read_text())
    assert about["max_length"] == 32 and about["model"] == str(learned.model)
    assert about["command"].startswith(f"bert finetune evaluate {learned.model} --file ")


def test_noise_takes_away_what_it_hides(evaluated):
    _, report = evaluated
    found = {(each.noise, each.rate): each for each in report.spoiled}
    assert list(found) == [(n, r) for n in ("words", "case", "typos") for r in (0.1, 1.0)]
    # One word decides, and only one is left, seldom that one.
    lost = found["words", 1.0].differences["accuracy"]
    assert lost.first == report.scores.accuracy and lost.interval.high < 0
    assert lost.second < 0.8 and lost.interval.low < lost.value < lost.interval.high
    assert found["words", 1.0].changed > 0.9 > found["words", 0.1].changed
    assert found["typos", 1.0].differences["accuracy"].interval.high < 0
    # The tokenizer knows no capitals, so there is no such noise.
    capitals = found["case", 1.0]
    assert capitals.changed == 0 and capitals.differences["accuracy"].interval == (0, 0)
    line = next(x for x in report.text.splitlines() if x.startswith("words 1 "))
    assert line.split()[2:5] == [
        f"{found['words', 1.0].changed:.1%}", f"{lost.second:.4f}", f"{-lost.value:+.4f}"
    ]  # fmt: skip


def test_another_file_may_number_the_classes(learned, tmp_path):
    rows = [(text, int(label == "good")) for text, label in planted(30, 7)]
    report = evaluate(configure(learned, write_tsv(tmp_path / "b.tsv", rows), tmp_path / "out"))
    assert report.scores.accuracy > 0.9


def test_the_command_and_what_it_may_replace(learned, files, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["finetune", "evaluate", str(learned.model), "--file", str(files["test"])]
    command += ["--out", str(out), "--max-length", "32", "--device", "cpu", "--noise", "words"]
    for asked in ([], ["--overwrite"]):
        assert main([*command, *asked]) == 0
        printed, said = capsys.readouterr()
        assert printed == (out / "report.txt").read_text() and "words 0.3" in printed
        assert str(files["test"]) in said
    assert {path.name for path in out.iterdir()} == FILES
    before = (out / "report.txt").stat().st_mtime_ns
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "--overwrite replaces it" in said
    assert (out / "report.txt").stat().st_mtime_ns == before


@pytest.mark.errors
def test_a_run_is_not_written_into(learned, files):
    before = {path: path.stat().st_mtime_ns for path in learned.run_dir.rglob("*")}
    with pytest.raises(ValueError, match="^out: expected a new directory, got .* other files"):
        evaluate(configure(learned, files["test"], learned.run_dir))
    with pytest.raises(ValueError, match="^out: expected a directory, got the file "):
        evaluate(configure(learned, files["test"], files["test"]))
    assert before == {path: path.stat().st_mtime_ns for path in learned.run_dir.rglob("*")}


@pytest.mark.errors
def test_what_cannot_be_evaluated_is_told(learned, tmp_path):
    odd = write_tsv(tmp_path / "odd.tsv", [("ban", "bad"), ("ban", "fair")])
    with pytest.raises(
        ValueError, match=r"odd.tsv, line 3, column 'label': expected a class that"
    ):
        evaluate(configure(learned, odd, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.errors
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise_rates": ()}, "noise_rates: expected one or more, above 0 and at most 1, got ()"),
        ({"noise_rates": (0.0,)}, "noise_rates: expected one or more, above 0 and at most 1, got"),
        ({"noise_rates": (0.1, 0.1)}, "noise_rates: expected each one once, got (0.1, 0.1)"),
        ({"noise": ("case", "case")}, "noise: expected each one once, got ('case', 'case')"),
        ({"max_length": 7}, "max_length: expected 8 tokens or more, got 7"),
        ({"batch_tokens": 0}, "batch_tokens: expected 1 or more, got 0"),
        ({"seed": -1}, "seed: expected 0 or more, got -1"),
    ],
)
def test_a_number_out_of_range_is_refused(changes, message):
    with pytest.raises(ValueError) as error:
        EvaluateConfig(Path("a"), Path("b"), Path("c"), **changes)
    assert str(error.value).startswith(message)
