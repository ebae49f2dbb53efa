"""`torchrun -m pretrain` is `bert pretrain`, shared by several processes."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from bert.command import command_line
from bert.training.config import TrainingConfig
from bert.training.distributed import ALONE
from bert.training.log import read_log
from pretrain.run import pretrain
from tests.bert.training.ranks import together
from tests.bert.training.test_kill import processes  # noqa: F401
from tests.pretrain import ranks
from tests.pretrain.test_run import config, weights  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]


def torchrun(settings, *more):
    """Start the command in two processes."""
    arguments = [*shlex.split(command_line("", settings, ("files",))), *more]
    start = "-m torch.distributed.run --standalone --nproc-per-node 2 -m pretrain"
    return subprocess.Popen(
        [sys.executable, *start.split(), *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_berts_gradients_are_those_of_one_process(tmp_path, processes):  # noqa: F811
    assert together(processes, ranks.write_gradients, tmp_path) == [0, 0]
    expected = ranks.gradients_alone()
    for rank in (0, 1):
        got = safetensors.torch.load_file(tmp_path / f"{rank}.safetensors")
        assert got.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(got[name], gradient, rtol=0, atol=1e-12)


def test_cut_berts_take_the_steps_of_one_process_and_keep_half(tmp_path, processes):  # noqa: F811
    assert together(processes, ranks.write_steps, tmp_path) == [0, 0]
    for optimizer in ranks.OPTIMIZERS:
        expected, all_of_it = ranks.steps_of(ALONE, optimizer)
        for rank in (0, 1):
            got = safetensors.torch.load_file(tmp_path / f"{optimizer}-{rank}.safetensors")
            assert got.keys() == expected.keys()
            for name, tensor in expected.items():
                torch.testing.assert_close(got[name], tensor, rtol=0, atol=1e-12)
            kept = json.loads((tmp_path / f"{optimizer}-{rank}.json").read_text())
            for part in ("parameters", "optimizer"):
                assert kept[part] == pytest.approx(all_of_it[part] / 2, rel=0.05)
            assert kept["emptied"] == 0


@pytest.fixture
def shared(config):  # noqa: F811
    training = TrainingConfig(
        budget="8", learning_rate=1e-3, accumulation=2, evaluate_every="4", threads=1
    )
    return replace(config, training=training)


def test_two_processes_pretrain_what_one_does(shared, tmp_path):
    started = torchrun(shared)
    output, _ = started.communicate(timeout=300)
    assert started.returncode == 0, output
    assert output.count("model: ") == output.count("training from step 0") == 1
    assert "float32" in output and ", 2 processes" in output
    one = pretrain(replace(shared, out=tmp_path / "one"))
    got, expected = weights(shared.out), weights(one.run_dir)
    assert got.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=0, atol=2e-5)
    first, second = (
        list(read_log(out / "log.jsonl", "step")) for out in (shared.out, one.run_dir)
    )
    assert [r["tokens"] for r in first] == [r["tokens"] for r in second]
    for ours, theirs in zip(first, second, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
    (_, ours), (_, theirs) = (
        read_log(out / "log.jsonl", "evaluation") for out in (shared.out, one.run_dir)
    )
    assert ours["results"] == pytest.approx(theirs["results"], abs=1e-4)


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_and_the_same_command_goes_on(shared):
    long = replace(shared, training=replace(shared.training, budget="20000"))
    started = torchrun(long)
    log = shared.out / "log.jsonl"
    deadline = time.monotonic() + 300
    while not (log.exists() and len(list(read_log(log, "step"))) > 2):
        assert time.monotonic() < deadline and started.poll() is None
        time.sleep(0.1)
    started.send_signal(signal.SIGTERM)
    output, _ = started.communicate(timeout=300)
    assert output.count("SIGTERM: saving, then ending") == 2, output
    assert "ending at once" not in output
    (checkpoint,) = (shared.out / "checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("step-"))
    assert step == len(list(read_log(log, "step"))) > 2

    started = torchrun(replace(long, training=replace(long.training, budget=f"{step + 3}")))
    output, _ = started.communicate(timeout=300)
    assert started.returncode == 0, output
    assert f"going on from step {step}" in output
    assert [r["step"] for r in read_log(log, "step")] == list(range(1, step + 4))


@pytest.mark.slow
def test_a_mistake_is_told_once(shared):
    started = torchrun(replace(shared, training=replace(shared.training, accumulation=1)))
    output, _ = started.communicate(timeout=300)
    assert started.returncode != 0
    told = "bert pretrain: error: --training.accumulation: expected 2 or more"
    assert output.count(told) == 1


@pytest.mark.slow
def test_a_dry_run_is_told_once_and_starts_nothing(shared):
    started = torchrun(shared, "--dry-run")
    output, _ = started.communicate(timeout=300)
    assert started.returncode == 0, output
    assert output.count('"accumulation": 2') == 1
    assert not shared.out.exists()


@pytest.mark.slow
def test_a_cut_run_leaves_the_models_of_one_process(shared, tmp_path):
    training = replace(shared.training, sharding="full", statistics_every=4)
    two = replace(shared, training=training, snapshots=True)
    started = torchrun(two)
    output, _ = started.communicate(timeout=300)
    assert started.returncode == 0, output
    (checkpoint,) = (two.out / "checkpoints").iterdir()
    assert len(list(checkpoint.glob("part-*-of-00002.safetensors"))) == 2
    one = pretrain(replace(two, out=tmp_path / "one"))
    for place in ("model", "snapshots/step-00000000", "snapshots/step-00000004"):
        got, expected = (
            safetensors.torch.load_file(out / place / "model.safetensors")
            for out in (two.out, one.run_dir)
        )
        assert got.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(got[name], expected[name], rtol=0, atol=2e-5)
    for kind, value in (("evaluation", "results"), ("statistics", "update_ratio")):
        ours, theirs = (
            [record[value] for record in read_log(out / "log.jsonl", kind)]
            for out in (two.out, one.run_dir)
        )
        for mine, other in zip(ours, theirs, strict=True):
            assert mine == pytest.approx(other, rel=1e-2, abs=1e-4)
    ours, theirs = (
        [record["attention_entropy"] for record in read_log(out / "log.jsonl", "statistics")]
        for out in (two.out, one.run_dir)
    )
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=0, atol=1e-4)
