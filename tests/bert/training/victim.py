"""Processes that train the toy and are killed, or end on their own."""

import os
import signal
import sys
import time
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch

from bert.training.optimizer import build_optimizer
from bert.training.result import TrainingResult
from tests.bert.training import toy

# The first optimiser of a process takes seconds of imports: here, once, before the forks.
torch.set_num_threads(1)
build_optimizer(toy.ToyObjective(), toy.config())

STEPS = 40
KEEP = 3


def train(run_dir: Path, steps: int = 10**6) -> TrainingResult:
    """Save after every step, and do little else."""
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        return toy.run(
            run_dir,
            toy.ToyObjective(width=400),
            budget=f"{steps}",
            schedule="constant",
            warmup=0.0,
            checkpoint_every="1",
            keep_checkpoints=KEEP,
        )


def train_until_event(run_dir: Path, at: int) -> None:
    """Train, and die at the `at`-th thing that is done to a file below the checkpoints."""
    seen = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in ("open", "os.mkdir", "os.chmod", "os.rename", "os.remove", "os.rmdir"):
            if "/checkpoints/" in str(arguments[0]) or event in ("os.remove", "os.rmdir"):
                seen += 1
                if seen == at:
                    os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    train(run_dir)


def train_and_signal(run_dir: Path, signals: list[int], pause: float) -> None:
    """Send this process signals in its third step, wait after each, end with the run's code."""
    calls = 0

    def before(batch: toy.ToyBatch) -> None:
        nonlocal calls
        calls += 1
        if calls == 7:
            for signum in signals:
                os.kill(os.getpid(), signum)
                time.sleep(pause)

    result = toy.run(run_dir, toy.ToyObjective(before=before))
    sys.exit(result.exit_code)
