"""Each task's run leaves its answers, and evaluate and compare take its model and its report."""

import json
import random

import pytest

from bert.cli import main
from finetune import tasks
from finetune.evaluation.compare import read_evaluation
from finetune.evaluation.config import EvaluateConfig
from finetune.evaluation.evaluate import evaluate
from finetune.predictor import Predictor
from finetune.run import finetune as run_it
from tests.finetune.conftest import planted, sentence, write_squad, write_tsv
from tests.finetune.test_multiple_choice import planted_choices, write_rows
from tests.finetune.test_question_answering import planted_questions, squad
from tests.finetune.test_token_classification import sentences, write_conll

COMMON = {"evaluation.json", "predictions.jsonl", "report.txt", "mistakes.html"}
PICTURES = {
    "regression": {"scatter.png"},
    "multi-label": set(),
    "token-classification": {"confusion.png"},
    "question-answering": set(),
    "multiple-choice": {"calibration.png"},
}
OPTIONS = {"question-answering": ("null_threshold=0",)}


def write(task, path, count, seed):
    """Write a file of a task."""
    rng = random.Random(seed)
    if task == "regression":
        rows = [(sentence(rng), rng.choice((0.5, 1, 2.25))) for _ in range(count)]
        return write_tsv(path / f"{seed}.tsv", rows, ("text", "score"))
    if task == "multi-label":
        labels = ("x", "y", "x,y", "")
        rows = [(sentence(rng), labels[i % 4]) for i in range(count)]
        return write_tsv(path / f"{seed}.tsv", rows, ("text", "labels"))
    if task == "token-classification":
        return write_conll(path / f"{seed}.conll", sentences(count, seed))
    if task == "question-answering":
        rows = planted_questions(count, seed, impossible=0.3)
        return write_squad(path / f"{seed}.json", squad(rows))
    return write_rows(path / f"{seed}.jsonl", planted_choices(count, seed))


@pytest.fixture(scope="module")
def runs(configured, tmp_path_factory):
    """Of each task a run of few steps, with its test file."""
    found = {}
    for task in PICTURES:
        path = tmp_path_factory.mktemp(task)
        train, test = write(task, path, 40, 1), write(task, path, 25, 2)
        config = configured(
            {"budget": "3"}, out=path / "run", task=task, options=OPTIONS.get(task, ()),
            train_file=train, validation_file=None, test_file=test,
        )  # fmt: skip
        found[task] = run_it(config), test
    return found


def configure(run, file, out, **changes):
    fields = {"max_length": 32, "device": "cpu", "threads": 1} | changes
    return EvaluateConfig(run.model, file, out, **fields)


def test_these_are_all_tasks_but_the_one_of_test_evaluate():
    assert {*PICTURES, "classification"} == {*tasks.names()}


@pytest.mark.parametrize("task", PICTURES)
def test_a_saved_model_gives_the_runs_answers_again(runs, task, tmp_path, capsys):
    run, test = runs[task]
    report = evaluate(configure(run, test, tmp_path / "out"))
    left = run.run_dir / "test"
    for directory in (left, tmp_path / "out"):
        assert {path.name for path in directory.iterdir()} == COMMON | PICTURES[task]
    first, again = ((d / "predictions.jsonl").read_bytes() for d in (left, tmp_path / "out"))
    assert first == again and len(first.splitlines()) == len(report.evidence)
    assert report.scores == run.scores["test"]
    about = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (about["task"], about["file"]) == (task, str(test))
    for name, value in report.scores.summary().items():
        assert about["scores"][name] == value
        low, high = about["scores"]["intervals"][name]
        assert low <= high
    text = (tmp_path / "out" / "report.txt").read_text()
    assert text == report.text == (left / "report.txt").read_text()
    assert text in (run.run_dir / "report.txt").read_text() and "95% interval" in text

    capsys.readouterr()
    assert main(["finetune", "compare", str(run.run_dir), str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "p = 1 (" in out and "It isn't shown that either model is" in out
    for title in report.evidence.titles.values():
        line = next(line for line in out.splitlines() if line.startswith(title))
        assert line.endswith("+0.0000   +0.0000 to +0.0000"), line


@pytest.mark.parametrize("task", ["regression", "multi-label"])
def test_noise_is_put_into_texts(runs, task, tmp_path):
    run, test = runs[task]
    noise = {"noise": ("words", "case"), "noise_rates": (0.9,)}
    report = evaluate(configure(run, test, tmp_path / "out", **noise))
    words, case = report.spoiled
    assert words.changed > 0.8 and case.changed == 0
    for name, found in case.differences.items():
        assert found.value == 0 and found.first == pytest.approx(report.scores.summary()[name])
    assert any(found.value != 0 for found in words.differences.values())
    assert "words 0.9 " in report.text


@pytest.mark.errors
@pytest.mark.parametrize("task", ["token-classification", "question-answering", "multiple-choice"])
def test_noise_is_refused_where_a_label_has_its_place(runs, task, tmp_path):
    run, test = runs[task]
    with pytest.raises(ValueError) as error:
        evaluate(configure(run, test, tmp_path / "out", noise=("typos",)))
    assert str(error.value) == (
        f"noise: expected none for {task}, only for texts that have labels as a whole, got typos"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.errors
def test_other_tasks_and_files_are_not_compared(runs, tmp_path, capsys):
    first = str(runs["regression"][0].run_dir)
    assert main(["finetune", "compare", first, str(runs["multi-label"][0].run_dir)]) == 2
    error = capsys.readouterr().err
    assert "SECOND: expected a task of the same kind as in " in error
    assert "numbers, got sets of classes in" in error and error.count("\n") == 1
    run, test = runs["regression"]
    other = write("regression", tmp_path, 10, 3)
    evaluate(configure(run, other, tmp_path / "out"))
    assert main(["finetune", "compare", first, str(tmp_path / "out")]) == 2
    assert "SECOND: expected the same file as in " in capsys.readouterr().err
    about = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    (tmp_path / "out" / "evaluation.json").write_text(json.dumps(about | {"kind": "x"}))
    with pytest.raises(ValueError, match="evaluation.json: kind: expected one of classes, sets"):
        read_evaluation(tmp_path / "out")


@pytest.mark.errors
def test_rows_of_another_kind_are_refused(runs, tmp_path):
    run, _ = runs["regression"]
    pairs = write_tsv(tmp_path / "p.tsv", [("ban", "bar", 1)], ("text_a", "text_b", "score"))
    with pytest.raises(ValueError, match=r"p.tsv: expected single texts, as the model learned fr"):
        evaluate(configure(run, pairs, tmp_path / "out"))
    words = write_tsv(tmp_path / "w.tsv", planted(3, 1), ("text", "score"))
    with pytest.raises(ValueError, match=r"line 2, column 'score': expected a number, got"):
        evaluate(configure(run, words, tmp_path / "out"))


@pytest.mark.parametrize("task", PICTURES)
def test_the_help_of_predict_names_what_an_answer_has(runs, task, capsys):
    line = {
        "question-answering": "yes\tban yes bar",
        "multiple-choice": "ban\tbar\tyes",
    }.get(task, "ban bar yes")
    predictor = Predictor.load(runs[task][0].model, device="cpu", max_length=32)
    (answer,) = predictor.answer([predictor.task.parse(line)])
    assert main(["predict", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    told = told[told.index(f"of {task}") :].partition("; of ")[0]
    for name in answer:
        assert name in told, (name, told)
