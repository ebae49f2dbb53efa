"""Micro-batches in order of their index, prepared here or ahead of time by other processes."""

import sys
from collections.abc import Generator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from bert.training.interrupt import ignore_in_worker
from bert.training.objective import Batches, BatchT


class _AsDataset(Dataset[Any]):
    """Batches, under the type that DataLoader asks for."""

    def __init__(self, batches: Batches[Any]) -> None:
        self.batches = batches

    def __getitem__(self, index: int) -> Any:
        return self.batches[index]


def micro_batches(
    batches: Batches[BatchT], start: int, workers: int
) -> Generator[tuple[int, BatchT]]:
    """Yield (index, micro-batch) from `start` on, without end; the same for any `workers`.

    A worker that dies ends the run with torch's RuntimeError, within seconds.
    """
    endless = range(start, sys.maxsize)
    if workers == 0:
        for index in endless:
            yield index, batches[index]
        return
    loader = DataLoader(
        _AsDataset(batches),
        batch_size=None,
        sampler=endless,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=ignore_in_worker,
        # Else the loader would draw its seed from the global generator.
        generator=torch.Generator(),
    )
    yield from zip(endless, loader, strict=False)


def _as_it_is(batch: Any) -> Any:
    return batch
