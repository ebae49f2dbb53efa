"""The smallest run that has all that can go wrong: ragged batches, two losses, seeded dropout."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bert.training.config import TrainingConfig
from bert.training.loop import train
from bert.training.objective import Objective
from bert.training.result import TrainingResult
from bert.training.state import optimizer_tensors, state_tensors

SAMPLES = 10
SIZES = (3, 3, 3, 1)  # an epoch of ten samples, in four micro-batches with a ragged end


@dataclass(frozen=True)
class ToyBatch:
    ids: tuple[int, ...]
    inputs: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> "ToyBatch":
        return ToyBatch(self.ids, self.inputs.to(device), self.labels.to(device))


class ToyBatches:
    """Ten samples, in another order each epoch; sample i has the id i and i + 1 real tokens."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(1234)
        self.seed = seed
        self.inputs = torch.randn(SAMPLES, 6, generator=generator, dtype=dtype)
        self.labels = torch.randint(0, 3, (SAMPLES,), generator=generator)

    def __getitem__(self, index: int) -> ToyBatch:
        epoch, position = divmod(index, len(SIZES))
        order = torch.randperm(
            SAMPLES, generator=torch.Generator().manual_seed(1000 * self.seed + epoch)
        )
        first = sum(SIZES[:position])
        return self.batch(order[first : first + SIZES[position]].tolist())

    def batch(self, ids: list[int]) -> ToyBatch:
        return ToyBatch(tuple(ids), self.inputs[ids], self.labels[ids])

    def tokens(self, batch: ToyBatch) -> int:
        return sum(batch.ids) + len(batch.ids)


class Seen(list[tuple[int, ...]]):
    """One list for an objective and its copies."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Seen":
        return self


class SeededDropout(nn.Module):
    def forward(self, x: Tensor, seed: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(int(seed))
        keep = torch.rand(x.shape, generator=generator, dtype=torch.float64) > 0.25
        return x * keep.to(x.dtype) / 0.75


class ToyObjective(Objective[ToyBatch]):
    """Cross-entropy on every row, and a square on the rows with an odd id: none in some batches.

    `before` is called with the batch at the start of each forward pass.
    """

    def __init__(
        self,
        dtype: torch.dtype = torch.float32,
        dropout: bool = True,
        before: Callable[[ToyBatch], None] | None = None,
        width: int = 8,
    ) -> None:
        super().__init__()
        self.before = before
        self.seen = Seen()
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.hidden = nn.Linear(6, width)
            self.norm = nn.LayerNorm(width)
            self.stock_dropout = nn.Dropout(0.1 if dropout else 0.0)
            self.output = nn.Linear(width, 3)
        self.dropout = SeededDropout() if dropout else None
        self.register_buffer("scale", torch.ones(()))
        self.to(dtype)

    def counts(self, batch: ToyBatch) -> dict[str, int]:
        return {"label": len(batch.ids), "odd": sum(i % 2 for i in batch.ids)}

    def forward(self, batch: ToyBatch, dropout_seed: Tensor) -> dict[str, Tensor]:
        if self.before is not None:
            self.before(batch)
        self.seen.append(batch.ids)
        hidden = self.norm(torch.tanh(self.hidden(batch.inputs)))
        if self.dropout is not None and self.training:
            hidden = self.dropout(hidden, dropout_seed)
        logits = self.output(self.stock_dropout(hidden)) * self.scale
        odd = torch.tensor([i % 2 for i in batch.ids], dtype=logits.dtype, device=logits.device)
        return {
            "label": nn.functional.cross_entropy(logits, batch.labels, reduction="sum"),
            "odd": (logits.square().mean(1) * odd).sum(),
        }


def config(**changes: Any) -> TrainingConfig:
    """A short run that saves nothing before its end."""
    settings: dict[str, Any] = {
        "budget": "6",
        "learning_rate": 0.05,
        "warmup": 0.3,
        "accumulation": 3,
        "checkpoint_every": None,
        "device": "cpu",
        "threads": 1,
    }
    return TrainingConfig(**(settings | changes))


def run(run_dir: Path, objective: Objective | None = None, **options: Any) -> TrainingResult:
    """Train a toy; options that are fields of the configuration go there."""
    fields = TrainingConfig.__dataclass_fields__
    changes = {name: options.pop(name) for name in list(options) if name in fields}
    batches = options.pop("batches", None) or ToyBatches()
    return train(objective or ToyObjective(), batches, config(**changes), run_dir, **options)


def everything(objective: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every tensor that training changes."""
    return {**state_tensors(objective), **optimizer_tensors(objective, optimizer)}


def send(signum: signal.Signals) -> None:
    os.kill(os.getpid(), signum)


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now
