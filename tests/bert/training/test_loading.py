import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest
import torch

from bert.training.loading import micro_batches
from tests.bert.training.toy import ToyBatches

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("workers", [0, 2, 4])
def test_order_and_content_are_the_same_for_any_number_of_workers(workers):
    batches, state = ToyBatches(), torch.get_rng_state()
    with closing(micro_batches(batches, 5, workers)) as source:
        got = list(islice(source, 9))
    assert [index for index, _ in got] == list(range(5, 14))
    for index, batch in got:
        assert batch.ids == batches[index].ids
        assert torch.equal(batch.inputs, batches[index].inputs)
    assert torch.equal(torch.get_rng_state(), state)
    assert multiprocessing.active_children() == []


def alive(pid: int) -> bool:
    return pid in {child.pid for child in multiprocessing.active_children()}


def test_a_worker_is_deaf_to_the_signals_of_others():
    with closing(micro_batches(ToyBatches(), 0, 2)) as source:
        next(source)
        pids = [str(child.pid) for child in multiprocessing.active_children()]
        for name in ("INT", "TERM", "TERM"):
            subprocess.run(["kill", f"-{name}", *pids], check=True)
        assert [index for index, _ in islice(source, 30)] == list(range(1, 31))
        assert all(alive(int(pid)) for pid in pids)


def runs(pid: int) -> bool:
    try:
        # The state follows the name; an orphan may be a zombie until init has looked at it.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


SLEEPER = """
import multiprocessing, os, sys, time
from itertools import islice
from pathlib import Path
from bert.training.loading import micro_batches
from tests.bert.training.toy import ToyBatches

class Stuck(ToyBatches):
    def __getitem__(self, index):
        if index == 1:
            time.sleep(600)
        return super().__getitem__(index)

source = micro_batches(Stuck(), 0, 2)
next(source)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
raise ZeroDivisionError
"""


def test_a_stuck_worker_does_not_outlive_its_parent():
    ended = subprocess.run(
        [sys.executable, "-c", SLEEPER], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert "ZeroDivisionError" in ended.stderr
    pids = [int(pid) for pid in ended.stdout.split()]
    assert len(pids) == 2
    assert not any(map(runs, pids))


def test_a_worker_that_its_parent_ended_has_not_failed():
    # Else torch raises in the parent while it ends its workers, and the rest of them live on.
    with closing(micro_batches(ToyBatches(), 0, 2)) as source:
        next(source)
        for child in multiprocessing.active_children():
            child.terminate()
            child.join(10)
            assert child.exitcode == 0


@pytest.mark.parametrize("repeat", range(3))
def test_a_dead_worker_ends_the_run_soon(repeat):
    with closing(micro_batches(ToyBatches(), 0, 2)) as source:
        next(source)
        children, started = multiprocessing.active_children(), time.monotonic()
        with pytest.raises(RuntimeError, match="DataLoader worker"):
            os.kill(children[repeat % 2].pid, signal.SIGKILL)
            for _ in islice(source, 10_000):
                time.sleep(0.001)
        source.close()
        assert time.monotonic() - started < 20
    for child in children:
        child.join(10)
        assert not child.is_alive()


class Failing(ToyBatches):
    def __getitem__(self, index):
        if index == 4:
            raise ValueError("row 4: no label")
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_the_batches_arrives_and_leaves_no_worker(workers):
    with pytest.raises(ValueError, match="row 4: no label") as held:
        list(islice(micro_batches(Failing(), 0, workers), 10))
    assert multiprocessing.active_children() == []
    assert held.tb is not None


@pytest.mark.parametrize("workers", [0, 2])
def test_one_of_several_processes_prepares_its_own_micro_batches_alone(workers):
    with closing(micro_batches(ToyBatches(), 5, workers, lambda index: index % 3 == 1)) as source:
        got = list(islice(source, 3))
    assert [(index, batch.ids) for index, batch in got] == [
        (index, ToyBatches()[index].ids) for index in (7, 10, 13)
    ]
