"""Processes that each keep a part of the model are one run, and take the steps of one process."""

import json
import signal
from itertools import pairwise

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import nn

from bert.training.checkpoint_files import DamagedCheckpoint
from bert.training.distributed import World
from bert.training.gradients import add_gradients
from bert.training.sharding import is_sharded, put_together, shard
from bert.training.state import load_checkpoint, open_checkpoint
from tests.bert.training import ranks, toy
from tests.bert.training.ranks import CPU, SEED, STEPS, Event, Rare, together
from tests.bert.training.test_distributed import (  # noqa: F401
    G,
    alone,
    assert_close,
    log_of,
    result_of,
)
from tests.bert.training.test_kill import processes  # noqa: F401

FULL = {"sharding": "full"}


def checkpoint(out, step):
    return out / "run" / "checkpoints" / f"step-{step:08d}"


def parts(path):
    return sorted(file.name for file in path.glob("*.safetensors"))


def passes_of(rank, size, first_step, last_step):
    """The samples of a rank's passes: its micro-batches, the last one again where others go on."""
    batches, world, seen = toy.ToyBatches(), World(rank, size), []
    for step in range(first_step, last_step):
        own = [index for index in range(step * G, (step + 1) * G) if world.owns(index, G)]
        own += own[-1:] * (-(-G // size) - len(own))
        seen += [list(batches[index].ids) for index in own]
    return seen


@pytest.mark.parametrize(("size", "accumulation"), [(2, 5), (4, 5)])
def test_gradients_are_those_of_one_process(tmp_path, processes, size, accumulation):  # noqa: F811
    """With fewer rows than processes, and parameters that one process uses, or none."""
    codes = together(processes, ranks.gradients, tmp_path, accumulation, True, size=size)
    assert codes == [0] * size
    for step in range(STEPS):
        objective, batches = Rare(), toy.ToyBatches(dtype=torch.float64)
        indices = range(step * accumulation, (step + 1) * accumulation)
        window = [(index, batches[index]) for index in indices]
        losses = add_gradients(objective, window, seed=SEED, hardware=CPU)
        expected = {n: p.grad for n, p in objective.named_parameters() if p.grad is not None}
        got = safetensors.torch.load_file(tmp_path / f"{size - 1}-{step}.safetensors")
        assert got.keys() == expected.keys() and "never" not in got
        for name, gradient in expected.items():
            torch.testing.assert_close(got[name], gradient, rtol=0, atol=1e-12)
        told = json.loads((tmp_path / f"0-{step}.json").read_text())
        assert told["means"] == pytest.approx(losses.means, abs=1e-12)
        assert dict(told["parts"]) == losses.parts


def test_a_run_goes_on_with_other_processes_and_with_another_cut(
    tmp_path,
    processes,  # noqa: F811
    alone,  # noqa: F811
):
    step = 0
    for size, sharding, until in (
        (2, "full", 2), (1, "full", 3), (3, "full", 4), (2, "none", 5), (2, "full", 6)
    ):  # fmt: skip
        changes = {"budget": f"{until}", "sharding": sharding}
        assert together(processes, ranks.train, tmp_path, changes, size=size) == [0] * size
        is_cut = sharding == "full" and size > 1
        assert len(parts(checkpoint(tmp_path, until))) == (size if is_cut else 2)
        if is_cut:
            for rank in range(size):
                seen = result_of(tmp_path, rank)["seen"]
                assert seen == passes_of(rank, size, step, until)
        step = until
    assert_close(load_checkpoint(checkpoint(tmp_path, 6)), alone[2])
    steps, others = log_of(tmp_path, "step"), log_of(alone[0], "step")
    assert [record["step"] for record in steps] == [1, 2, 3, 4, 5, 6]
    for record, other in zip(steps, others, strict=True):
        assert record["loss"] == pytest.approx(other["loss"], rel=1e-10)
        assert record["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-10)
        assert record["tokens"] == other["tokens"]


def test_a_signal_to_one_process_ends_all_and_they_go_on_to_the_same_bits(
    tmp_path,
    processes,  # noqa: F811
):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert together(processes, ranks.train, whole, FULL) == [0, 0]
    # The second process has one micro-batch of a step, and makes two passes; this is the sixth.
    event = Event(rank=1, at=6, what=signal.SIGTERM)
    assert together(processes, ranks.train, halves, FULL, event) == [143, 143]
    assert [result_of(halves, rank)["step"] for rank in (0, 1)] == [3, 3]
    assert together(processes, ranks.train, halves, FULL) == [0, 0]
    assert [s["step"] for s in log_of(halves, "start")] == [0, 3]
    first, second = checkpoint(whole, 6), checkpoint(halves, 6)
    assert parts(first) == ["part-00001-of-00002.safetensors", "part-00002-of-00002.safetensors"]
    for name in parts(first):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_parts_are_rows_and_a_damaged_one_is_passed_over(tmp_path, processes, alone):  # noqa: F811
    changes = FULL | {"budget": "4", "checkpoint_every": "2"}
    assert together(processes, ranks.train, tmp_path, changes) == [0, 0]
    newest = checkpoint(tmp_path, 4)
    tensors = load_checkpoint(newest)
    expected = {**tensors.parameters, **tensors.optimizer}
    rows: dict[str, list[torch.Tensor]] = {}
    for name in parts(newest):
        with safe_open(newest / name, "pt") as file:
            for key in file.keys():  # noqa: SIM118
                rows.setdefault(key, []).append(file.get_tensor(key))
    assert rows.keys() == expected.keys() and open_checkpoint(newest).is_in_parts
    for key, found in rows.items():
        assert len(found) == (2 if expected[key].ndim else 1)
        assert torch.equal(torch.cat(found) if found[0].ndim else found[0], expected[key])

    for name in parts(newest):
        content = (newest / name).read_bytes()
        flipped = content[:-1] + bytes([content[-1] ^ 1])
        for damaged in (flipped, content[:-1]):
            (newest / name).write_bytes(damaged)
            with pytest.raises(DamagedCheckpoint, match=name):
                open_checkpoint(newest)
        (newest / name).unlink()
        with pytest.raises(DamagedCheckpoint, match=name):
            open_checkpoint(newest)
        (newest / name).write_bytes(content)
    (newest / parts(newest)[1]).write_bytes(flipped)

    assert together(processes, ranks.train, tmp_path, FULL) == [0, 0]
    told = (tmp_path / "stderr-0").read_text()
    assert "damaged checkpoint, kept as damaged-step-00000004" in told
    assert "falling back to step-00000002" in told
    assert_close(load_checkpoint(checkpoint(tmp_path, 6)), alone[2])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_others_and_the_last_checkpoint_serves(
    tmp_path,
    processes,  # noqa: F811
    rank,
    alone,  # noqa: F811
):
    changes = FULL | {"checkpoint_every": "2"}
    event = Event(rank, at=7, what=signal.SIGKILL)
    codes = together(processes, ranks.train, tmp_path, changes, event)
    assert codes[rank] == -9 and codes[1 - rank] == 2
    error = (tmp_path / f"error-{1 - rank}").read_text()
    assert error.startswith(f"process {1 - rank} of 2: another one has ended")
    assert "\n" not in error
    assert together(processes, ranks.train, tmp_path, changes) == [0, 0]
    assert [record["step"] for record in log_of(tmp_path, "start")] == [0, 2]
    assert_close(load_checkpoint(checkpoint(tmp_path, 6)), alone[2])


def test_a_process_that_hangs_is_not_waited_for_longer_than_told(tmp_path, processes):  # noqa: F811
    event = Event(rank=1, at=2, what="hang")
    codes = together(processes, ranks.train, tmp_path, FULL | {"timeout": "3s"}, event)
    assert codes[0] == 2
    assert "said nothing for 3s (training.timeout)" in (tmp_path / "error-0").read_text()


def test_a_full_disk_in_one_process_is_told_by_all(tmp_path, processes):  # noqa: F811
    changes = FULL | {"checkpoint_every": "2"}
    event = Event(rank=1, at=5, what="full")
    codes = together(processes, ranks.train, tmp_path, changes, event)
    assert codes[0] == 2 and codes[1] != 0
    error = (tmp_path / "error-0").read_text()
    assert "process 1 of 2: " in error and "was not written" in error
    assert [path.name for path in checkpoint(tmp_path, 2).parent.iterdir()] == ["step-00000002"]
    assert load_checkpoint(checkpoint(tmp_path, 2)).state.step == 2


def test_nan_in_one_process_keeps_all_from_the_step(tmp_path, processes):  # noqa: F811
    changes = FULL | {"checkpoint_every": "1", "keep_checkpoints": 9}
    assert together(processes, ranks.train, tmp_path, changes, None, (4,)) == [0, 0]
    (record,) = log_of(tmp_path, "bad_step")
    assert record["step"] == 2 and record["loss"] == record["grad_norm"] == "nan"
    assert record["source"] == "output of hidden (Linear), micro-batch 4"
    steps = [load_checkpoint(checkpoint(tmp_path, k)) for k in range(1, 7)]
    unchanged = [
        all(
            torch.equal(tensor, after.parameters[name])
            for name, tensor in before.parameters.items()
        )
        for before, after in pairwise(steps)
    ]
    assert unchanged == [True, False, False, False, False]
    assert all(tensor.isfinite().all() for tensor in steps[-1].parameters.values())


def test_what_looks_at_the_objective_sees_all_of_it(tmp_path, processes):  # noqa: F811
    outs = {sharding: tmp_path / sharding for sharding in ("none", "full")}
    for sharding, out in outs.items():
        is_shared = sharding == "full"
        assert together(processes, ranks.look, out, sharding, is_shared) == [0, 0]
    for step in (0, 2, 3):
        seen, expected = (
            safetensors.torch.load_file(out / f"{step}.safetensors") for out in outs.values()
        )
        for name, tensor in expected.items():
            torch.testing.assert_close(seen[name], tensor, rtol=1e-9, atol=1e-12)
    for kind in ("statistics", "evaluation"):
        ours, theirs = log_of(outs["full"], kind), log_of(outs["none"], kind)
        assert len(ours) == len(theirs) > 1
        for mine, other in zip(ours, theirs, strict=True):
            for name in {"results", "gradient_norm", "parameter_norm", "update_ratio"} & set(
                other
            ):
                assert mine[name] == pytest.approx(other[name], rel=1e-8, abs=1e-9)


@pytest.mark.errors
def test_a_parameter_of_one_number_is_refused_by_name():
    objective = toy.ToyObjective()
    objective.temperature = nn.Parameter(torch.ones(()))
    with pytest.raises(ValueError, match="^sharding: expected none, since temperature is one num"):
        shard(objective, World(0, 2))


def test_an_objective_that_is_not_cut_stays_as_it_is():
    objective = toy.ToyObjective()
    assert not is_sharded(objective)
    with put_together(objective, objective):
        pass
    assert objective.hidden.weight.shape == (8, 6)
