"""Several processes are one run: the same samples, the same gradients, one end."""

import json
import signal

import pytest
import safetensors.torch
import torch

from bert.training.distributed import World, join
from bert.training.gradients import add_gradients
from bert.training.log import read_log
from bert.training.state import load_checkpoint
from tests.bert.training import ranks, toy
from tests.bert.training.ranks import CPU, SEED, STEPS, Event, Rare, together
from tests.bert.training.test_kill import processes  # noqa: F401

G = 3  # micro-batches of a step, which two processes share unevenly


def log_of(out, kind):
    return list(read_log(out / "run" / "log.jsonl", kind))


def result_of(out, rank):
    return json.loads((out / f"result-{rank}").read_text())


def seen_by(out, size, first_step, last_step):
    """The samples of each micro-batch, in the order of their index, from what each rank saw."""
    seen = [iter(result_of(out, rank)["seen"]) for rank in range(size)]
    order = [tuple(next(seen[index % G % size])) for index in range(first_step * G, last_step * G)]
    assert all(next(rest, None) is None for rest in seen)
    return order


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process, without torchrun's environment."""
    out = tmp_path_factory.mktemp("alone")
    objective = toy.ToyObjective(torch.float64)
    result = toy.run(
        out / "run",
        objective,
        batches=toy.ToyBatches(dtype=torch.float64),
        schedule="constant",
        warmup=0.0,
    )
    return out, objective.seen, load_checkpoint(result.checkpoint)


def assert_close(checkpoint, expected):
    """In float64: the sums' order differs, and Adam's division makes the most of it."""
    for name, tensor in expected.parameters.items():
        torch.testing.assert_close(checkpoint.parameters[name], tensor, rtol=1e-9, atol=1e-12)


def test_every_micro_batch_is_owned_once():
    for size in range(1, 6):
        worlds = [World(rank, size) for rank in range(size)]
        for accumulation in range(size, 9):
            for index in range(3 * accumulation):
                assert sum(world.owns(index, accumulation) for world in worlds) == 1
            shares = [world.share(accumulation) for world in worlds]
            assert sum(shares) == accumulation and max(shares) - min(shares) <= 1


@pytest.mark.parametrize(("size", "accumulation"), [(2, 2), (2, 5), (3, 4)])
def test_gradients_are_those_of_one_process(tmp_path, processes, size, accumulation):  # noqa: F811
    assert together(processes, ranks.gradients, tmp_path, accumulation, size=size) == [0] * size
    for step in range(STEPS):
        objective, batches = Rare(), toy.ToyBatches(dtype=torch.float64)
        indices = range(step * accumulation, (step + 1) * accumulation)
        window = [(index, batches[index]) for index in indices]
        losses = add_gradients(objective, window, seed=SEED, hardware=CPU)
        expected = {n: p.grad for n, p in objective.named_parameters() if p.grad is not None}
        files = [tmp_path / f"{rank}-{step}.safetensors" for rank in range(size)]
        assert len({file.read_bytes() for file in files}) == 1
        got = safetensors.torch.load_file(files[0])
        assert got.keys() == expected.keys() and "never" not in got
        for name, gradient in expected.items():
            torch.testing.assert_close(got[name], gradient, rtol=0, atol=1e-12)
        for rank in range(size):
            told = json.loads((tmp_path / f"{rank}-{step}.json").read_text())
            assert told["means"] == pytest.approx(losses.means, abs=1e-12)
            assert dict(told["parts"]) == losses.parts


def test_a_run_goes_on_with_another_number_of_processes(tmp_path, processes, alone):  # noqa: F811
    _, expected, final = alone
    seen, step = [], 0
    for size, until in ((2, 2), (1, 3), (3, 5), (2, 6)):
        changes = {"budget": f"{until}"}
        assert together(processes, ranks.train, tmp_path, changes, size=size) == [0] * size
        seen += seen_by(tmp_path, size, step, until)
        step = until
    assert seen == expected
    assert_close(load_checkpoint(tmp_path / "run" / "checkpoints" / "step-00000006"), final)
    steps, others = log_of(tmp_path, "step"), log_of(alone[0], "step")
    assert [record["step"] for record in steps] == [1, 2, 3, 4, 5, 6]
    for record, other in zip(steps, others, strict=True):
        assert record["loss"] == pytest.approx(other["loss"], rel=1e-10)
        assert record["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-10)
        assert record["tokens"] == other["tokens"]
    assert [s["machine"]["processes"] for s in log_of(tmp_path, "start")] == [2, 1, 3, 2]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_one_process_ends_all_and_they_go_on_to_the_same_bits(
    tmp_path,
    processes,  # noqa: F811
    signum,
    code,
):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert together(processes, ranks.train, whole, {}) == [0, 0]
    # The second process has one micro-batch of a step; this is the one of its third.
    event = Event(rank=1, at=3, what=signum)
    assert together(processes, ranks.train, halves, {}, event) == [code, code]
    assert [result_of(halves, rank)["step"] for rank in (0, 1)] == [3, 3]
    assert load_checkpoint(halves / "run" / "checkpoints" / "step-00000003").state.step == 3
    seen = seen_by(halves, 2, 0, 3)
    assert together(processes, ranks.train, halves, {"loader_workers": 2}) == [0, 0]
    assert seen + seen_by(halves, 2, 3, 6) == seen_by(whole, 2, 0, 6)
    first, second = (
        load_checkpoint(out / "run" / "checkpoints" / "step-00000006") for out in (whole, halves)
    )
    for ours, theirs in (
        (first.parameters, second.parameters),
        (first.optimizer, second.optimizer),
    ):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert result_of(whole, 0) | {"checkpoint": "", "seen": []} == result_of(whole, 1) | {
        "checkpoint": "",
        "seen": [],
    }


@pytest.mark.parametrize("signalled", [0, 1])
def test_a_signal_in_the_evaluation_of_the_first(tmp_path, processes, signalled):  # noqa: F811
    """Its own abandons the evaluation, another's lets it end."""
    changes = {"evaluate_every": "2"}
    codes = together(processes, ranks.train, tmp_path, changes, None, (), signalled)
    assert codes == [143, 143]
    assert result_of(tmp_path, 1)["evaluation"] == (None if signalled == 0 else {"f1": 0.5})
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "step-00000002").state.step == 2


def test_a_signal_in_a_shared_evaluation_waits_for_its_end(tmp_path, processes):  # noqa: F811
    changes = {"evaluate_every": "2"}
    codes = together(processes, ranks.train, tmp_path, changes, None, (), 1, True)
    assert codes == [143, 143]
    assert [result_of(tmp_path, rank)["evaluation"] for rank in (0, 1)] == [{"f1": 0.5}] * 2


def test_nan_in_one_process_keeps_all_from_the_step(tmp_path, processes):  # noqa: F811
    changes = {"checkpoint_every": "1", "keep_checkpoints": 9}
    assert together(processes, ranks.train, tmp_path, changes, None, (4,)) == [0, 0]
    (record,) = log_of(tmp_path, "bad_step")
    assert record["step"] == 2 and record["loss"] == record["grad_norm"] == "nan"
    assert record["source"] == "output of hidden (Linear), micro-batch 4"
    checkpoints = tmp_path / "run" / "checkpoints"
    one, two, last = (load_checkpoint(checkpoints / f"step-0000000{k}") for k in (1, 2, 6))
    for before, after in ((one.parameters, two.parameters), (one.optimizer, two.optimizer)):
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(tensor.isfinite().all() for tensor in last.parameters.values())
    assert result_of(tmp_path, 0)["loss"] == result_of(tmp_path, 1)["loss"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_others_and_the_last_checkpoint_serves(
    tmp_path,
    processes,  # noqa: F811
    rank,
    alone,
):
    event = Event(rank, at=7 if rank == 0 else 4, what=signal.SIGKILL)
    codes = together(processes, ranks.train, tmp_path, {"checkpoint_every": "2"}, event)
    assert codes[rank] == -9 and codes[1 - rank] == 2
    error = (tmp_path / f"error-{1 - rank}").read_text()
    assert (
        error.startswith(f"process {1 - rank} of 2: another one has ended") and "\n" not in error
    )
    assert together(processes, ranks.train, tmp_path, {"checkpoint_every": "2"}) == [0, 0]
    assert [record["step"] for record in log_of(tmp_path, "start")] == [0, 2]
    assert_close(load_checkpoint(tmp_path / "run" / "checkpoints" / "step-00000006"), alone[2])


def test_a_process_that_hangs_is_not_waited_for_longer_than_told(tmp_path, processes):  # noqa: F811
    event = Event(rank=1, at=2, what="hang")
    codes = together(processes, ranks.train, tmp_path, {"timeout": "2s"}, event)
    assert codes[0] == 2
    assert "said nothing for 2s (training.timeout)" in (tmp_path / "error-0").read_text()


def test_only_the_first_speaks_and_writes(tmp_path, processes):  # noqa: F811
    assert together(processes, ranks.train, tmp_path, {"budget": "1"}) == [0, 0]
    assert ", 2 processes" in (tmp_path / "stderr-0").read_text()
    assert (tmp_path / "stderr-1").read_text() == ""
    assert len(log_of(tmp_path, "start")) == len(log_of(tmp_path, "step")) == 1


@pytest.mark.errors
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulation": 1}, "accumulation: expected 2 or more, a micro-batch of each step"),
        ({"device": "cuda:0"}, "device: expected auto, cpu or cuda, since each of the 2"),
    ],
)
def test_what_several_processes_cannot_do_is_refused(monkeypatch, changes, message):
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError) as error, join(toy.config(**changes)):
        pass
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.errors
@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "WORLD_SIZE"])
def test_half_of_torchruns_environment_is_told(monkeypatch, name):
    for other in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(other, "2")
    monkeypatch.setenv(name, "")
    with pytest.raises(
        ValueError, match=f"^{name}: expected the number that torchrun sets, got ''"
    ):
        with join(toy.config()):
            pass
