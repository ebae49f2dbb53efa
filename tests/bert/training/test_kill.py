"""SIGKILL in the midst of saves: what goes on is always the newest whole checkpoint."""

import hashlib
import json
import multiprocessing
import random
import shutil
import sys
import time
import types
from pathlib import Path

import pytest
import torch

from bert.training.log import read_log
from bert.training.state import load_checkpoint
from tests.bert.training import victim


@pytest.fixture
def processes(monkeypatch):
    """Real processes, forked from one that has done the imports."""
    context = multiprocessing.get_context("forkserver")
    sharding = ["torch.distributed.fsdp", "torch.distributed.checkpoint"]  # seconds, as well
    context.set_forkserver_preload([victim.__name__, *sharding])
    # Else each process imports pytest, the main module, again.
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    return context


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("reference")
    return load_checkpoint(victim.train(run_dir, steps=victim.STEPS).checkpoint)


def newest(run_dir: Path) -> int:
    """The newest step that has a name; 0 if there is none."""
    names = (path.name for path in run_dir.glob("checkpoints/step-*"))
    return max((int(name.removeprefix("step-")) for name in names), default=0)


def assert_whole(run_dir: Path) -> None:
    """All that has a checkpoint's name is one; checked without our own reader."""
    for path in run_dir.glob("checkpoints/step-*"):
        files = json.loads((path / "manifest.json").read_text())["files"]
        assert {file.name for file in path.iterdir()} == {*files, "manifest.json"}
        assert len(files) == 3
        for name, entry in files.items():
            content = (path / name).read_bytes()
            assert len(content) == entry["bytes"]
            assert hashlib.sha256(content).hexdigest() == entry["sha256"]


def starts(run_dir: Path) -> list[int]:
    return [record["step"] for record in read_log(run_dir / "log.jsonl", "start")]


def assert_ends_as_if_never_killed(run_dir: Path, never_killed) -> None:
    before = newest(run_dir)
    result = victim.train(run_dir, steps=victim.STEPS)
    assert starts(run_dir)[-1] == before
    names = {path.name for path in (run_dir / "checkpoints").iterdir()}
    assert names == {f"step-{victim.STEPS - i:08d}" for i in range(victim.KEEP)}
    steps = [record["step"] for record in read_log(run_dir / "log.jsonl", "step")]
    assert steps == list(range(1, victim.STEPS + 1))
    final = load_checkpoint(result.checkpoint)
    for ours, theirs in (
        (final.parameters, never_killed.parameters),
        (final.optimizer, never_killed.optimizer),
    ):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("kills", [12, pytest.param(60, marks=pytest.mark.slow)])
def test_killed_at_random_points_of_saves(tmp_path, processes, never_killed, kills):
    draw, halves = random.Random(0), 0
    for _ in range(kills):
        if newest(tmp_path) > victim.STEPS - 10:
            assert_ends_as_if_never_killed(tmp_path, never_killed)
            shutil.rmtree(tmp_path)
        before = newest(tmp_path)
        process = processes.Process(target=victim.train, args=(tmp_path,))
        process.start()
        while newest(tmp_path) == before:
            assert process.is_alive()
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.06))
        process.kill()
        process.join()
        assert process.exitcode == -9
        assert starts(tmp_path)[-1] == before
        assert_whole(tmp_path)
        halves += any(tmp_path.glob("checkpoints/.*.partial"))
    assert halves > 0
    assert_ends_as_if_never_killed(tmp_path, never_killed)


def test_killed_at_each_thing_that_a_save_does_to_a_file(tmp_path, processes, never_killed):
    template = tmp_path / "template"
    victim.train(template, steps=victim.STEPS - 2)
    before, at, seen = newest(template), 0, set()
    while True:
        at += 1
        run_dir = tmp_path / str(at)
        shutil.copytree(template, run_dir)
        process = processes.Process(target=victim.train_until_event, args=(run_dir, at))
        process.start()
        process.join()
        assert process.exitcode == -9
        if newest(run_dir) > before + 1:
            break
        assert_whole(run_dir)
        seen.add(tuple(sorted(path.name[:5] for path in (run_dir / "checkpoints").iterdir())))
        assert_ends_as_if_never_killed(run_dir, never_killed)
        shutil.rmtree(run_dir)
    # Four files read, then a save and the deletion of the oldest: 23 things, and a second save.
    assert at > 35 and len(seen) >= 3
