"""Trackers show what the log says, and never end a run."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bert.cli import main
from bert.training import trackers
from bert.training.log import read_log
from bert.training.trackers import flatten, run_id
from tests.bert.training.toy import ToyObjective, run

ROOT = Path(__file__).resolve().parents[3]


class Fake:
    """Keeps what it is told, and raises from a step on."""

    def __init__(self, fails_at: float = float("inf"), fails_to_close: bool = False):
        self.fails_at, self.fails_to_close = fails_at, fails_to_close
        self.seen: list[tuple[int, dict[str, float]]] = []
        self.closed = False

    def write(self, step, scalars):
        if step >= self.fails_at:
            raise ConnectionError("no route\nto host")
        self.seen.append((step, dict(scalars)))

    def close(self):
        self.closed = True
        if self.fails_to_close:
            raise OSError("disk full")


@pytest.fixture
def fake(monkeypatch):
    """Put fakes in the places of the real ones."""

    def put(**fakes):
        for name, tracker in fakes.items():
            monkeypatch.setitem(trackers.TRACKERS, name, lambda *_, t=tracker: t)
        monkeypatch.setattr("bert.training.trackers.find_spec", lambda name: name)
        return tuple(fakes)

    return put


def log_lines(run_dir):
    """Every line of a log, without what the clock says."""
    clock = {"elapsed", "tokens_per_second", "seconds", "config", "peak_memory"}
    lines = read_log(run_dir / "log.jsonl")
    return [{k: v for k, v in line.items() if k not in clock} for line in lines]


def evaluate():
    return {"accuracy": 0.25}


def test_a_tracker_gets_the_numbers_of_the_log(tmp_path, fake):
    tracker = Fake()
    names = fake(wandb=tracker)
    run(tmp_path, trackers=names, evaluate=evaluate, evaluate_every="4")
    expected = [
        (line.pop("step"), dict(flatten(line.pop("kind"), line)))
        for line in read_log(tmp_path / "log.jsonl")
        if line["kind"] in ("step", "evaluation")
    ]
    assert tracker.seen == expected and tracker.closed
    assert tracker.seen[0][1]["step/losses/label"] > 0
    assert (4, {"evaluation/accuracy": 0.25}) in [
        (step, {k: v for k, v in scalars.items() if "accuracy" in k})
        for step, scalars in tracker.seen
    ]


def test_one_that_fails_is_dropped_with_one_line_and_training_goes_on(tmp_path, fake, capsys):
    good, bad = Fake(fails_to_close=True), Fake(fails_at=3)
    names = fake(wandb=good, trackio=bad)
    one, other = ToyObjective(), ToyObjective()
    run(tmp_path / "a", one, trackers=names, evaluate=evaluate)
    lines = [line for line in capsys.readouterr().err.splitlines() if "dropped" in line]
    run(tmp_path / "b", other, evaluate=evaluate)
    how = "dropped, training goes on with the log:"
    assert lines == [
        f"tracker trackio {how} ConnectionError: no route to host",
        f"tracker wandb {how} OSError: disk full",
    ]
    assert [step for step, _ in bad.seen] == [1, 2] and not bad.closed
    assert [step for step, _ in good.seen] == [1, 2, 3, 4, 5, 6, 6]
    with_trackers, without = log_lines(tmp_path / "a"), log_lines(tmp_path / "b")
    assert with_trackers[1:] == without[1:]
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_one_that_cannot_start_is_dropped(tmp_path, fake, monkeypatch, capsys):
    names = fake(wandb=Fake())

    def refuse(*_):
        raise PermissionError("not logged in")

    monkeypatch.setitem(trackers.TRACKERS, "wandb", refuse)
    assert run(tmp_path, trackers=names).step == 6
    assert "tracker wandb dropped" in capsys.readouterr().err


@pytest.mark.errors
def test_one_that_is_not_installed_is_refused_by_the_name_of_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("bert.training.trackers.find_spec", lambda name: None)
    message = r"^training\.trackers: wandb is missing; install the extra wandb: pip install -e "
    with pytest.raises(ModuleNotFoundError, match=message):
        run(tmp_path / "run", trackers=("wandb",))
    assert not (tmp_path / "run").exists()


@pytest.mark.errors
def test_at_the_command_line_it_is_one_line_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bert.training.trackers.find_spec", lambda name: None)
    (tmp_path / "t.txt").write_text("One line.\n")
    arguments = ["pretrain", str(tmp_path / "t.txt"), "--out", str(tmp_path / "o")]
    assert main([*arguments, "--training.trackers", "trackio"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bert pretrain: error: training.trackers: trackio is missing; install")
    assert main([*arguments, "--training.trackers", "tensorbord"]) == 2
    assert "--training.trackers: expected any number of tensorboard" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_what_is_no_number_is_left_out():
    values = {"loss": 2, "ok": True, "name": "x", "none": None, "results": {"f1": 0.5}}
    assert dict(flatten("k", {**values, "heads": [[1.0], [2.0]]})) == {
        "k/loss": 2.0, "k/f1": 0.5, "k/heads/0/0": 1.0, "k/heads/1/0": 2.0,
    }  # fmt: skip


def test_the_name_of_a_run_is_kept_when_it_goes_on(tmp_path):
    first = run_id(tmp_path, 0)
    assert run_id(tmp_path, 5) == first
    assert run_id(tmp_path, 0) != first  # begun anew


def events(run_dir):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run_dir / "trackers" / "tensorboard")).Reload()
    return {
        name: [(event.step, event.value) for event in read.Scalars(name)]
        for name in read.Tags()["scalars"]
    }


def test_tensorboard_shows_each_step_once_also_of_a_resumed_run(tmp_path):
    pytest.importorskip("tensorboard")

    def kill(batch, calls=[]):  # noqa: B006
        calls.append(batch)
        if len(calls) == 3 * 4 + 2:  # in step 5; the checkpoint is of step 2
            raise KeyError("killed")

    options = {"trackers": ("tensorboard",), "checkpoint_every": "2", "keep_checkpoints": 9}
    with pytest.raises(KeyError):
        run(tmp_path, ToyObjective(before=kill), **options)
    last = tmp_path / "checkpoints" / "step-00000004"
    last.rename(tmp_path / "gone")
    run(tmp_path, evaluate=evaluate, **options)
    shown = events(tmp_path)
    logged = [(r["step"], r["loss"]) for r in read_log(tmp_path / "log.jsonl", "step")]
    assert shown["step/loss"] == [(step, pytest.approx(loss)) for step, loss in logged]
    assert shown["evaluation/accuracy"] == [(6, 0.25)]


@pytest.mark.slow
def test_a_full_disk_drops_tensorboard_and_the_log_is_complete(tmp_path):
    pytest.importorskip("tensorboard")
    code = """
import resource, sys
from pathlib import Path
from tests.bert.training.toy import run
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
run(Path(sys.argv[1]), trackers=("tensorboard",), budget="150", accumulation=1)
"""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # Above it is a traceback of the thread that TensorBoard writes in.
    assert "tracker tensorboard dropped" in done.stderr
    assert len(list(read_log(tmp_path / "run" / "log.jsonl", "step"))) == 150


@pytest.mark.slow
def test_wandb_offline_keeps_a_run_here(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    run(tmp_path / "run", trackers=("wandb",))
    home = tmp_path / "run" / "trackers" / "wandb"
    assert [p for p in home.iterdir() if p.name.startswith("offline-run-")]


@pytest.mark.slow
def test_trackio_keeps_the_numbers(tmp_path):
    pytest.importorskip("trackio")
    code = """
import sys
from pathlib import Path
from tests.bert.training.toy import run
run(Path(sys.argv[1]), trackers=("trackio",))
"""
    home = tmp_path / "trackio"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**os.environ, "TRACKIO_DIR": str(home)},
    )  # fmt: skip
    assert done.returncode == 0 and "dropped" not in done.stderr, done.stderr
    assert any(home.rglob("*.db"))


def test_without_trackers_nothing_of_them_is_made(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError

    for name in trackers.TRACKERS:
        monkeypatch.setitem(trackers.TRACKERS, name, refuse)
    run(tmp_path)
    assert not (tmp_path / "trackers").exists()
