import multiprocessing
import os
import signal
import threading
import time

import pytest
import torch

from bert.training import checkpoint_files
from bert.training.checkpoint_files import list_checkpoints
from bert.training.interrupt import Interrupted, Interrupts
from bert.training.log import read_log
from bert.training.state import load_checkpoint
from tests.bert.training import victim
from tests.bert.training.test_kill import processes  # noqa: F401
from tests.bert.training.toy import ToyBatches, ToyObjective, run, send

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(autouse=True)
def handlers_come_back():
    before = [signal.getsignal(signum) for signum in SIGNALS]
    yield
    assert [signal.getsignal(signum) for signum in SIGNALS] == before


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_a_step_saves_that_step(tmp_path, signum, code):
    calls = []

    def before(batch):
        calls.append(batch)
        if len(calls) == 6:
            send(signum)

    result = run(tmp_path, ToyObjective(before=before))
    assert (result.step, result.interrupted, result.exit_code) == (2, signum, code)
    assert result.checkpoint is not None
    assert load_checkpoint(result.checkpoint).state.step == 2


def test_a_signal_in_an_evaluation_abandons_it(tmp_path):
    started = time.monotonic()
    objective, seen = ToyObjective(), []

    def evaluate():
        seen.append(time.monotonic())
        if len(seen) == 2:
            send(signal.SIGINT)
            time.sleep(60)
        return {"f1": 0.5}

    result = run(tmp_path, objective, evaluate=evaluate, evaluate_every="2")
    assert time.monotonic() - started < 30
    assert (result.step, result.interrupted) == (4, signal.SIGINT)
    assert load_checkpoint(result.checkpoint).state.evaluated_step == 2
    assert objective.training

    result = run(tmp_path, evaluate=evaluate, evaluate_every="2")
    assert result.exit_code == 0
    evaluated = [record["step"] for record in read_log(tmp_path / "log.jsonl", "evaluation")]
    assert evaluated == [2, 4, 6]


def test_an_evaluation_that_is_abandoned_at_the_very_end_is_made_up_for_once(tmp_path):
    calls = []

    def evaluate():
        calls.append(1)
        if len(calls) == 1:
            send(signal.SIGTERM)
        return {"f1": 0.5}

    assert run(tmp_path, evaluate=evaluate).exit_code == 143
    for _ in range(2):
        assert run(tmp_path, evaluate=evaluate).evaluation == {"f1": 0.5}
    assert len(list(read_log(tmp_path / "log.jsonl", "evaluation"))) == 1


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_signal_in_a_save_lets_it_finish(tmp_path, monkeypatch, when):
    rename = os.rename

    def rename_and_signal(source, target):
        if when == "before":
            send(signal.SIGTERM)
        rename(source, target)
        if when == "after":
            send(signal.SIGTERM)

    monkeypatch.setattr(checkpoint_files.os, "rename", rename_and_signal)
    result = run(tmp_path, checkpoint_every="2")
    assert (result.step, result.exit_code) == (2, 143)
    (path,) = list_checkpoints(tmp_path / "checkpoints")
    assert load_checkpoint(path).state.step == 2


class Slow(ToyBatches):
    """Micro-batch 4 takes ten minutes."""

    def __getitem__(self, index):
        if index == 4:
            time.sleep(600)
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_while_a_batch_is_waited_for_does_not_wait(tmp_path, workers):
    started = time.monotonic()
    threading.Timer(2, send, [signal.SIGTERM]).start()
    result = run(tmp_path, batches=Slow(), loader_workers=workers)
    assert (result.step, result.exit_code) == (1, 143)
    assert time.monotonic() - started < 30
    assert multiprocessing.active_children() == []


def test_before_the_first_step_there_is_nothing_to_save(tmp_path):
    result = run(tmp_path, ToyObjective(before=lambda batch: send(signal.SIGINT)), accumulation=3)
    assert (result.step, result.checkpoint, result.exit_code) == (0, None, 130)
    assert run(tmp_path).step == 6


def in_a_process(processes, run_dir, signals, pause):  # noqa: F811
    arguments = (run_dir, [int(signum) for signum in signals], pause)
    process = processes.Process(target=victim.train_and_signal, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode, [path.name for path in list_checkpoints(run_dir / "checkpoints")]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_process_ends_with_the_shells_code(tmp_path, processes, signum, code):  # noqa: F811
    assert in_a_process(processes, tmp_path, [signum], 0) == (code, ["step-00000002"])


@pytest.mark.parametrize("second", SIGNALS)
def test_the_second_signal_ends_it_at_once(tmp_path, processes, second):  # noqa: F811
    code, checkpoints = in_a_process(processes, tmp_path, [signal.SIGINT, second], 0.5)
    assert (code, checkpoints) == (128 + second, [])
    assert run(tmp_path).step == 6


def test_a_request_that_comes_twice_at_the_same_time_is_one(tmp_path, processes):  # noqa: F811
    signals = [signal.SIGTERM, signal.SIGTERM]
    assert in_a_process(processes, tmp_path, signals, 0.001) == (143, ["step-00000002"])


def test_handlers_come_back_after_an_error_too(tmp_path):
    mine = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        handler = signal.getsignal(signal.SIGTERM)
        with pytest.raises(ZeroDivisionError):
            run(tmp_path, ToyObjective(before=lambda batch: 1 // 0))
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, mine)


def test_a_thread_trains_without_handlers(tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(run(tmp_path)))
    thread.start()
    thread.join()
    torch.set_num_threads(1)
    assert results[0].step == 6


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 0)])
def test_a_forked_child_leaves_ctrl_c_to_its_parent_and_can_be_ended(signum, status):
    with Interrupts() as interrupts:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signum)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == status
        assert interrupts.received is None


def test_what_changes_no_state_is_not_begun_after_a_signal():
    with Interrupts() as interrupts:
        send(signal.SIGTERM)
        with pytest.raises(Interrupted), interrupts.abandonable():
            pytest.fail("begun")
        with pytest.raises(Interrupted):
            interrupts.check()
