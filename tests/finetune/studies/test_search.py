"""The search: what is tried, what is kept, and that a stop changes nothing."""

import json
from dataclasses import replace

import pytest

from finetune.studies import search
from finetune.studies.config import SearchConfig

optuna = pytest.importorskip("optuna", reason="optuna is missing: the extra search")

SPACE = ("learning_rate=1e-4..1e-2:log", "batch_size=8,16", "dropout=0.0..0.3")


@pytest.fixture(scope="module")
def search_of(study_of, files):
    def configure(out, training=None, own=None, **changes):
        own = {"trials": 3, "space": SPACE} | (own or {})
        changes = {"validation_file": files["validation"]} | changes
        return study_of(SearchConfig, out, training, own, **changes)

    return configure


@pytest.fixture(scope="module")
def searched(search_of, tmp_path_factory):
    config = search_of(tmp_path_factory.mktemp("search") / "out")
    assert search.run(config) == 0
    return config


def report_of(config):
    return json.loads((config.out / "report.json").read_text())


class Pretended:
    """Stands for bert finetune: a score that follows from the settings, at each evaluation."""

    def __init__(self, stop_in=None, stop_at=1, worst=0.0):
        self.runs, self.stop_in, self.stop_at, self.worst = [], stop_in, stop_at, worst

    def __call__(self, config, on_evaluation=lambda _: None):
        config.out.mkdir(exist_ok=True)
        self.runs.append((config.out.name, config.training.learning_rate, config.batch_size))
        value = 1 - abs(config.training.learning_rate - 2e-3) * 50 + config.batch_size / 1000
        log = config.out / "log.jsonl"
        log.touch()
        done = len(log.read_text().splitlines()) if log.exists() else 0
        for step in range(done + 1, 4):
            if config.out.name == self.stop_in and step == self.stop_at:
                raise KeyboardInterrupt
            on_evaluation(value * step / 3)
            results = {"accuracy": value * step / 3}
            with log.open("a") as file:
                line = {"kind": "evaluation", "step": step, "results": results}
                file.write(json.dumps(line) + "\n")
        (config.out / "model").mkdir(exist_ok=True)
        scores = {"validation": {"accuracy": value}}
        scores |= {"test": {"accuracy": value - 0.1}} if config.test_file else {}
        (config.out / "metrics.json").write_text(json.dumps(scores))
        (config.out / "run.json").write_text(json.dumps({"data": {}}))

        class Result:
            class training:
                exit_code = 0

        return Result


def test_the_best_is_kept_tested_and_made_again_by_its_command(searched):
    found = report_of(searched)
    values = [trial["value"] for trial in found["trials"]]
    assert len(values) == 3 and found["best"] == values.index(max(values))
    for number in range(3):
        run = searched.out / f"trial-{number}"
        described = json.loads((run / "run.json").read_text())["finetune"]
        trial = found["trials"][number]
        assert described["training"]["learning_rate"] == trial["training.learning_rate"]
        assert (described["batch_size"], described["dropout"]) == (
            trial["batch_size"], trial["dropout"],
        )  # fmt: skip
        metrics = json.loads((run / "metrics.json").read_text())
        assert metrics["validation"]["accuracy"] == trial["value"]
        # Of the others neither weights nor anything about the test file is left.
        is_best = number == found["best"]
        assert (run / "model").exists() == ("test" in metrics) == is_best
        assert (run / "best.safetensors").exists() == is_best
    learned = (
        f"--training.learning-rate {found['trials'][found['best']]['training.learning_rate']}"
    )
    assert learned in found["best_command"] and "--test-file" in found["best_command"]
    assert found["best_command"] in (searched.out / "report.txt").read_text()


def test_a_finished_search_is_only_reported_again(searched, monkeypatch):
    before = report_of(searched)
    assert search.run(searched) == 0
    assert report_of(searched) == before


# The eighth trial is one that ends early, the twelfth comes to its end.
@pytest.mark.slow
@pytest.mark.parametrize(("stop_in", "stop_at"), [("trial-7", 1), ("trial-11", 3)])
def test_a_search_that_was_stopped_tries_the_same(
    search_of, tmp_path, monkeypatch, stop_in, stop_at
):
    tried = []
    for is_stopped in (False, True):
        name = "stopped" if is_stopped else "whole"
        config = search_of(tmp_path / name, own={"trials": 13})
        first, second = Pretended(stop_in if is_stopped else None, stop_at), Pretended()
        monkeypatch.setattr(search, "finetune", first)
        if is_stopped:
            with pytest.raises(KeyboardInterrupt):
                search.run(config)
            monkeypatch.setattr(search, "finetune", second)
            with (config.out / "trials.journal").open("a") as file:
                file.write('{"op_code": 4, "wor')  # as a kill leaves it
            (config.out / "trials.journal.lock").symlink_to("trials.journal")
        assert search.run(config) == 0
        tried.append(report_of(config)["trials"])
        if is_stopped:
            assert first.runs[-1] == second.runs[0] and second.runs[0][0] == stop_in
            assert len(first.runs) + len(second.runs) == 13 + 1 + 1  # and the test of the best
    assert tried[0] == tried[1]
    assert {trial["state"] for trial in tried[0]} == {"complete", "pruned"}


@pytest.mark.slow
def test_more_trials_go_on_and_learn_from_the_first(search_of, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "finetune", Pretended())
    config = search_of(tmp_path / "grown", own={"trials": 4, "prune": False}, test_file=None)
    assert search.run(config) == 0
    assert search.run(replace(config, trials=30)) == 0
    whole = replace(config, out=tmp_path / "whole", trials=30)
    assert search.run(whole) == 0
    assert report_of(config)["trials"] == report_of(whole)["trials"]
    values = [trial["value"] for trial in report_of(config)["trials"]]
    assert sum(values[20:]) > sum(values[:10])  # the best rate is 2e-3, and batches of 16
    kept = [path.parent.name for path in config.out.glob("*/model")]
    assert kept == [f"trial-{values.index(max(values))}"]


@pytest.mark.slow
def test_a_run_worse_than_the_median_ends_early(search_of, tmp_path, monkeypatch):
    for prune in (True, False):
        pretended = Pretended()
        monkeypatch.setattr(search, "finetune", pretended)
        config = search_of(tmp_path / str(prune), own={"trials": 12, "prune": prune})
        assert search.run(config) == 0
        trials = report_of(config)["trials"]
        early = [number for number, trial in enumerate(trials) if trial["state"] == "pruned"]
        assert bool(early) == prune
        assert all(number >= 5 for number in early)
        for number in early:
            others = sorted(trial["value"] for trial in trials[:number])
            assert not (config.out / f"trial-{number}" / "metrics.json").exists()
            assert trials[number]["value"] < others[-1]


def test_a_run_of_no_number_is_no_best(search_of, tmp_path, monkeypatch):
    pretended = Pretended()

    def some_fail(config, on_evaluation=None):
        result = pretended(config)
        if config.out.name == "trial-0":
            scores = {"validation": {"accuracy": float("nan")}}
            (config.out / "metrics.json").write_text(json.dumps(scores))
        return result

    monkeypatch.setattr(search, "finetune", some_fail)
    config = search_of(tmp_path / "out", own={"trials": 2}, test_file=None)
    assert search.run(config) == 0
    assert report_of(config)["best"] == 1


@pytest.mark.errors
def test_a_space_that_a_run_can_not_have_is_refused_before_the_first(
    search_of, tmp_path, monkeypatch
):
    monkeypatch.setattr(search, "finetune", Pretended())
    config = search_of(tmp_path / "out", own={"space": ("max_length=16..64",)})
    with pytest.raises(ValueError, match="^max_length: expected at most 40, .* got 64"):
        search.run(config)
    with pytest.raises(ValueError, match="^dropout: expected a probability in .*, got 1.5"):
        search.run(replace(config, space=("dropout=0.5,1.5",)))
    assert not (config.out / "study.json").exists()
    with pytest.raises(ValueError, match="^validation_file: expected a file, on which trials are"):
        replace(config, validation_file=None)
    with pytest.raises(ValueError, match="^trials: expected 1 or more, got 0"):
        replace(config, trials=0)


@pytest.mark.errors
def test_without_optuna_it_says_how_to_get_it(search_of, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(ModuleNotFoundError, match="optuna is missing; install the extra search"):
        search.run(search_of(tmp_path / "out"))
