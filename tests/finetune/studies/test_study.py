"""Seeds, folds and sizes: runs in one directory, kept when finished, and what is said of them."""

import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from bert.cli import main
from bert.training.run_directory import hold
from finetune.evaluation.compare import read_evaluation
from finetune.run import finetune
from finetune.sequences import SequenceObjective
from finetune.studies import folds, seeds, sizes, study
from finetune.studies.config import FoldsConfig, SeedsConfig, SizesConfig
from tests.finetune.conftest import planted, write_tsv


@pytest.fixture(scope="module")
def seeds_of(study_of):
    return lambda out, count=2, **changes: study_of(
        SeedsConfig, out, own={"seeds": count}, **changes
    )


@pytest.fixture(scope="module")
def studied(seeds_of, tmp_path_factory):
    """A study of two seeds."""
    config = seeds_of(tmp_path_factory.mktemp("studies") / "seeds")
    assert seeds.run(config) == 0
    return config


def report_of(config):
    return json.loads((config.out / "report.json").read_text())


def no_more(*_):
    raise AssertionError("a finished run was run again")


# --- seeds -----------------------------------------------------------------------------------


def test_each_run_is_one_of_bert_finetune(studied, tmp_path):
    alone = finetune(replace(studied.base(seed=1, out=tmp_path / "alone")))
    found = report_of(studied)
    assert found["runs"]["seed-1"]["test"] == pytest.approx(alone.scores["test"].summary(), abs=0)
    spread = found["summary"]["test"]["loss"]
    assert spread["values"] == [found["runs"][f"seed-{i}"]["test"]["loss"] for i in (0, 1)]
    assert spread["values"][0] != spread["values"][1]
    assert spread["mean"] == pytest.approx(np.mean(spread["values"]))
    assert "standard deviation" in (studied.out / "report.txt").read_text()


def test_a_finished_run_keeps_its_model_and_not_what_it_would_go_on_from(studied):
    assert {p.name for p in (studied.out / "seed-0").iterdir()} == {
        "run.json", "log.jsonl", "metrics.json", "report.txt", "test", "model", "lock",
    }  # fmt: skip


def test_finished_runs_are_not_run_again_and_more_seeds_are_added(studied, monkeypatch):
    before = report_of(studied)
    monkeypatch.setattr(study, "finetune", no_more)
    assert seeds.run(studied) == 0
    assert report_of(studied) == before
    asked = []

    def pretend(config):
        asked.append((config.out.name, config.seed))
        config.out.mkdir()
        (config.out / "metrics.json").write_text((studied.out / "seed-0/metrics.json").read_text())
        return finetune_result(0)

    monkeypatch.setattr(study, "finetune", pretend)
    assert seeds.run(replace(studied, seeds=3)) == 0
    assert asked == [("seed-2", 2)]
    assert list(report_of(studied)["runs"]) == ["seed-0", "seed-1", "seed-2"]


def finetune_result(code):
    class Training:
        exit_code = code

    class Result:
        training = Training

    return Result


def test_a_stopped_study_goes_on_to_the_same_end(studied, seeds_of, tmp_path, monkeypatch):
    stopped = seeds_of(tmp_path / "stopped")
    real, calls = SequenceObjective.forward, []

    def forward(self, batch, dropout_seed):
        calls.append(1)
        if len(calls) == 5:  # in the second run
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch, dropout_seed)

    monkeypatch.setattr(SequenceObjective, "forward", forward)
    assert seeds.run(stopped) == 143
    assert not (stopped.out / "report.json").exists()
    assert seeds.run(stopped) == 0
    two = {"seed-0", "seed-1"}
    runs = [report_of(config)["runs"] for config in (studied, stopped)]
    assert [{k: v for k, v in found.items() if k in two} for found in runs] == [runs[1]] * 2


def test_another_study_is_refused_unless_it_may_replace(studied, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="^batch_size: expected 16, as in .*, got 8;"):
        seeds.run(replace(studied, batch_size=8))
    other = write_tsv(tmp_path / "other.tsv", planted(60, 9))
    with pytest.raises(ValueError, match="^train_rows_hash: expected "):
        seeds.run(replace(studied, train_file=other))
    with pytest.raises(ValueError, match="^overwrite: expected it, since "):
        seeds.run(replace(studied, resume="none"))


def test_a_study_that_is_replaced_is_deleted_and_nothing_else(seeds_of, tmp_path, monkeypatch):
    config = seeds_of(tmp_path / "study")
    (config.out / "seed-7").mkdir(parents=True)
    for name in ("study.json", "report.json", "seed-7/run.json"):
        (config.out / name).write_text("{}")
    monkeypatch.setattr(study, "finetune", lambda _: finetune_result(143))
    assert seeds.run(replace(config, resume="none", overwrite=True)) == 143
    assert {p.name for p in config.out.iterdir()} == {"study.json", "lock"}
    (config.out / "notes.txt").touch()
    (config.out / "mine").mkdir()
    assert seeds.run(replace(config, resume="none", overwrite=True)) == 143
    assert {p.name for p in config.out.iterdir()} == {"study.json", "lock", "notes.txt", "mine"}


# --- folds -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folded(study_of, tmp_path_factory):
    """A cross-validation of a file in which one class is rare."""
    directory = tmp_path_factory.mktemp("folds")
    rows = sorted(planted(60, 3), key=lambda row: row[1])  # all bad ones before the good ones
    file = write_tsv(directory / "all.tsv", rows[:44])
    config = study_of(
        FoldsConfig, directory / "folds", own={"folds": 3}, train_file=file, test_file=None,
        validation_file=None,
    )  # fmt: skip
    assert folds.run(config) == 0
    return config, rows[:44]


def test_each_row_is_tested_once_by_a_run_that_did_not_learn_it(folded):
    config, rows = folded
    tested = []
    for number in range(3):
        paths = [config.out / "rows" / f"fold-{number}-{p}.tsv" for p in ("train", "test")]
        learned, held = (path.read_text().splitlines()[1:] for path in paths)
        assert sorted(learned + held) == sorted("\t".join(row) for row in rows)
        counts = [sum(line.endswith("good") for line in held) for held in (learned, held)]
        good = sum(label == "good" for _, label in rows)
        assert abs(counts[1] - good / 3) < 1
        tested += held
    assert sorted(tested) == sorted("\t".join(row) for row in rows)


def test_the_predictions_of_all_rows_lie_together(folded):
    config, rows = folded
    directory = config.out / "out-of-fold"
    lines = [json.loads(line) for line in (directory / "predictions.jsonl").open()]
    assert [(line["text_a"], line["gold"]) for line in lines] == rows
    assert [line["line"] for line in lines] == list(range(2, 46))
    evaluated = read_evaluation(directory)
    assert evaluated.about["file"] == str(config.train_file)
    # Each fold's own predictions are those of its rows.
    for number in range(3):
        own = [
            json.loads(line)
            for line in (config.out / f"fold-{number}/test/predictions.jsonl").open()
        ]
        by_text = {(line["text_a"], line["gold"]): line["logits"] for line in own}
        for line in lines:
            key = (line["text_a"], line["gold"])
            assert key not in by_text or by_text[key] == line["logits"]
    right = accuracy_score([r["gold"] for r in lines], [r["predicted"] for r in lines])
    found = report_of(config)
    sizes = [len(part) for part in folds.split(np.array([r[1] == "good" for r in rows]) * 1, 3, 0)]
    assert np.average(found["summary"]["test"]["accuracy"]["values"], weights=sizes) == (
        pytest.approx(right)
    )


def test_a_fold_is_stratified_and_drawn_by_the_seed():
    classes = np.repeat([0, 1, 2], [30, 12, 3])
    parts = folds.split(classes, 3, 0)
    assert [np.bincount(classes[part]).tolist() for part in parts] == [[10, 4, 1]] * 3
    assert all(
        np.array_equal(a, b) for a, b in zip(parts, folds.split(classes, 3, 0), strict=True)
    )
    assert not np.array_equal(parts[0], folds.split(classes, 3, 1)[0])
    whole = folds.split(7, 3, 0)
    assert sorted(np.concatenate(whole).tolist()) == list(range(7))


@pytest.mark.errors
@pytest.mark.parametrize(
    ("classes", "count", "message"),
    [
        (3, 4, "folds: expected at most 3, the rows, got 4"),
        (np.array([0, 0, 0, 1, 1]), 4, "folds: expected at most 3, a class's rows, got 4"),
        (np.array([0, 0, 1]), 2, "folds: expected two rows or more of each class, got a class "),
    ],
)
def test_folds_that_can_not_be_cut(classes, count, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        folds.split(classes, count, 0)


# --- sizes -----------------------------------------------------------------------------------


def test_a_learning_curve(study_of, tmp_path):
    config = study_of(
        SizesConfig, tmp_path / "sizes", {"budget": "1"}, {"sizes": (40, 8), "seeds": 2},
        train_rows=80,
    )  # fmt: skip
    assert sizes.run(config) == 0
    learned = {
        (size, seed): (config.out / f"rows/{size}-rows-seed-{seed}.tsv").read_text().splitlines()
        for size in (8, 40)
        for seed in (0, 1)
    }
    lines = config.train_file.read_text().splitlines()
    for (size, seed), cut in learned.items():
        assert len(cut) == size + 1 and cut[0] == lines[0]
        assert set(learned[8, seed]) <= set(cut) if size == 40 else set(cut) != set(lines)
        assert set(cut) <= set(lines[:81])
    assert learned[8, 0] != learned[8, 1]
    found = report_of(config)
    values = found["summary"]["40"]["test"]["accuracy"]["values"]
    assert values == [found["runs"][f"40-rows-seed-{s}"]["test"]["accuracy"] for s in (0, 1)]
    assert (config.out / "learning_curve.png").stat().st_size > 5_000
    described = json.loads((config.out / "8-rows-seed-1" / "run.json").read_text())
    assert described["data"]["train"]["rows"] == 8


@pytest.mark.parametrize(("rows", "expected"), [(60, [60]), (1000, [62, 250, 1000])])
def test_sizes_that_are_not_given(rows, expected):
    class Fake:
        class config:
            sizes = ()

    Fake.rows = rows
    assert sizes.sizes_of(Fake) == expected


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.errors
def test_a_run_that_can_not_be_is_refused_before_the_first(study_of, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "finetune", no_more)
    config = study_of(SizesConfig, tmp_path / "sizes", own={"sizes": (1, 40)})
    with pytest.raises(ValueError, match="1-rows-seed-0.tsv: no row has class "):
        sizes.run(config)
    with pytest.raises(
        ValueError, match="^sizes: expected at most 300, the rows there are, got 400"
    ):
        sizes.run(replace(config, sizes=(400,)))
    assert not (config.out / "study.json").exists()
    seeds_config = study_of(SeedsConfig, tmp_path / "seeds", max_length=99)
    with pytest.raises(ValueError, match="^max_length: expected at most 40"):
        seeds.run(seeds_config)
    assert not seeds_config.out.exists()


@pytest.mark.errors
def test_a_directory_of_something_else_is_refused(seeds_of, tmp_path):
    config = seeds_of(tmp_path)
    (tmp_path / "run.json").touch()
    with pytest.raises(
        ValueError, match="^out: expected a new directory, or a study's, .*run.json"
    ):
        seeds.run(config)
    config = seeds_of(tmp_path / "held")
    config.out.mkdir()
    with hold(config.out, "out"), pytest.raises(ValueError, match="^out: this process trains in "):
        seeds.run(config)


@pytest.mark.errors
@pytest.mark.parametrize(
    ("kind", "own", "changes", "message"),
    [
        (SeedsConfig, {"seeds": 1}, {}, "seeds: expected 2 or more, got 1"),
        (SeedsConfig, {}, {"test_file": None}, "test_file: expected a file, or a validation_file"),
        (SeedsConfig, {}, {"resume": "7"}, "resume: expected auto or none, got '7'"),
        (FoldsConfig, {}, {}, "test_file: expected none, since each run is tested on a fold"),
        (SizesConfig, {"sizes": (8, 8)}, {}, "sizes: expected each one once"),
        (SizesConfig, {"sizes": (0,)}, {}, "sizes: expected 1 row or more in each"),
    ],
)
def test_what_is_refused_without_a_file(study_of, tmp_path, kind, own, changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        study_of(kind, tmp_path / "out", own=own, **changes)


def test_a_dry_run_leaves_nothing(seeds_of, tmp_path, capsys):
    config = replace(seeds_of(tmp_path / "study"), dry_run=True)
    assert seeds.run(config) == 0
    assert "one run of the study's" in capsys.readouterr().out
    assert not config.out.exists()


@pytest.mark.errors
def test_a_mistake_is_one_line_at_the_command_line(capsys):
    arguments = ["--model", "m", "--train-file", "t.tsv", "--out", "o", "--folds", "1"]
    assert main(["finetune", "folds", *arguments]) == 2
    assert capsys.readouterr().err == (
        "bert finetune folds: error: --folds: expected 2 or more, got 1\n"
    )
