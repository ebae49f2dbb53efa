"""Processes that train the toy together, with the environment that torchrun would give them."""

import json
import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from bert.training.distributed import join
from bert.training.gradients import add_gradients
from bert.training.hardware import Hardware
from bert.training.optimizer import build_optimizer
from bert.training.sharding import shard, whole
from bert.training.state import load_checkpoint
from tests.bert.training import toy

# See victim.py.
torch.set_num_threads(1)
build_optimizer(toy.ToyObjective(), toy.config())

CPU = Hardware(torch.device("cpu"), "float32", "")
SEED = 5
STEPS = 3


def together(
    processes: Any, target: Callable, out: Path, *arguments: Any, size: int = 2
) -> list[int]:
    """Call target(out, *arguments) in `size` ranks; return exit codes, -9 for a stuck one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out.mkdir(exist_ok=True)
    ranks = [
        processes.Process(target=run_as, args=(rank, size, port, target, out, *arguments))
        for rank in range(size)
    ]
    for process in ranks:
        process.start()
    deadline = time.monotonic() + 120
    for process in ranks:
        # The first to be waited for is the one that must notice what happens to the others.
        process.join(max(deadline - time.monotonic(), 0.1))
        if any(other.exitcode for other in ranks):
            deadline = min(deadline, time.monotonic() + 2)
    for process in ranks:
        process.kill()
        process.join()
    return [process.exitcode for process in ranks]


def run_as(rank: int, size: int, port: int, target: Callable, out: Path, *arguments: Any) -> None:
    """Be a rank; end with the target's exit code, or write its error down and end with 2."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    multiprocessing.set_start_method("fork", force=True)  # loader workers, as under torchrun
    (out / f"pid-{rank}").write_text(str(os.getpid()))
    sys.stderr = open(out / f"stderr-{rank}", "w", buffering=1)
    try:
        sys.exit(target(out, *arguments) or 0)
    except (ValueError, OSError) as error:
        traceback.print_exc()
        (out / f"error-{rank}").write_text(str(error))
        sys.exit(2)


class Rare(toy.ToyObjective):
    """A parameter that only the micro-batch with sample 7 moves, and one that nothing moves."""

    def __init__(self) -> None:
        super().__init__(torch.float64)
        self.rare = nn.Parameter(torch.ones(6, dtype=torch.float64))
        self.never = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, batch: toy.ToyBatch, dropout_seed: Tensor) -> dict[str, Tensor]:
        losses = super().forward(batch, dropout_seed)
        if 7 in batch.ids:
            losses["label"] = losses["label"] + (self.rare * batch.inputs[0]).sum()
        return losses


def gradients(out: Path, accumulation: int, is_cut: bool = False) -> None:
    """Write the gradients and losses of three windows, from this rank's share of each."""
    with join(toy.config(accumulation=accumulation)) as world:
        for step in range(STEPS):
            objective, batches = Rare(), toy.ToyBatches(dtype=torch.float64)
            window = [
                (index, batches[index])
                for index in range(step * accumulation, (step + 1) * accumulation)
                if world.owns(index, accumulation)
            ]
            assert len(window) == world.share(accumulation)
            trained = shard(objective, world) if is_cut else objective
            losses = add_gradients(trained, window, seed=SEED, hardware=CPU, world=world)
            found = {n: whole(p.grad) for n, p in trained.named_parameters() if p.grad is not None}
            safetensors.torch.save_file(found, out / f"{world.rank}-{step}.safetensors")
            told = {"means": losses.means, "parts": sorted(losses.parts.items())}
            (out / f"{world.rank}-{step}.json").write_text(json.dumps(told))


@dataclass
class Event:
    """Happens to one rank, in its `at`-th forward pass."""

    rank: int
    at: int
    what: int | str
    """A signal's number, "hang", or "full" for a disk that takes no more."""

    def __call__(self, batch: toy.ToyBatch) -> None:
        if int(os.environ["RANK"]) != self.rank:
            return
        self.at -= 1
        if self.at == 0:
            if self.what == "hang":
                time.sleep(600)
            if self.what == "full":
                _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
                return resource.setrlimit(resource.RLIMIT_FSIZE, (100, most))
            os.kill(os.getpid(), int(self.what))


class SomeBad(toy.ToyBatches):
    """NaN in the inputs of some micro-batches."""

    def __init__(self, bad: tuple[int, ...]) -> None:
        super().__init__(dtype=torch.float64)
        self.bad = bad

    def __getitem__(self, index: int) -> toy.ToyBatch:
        batch = super().__getitem__(index)
        scale = float("nan") if index in self.bad else 1.0
        return toy.ToyBatch(batch.ids, batch.inputs * scale, batch.labels)


def train(
    out: Path,
    changes: dict[str, Any],
    event: Event | None = None,
    bad: tuple[int, ...] = (),
    signalled: int | None = None,
    is_shared: bool = False,
) -> int:
    """Train the toy in float64, in out/run; write down the samples that this rank saw.

    With `signalled` there is an evaluation, in which that rank gets SIGTERM.
    """

    def evaluate() -> dict[str, float]:
        if is_shared:
            if os.environ["RANK"] == str(signalled):
                toy.send(signal.SIGTERM)
            return {"f1": 0.5}
        assert os.environ["RANK"] == "0"
        os.kill(int((out / f"pid-{signalled}").read_text()), signal.SIGTERM)
        time.sleep(600 if signalled == 0 else 0.3)
        return {"f1": 0.5}

    settings = {"schedule": "constant", "warmup": 0.0} | changes
    objective = toy.ToyObjective(torch.float64, before=event)
    with join(toy.config(**settings)) as world:
        result = toy.run(
            out / "run",
            objective,
            batches=SomeBad(bad),
            world=world,
            evaluate=None if signalled is None else evaluate,
            is_evaluation_shared=is_shared,
            **settings,
        )
    told = {
        "seen": objective.seen,
        "step": result.step,
        "tokens": result.tokens,
        "loss": result.loss,
        "evaluation": result.evaluation,
        "checkpoint": str(result.checkpoint),
    }
    (out / f"result-{world.rank}").write_text(json.dumps(told))
    return result.exit_code


class Looks:
    """Writes down what there is to see of an objective at steps 0, 2 and 3."""

    def __init__(self, out: Path, objective: nn.Module) -> None:
        self.out, self.objective = out, objective

    def is_due(self, step: int) -> bool:
        return step in (0, 2, 3)

    def __call__(self, step: int) -> None:
        assert os.environ["RANK"] == "0"
        safetensors.torch.save_file(self.objective.state_dict(), self.out / f"{step}.safetensors")


def look(out: Path, sharding: str, is_shared: bool) -> None:
    """Train with all that looks at the objective on the way, and tell what a rank keeps."""
    objective = toy.ToyObjective(torch.float64)
    settings = {"sharding": sharding, "statistics_every": 2, "evaluate_every": "3"}

    def evaluate() -> dict[str, float]:
        assert (is_shared or os.environ["RANK"] == "0") and not objective.training
        batch = toy.ToyBatches(dtype=torch.float64).batch(list(range(5)))
        return {"label": objective(batch, torch.zeros((), dtype=torch.int64))["label"].item()}

    with join(toy.config()) as world:
        result = toy.run(
            out / "run",
            objective,
            batches=toy.ToyBatches(dtype=torch.float64),
            world=world,
            evaluate=evaluate,
            is_evaluation_shared=is_shared,
            on_step=Looks(out, objective),
            **settings,
        )
    saved = load_checkpoint(result.checkpoint).parameters
    assert all(torch.equal(t, saved[name]) for name, t in objective.state_dict().items())
