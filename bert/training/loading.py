"""Micro-batches in order of their index, prepared here or ahead of time by other processes."""

import sys
from collections.abc import Callable, Generator, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from bert.training.interrupt import leave_signals_to_parent
from bert.training.objective import Batches, BatchT


class _AsDataset(Dataset[Any]):
    """Batches, under the type that DataLoader asks for."""

    def __init__(self, batches: Batches[Any]) -> None:
        self.batches = batches

    def __getitem__(self, index: int) -> Any:
        return self.batches[index]


def micro_batches(
    batches: Batches[BatchT],
    start: int,
    workers: int,
    is_mine: Callable[[int], bool] = lambda index: True,
) -> Generator[tuple[int, BatchT]]:
    """Yield (index, micro-batch) from `start` on, without end; the same for any `workers`.

    Of several processes that train together each takes the indices that are its own.

    A worker that dies ends the run with torch's RuntimeError, within seconds.
    """

    def indices() -> Iterator[int]:
        return filter(is_mine, range(start, sys.maxsize))

    if workers == 0:
        for index in indices():
            yield index, batches[index]
        return
    loader = DataLoader(
        _AsDataset(batches),
        batch_size=None,
        sampler=indices(),
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=leave_signals_to_parent,
        # Else the loader would draw its seed from the global generator.
        generator=torch.Generator(),
    )
    prepared: Any = iter(loader)
    try:
        yield from zip(indices(), prepared, strict=False)
    except (ConnectionError, EOFError) as error:
        # It died between handing over a batch and handing over the memory that the batch is in.
        raise RuntimeError(f"DataLoader worker died: {error}") from error
    finally:
        # Not left to the garbage collector: while a traceback holds on to the iterator of a run
        # that failed, torch raises at every SIGCHLD, wherever the process is by then.
        prepared._shutdown_workers()


def _as_it_is(batch: Any) -> Any:
    return batch
