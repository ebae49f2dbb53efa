"""Processes that make shards, and end with the one that started them."""

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Any, Protocol

from bert.tokenization import Tokenizer
from pretrain.shards import prepare_shard

_LOCK = "workers"


class ShardExecutor(Protocol):
    """Makes shards somewhere: in processes here, or on the machines of a cluster."""

    at_once: int
    """How many it makes at a time."""

    def submit(self, text: Path, directory: Path) -> Future[Any]:
        """Begin to turn a text into a shard (`prepare_shard`)."""
        ...


ShardWorkers = Callable[[Path, Tokenizer, int], AbstractContextManager[ShardExecutor]]
"""Starts an executor, given where shards are made, the tokenizer, and max_sentence_tokens."""


@contextmanager
def local_workers(
    count: int, place: Path, tokenizer: Tokenizer, max_sentence_tokens: int
) -> Iterator[ShardExecutor]:
    """Start processes on this machine.

    They keep a lock in `place` as long as they live. If this process ends, killed or not, they see
    the end of a pipe and end too; `wait_for_workers` waits for that.
    """
    (place / _LOCK).touch()
    context = get_context("spawn")  # forked, they would have our threads' locks and no threads
    ending, ours = context.Pipe(duplex=False)
    arguments = (ending, place, tokenizer, max_sentence_tokens)
    pool = ProcessPoolExecutor(count, context, _begin, arguments)
    try:
        yield _Pool(pool, count)
    except BaseException:
        ours.close()  # ends them in the middle of what they do
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        ours.close()
        ending.close()


def wait_for_workers(place: Path) -> None:
    """Wait until none is left of the workers of a process that was killed."""
    path = place / _LOCK
    if path.exists():
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)


def collect(futures: set[Future[Any]], *, leave: int) -> set[Future[Any]]:
    """Wait until at most `leave` are unfinished, and return those.

    Raises:
        OSError: a shard couldn't be written, or a worker was killed.
    """
    while len(futures) > leave:
        done, futures = wait(futures, return_when=FIRST_COMPLETED)
        for future in done:
            try:
                future.result()
            except BrokenProcessPool as error:
                raise OSError(
                    "a process that makes shards was killed, perhaps for its memory; "
                    "the same command goes on from the shards that are whole"
                ) from error
    return futures


class _Pool:
    def __init__(self, pool: ProcessPoolExecutor, at_once: int) -> None:
        self._pool, self.at_once = pool, at_once

    def submit(self, text: Path, directory: Path) -> Future[Any]:
        return self._pool.submit(_work, text, directory)


# What a worker was started with. The tokenizer remembers the words that it met, so it is kept.
_settings: tuple[Tokenizer, int]


def _begin(ending: Connection, place: Path, tokenizer: Tokenizer, longest: int) -> None:
    global _settings
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this
    lock = os.open(place / _LOCK, os.O_RDONLY)  # open until this process ends
    fcntl.flock(lock, fcntl.LOCK_SH)
    if ending.poll():
        os._exit(1)  # too late: who waited for the workers may have begun anew
    Thread(target=_end_with, args=(ending,), daemon=True).start()
    _settings = tokenizer, longest


def _end_with(ending: Connection) -> None:
    ending.poll(None)
    os._exit(1)


def _work(text: Path, directory: Path) -> None:
    prepare_shard(text, directory, *_settings)
