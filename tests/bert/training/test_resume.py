"""A run that stops anywhere and goes on is the run that never stopped."""

import dataclasses
import shutil
import signal
from pathlib import Path

import pytest
import torch

from bert.training.checkpoint_files import DamagedCheckpoint, list_checkpoints
from bert.training.config import CHANGEABLE, TrainingConfig
from bert.training.log import read_log
from bert.training.state import Checkpoint, load_checkpoint
from tests.bert.training.toy import SIZES, ToyBatch, ToyBatches, ToyObjective, config, run, send

STEPS, ACCUMULATION = 6, 3
MICRO_BATCHES = STEPS * ACCUMULATION  # four and a half epochs


class Stop:
    """Sends a signal at the n-th call."""

    def __init__(self, at: int, signum: signal.Signals = signal.SIGTERM):
        self.left = at
        self.signum = signum

    def __call__(self, *_: object) -> None:
        self.left -= 1
        if self.left == 0:
            send(self.signum)


class StoppingBatches(ToyBatches):
    def __init__(self, stop: Stop):
        super().__init__()
        self.stop = stop

    def __getitem__(self, index: int) -> ToyBatch:
        self.stop()
        return super().__getitem__(index)


@dataclasses.dataclass
class Trace:
    """All that a finished run leaves."""

    final: Checkpoint
    sample_ids: list[tuple[int, ...]]
    steps: list[dict]
    random: torch.Tensor


def steps_of(run_dir: Path) -> list[dict]:
    timed = ("elapsed", "tokens_per_second")
    records = read_log(run_dir / "log.jsonl", "step")
    return [{k: v for k, v in record.items() if k not in timed} for record in records]


def trace(run_dir: Path, checkpoint: Path, sample_ids: list[tuple[int, ...]]) -> Trace:
    return Trace(load_checkpoint(checkpoint), sample_ids, steps_of(run_dir), torch.get_rng_state())


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory) -> Trace:
    run_dir, objective = tmp_path_factory.mktemp("reference") / "run", ToyObjective()
    result = run(run_dir, objective)
    assert result.step == STEPS and result.interrupted is None and result.exit_code == 0
    return trace(run_dir, result.checkpoint, objective.seen)


def assert_same(got: Trace, expected: Trace) -> None:
    assert got.sample_ids == expected.sample_ids
    assert got.steps == expected.steps
    for ours, theirs in (
        (got.final.parameters, expected.final.parameters),
        (got.final.optimizer, expected.final.optimizer),
    ):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert torch.equal(ours[name], theirs[name]), name
    assert torch.equal(got.random, expected.random)
    assert got.final.state.tokens == expected.final.state.tokens
    assert got.final.state.step == expected.final.state.step


def test_the_reference_sees_each_epoch_once_in_its_own_order(never_stopped):
    ids = never_stopped.sample_ids
    assert len(ids) == MICRO_BATCHES
    per_epoch = [sum(ids[e : e + 4], ()) for e in range(0, 16, len(SIZES))]
    assert all(sorted(epoch) == list(range(10)) for epoch in per_epoch)
    assert len(set(per_epoch)) == len(per_epoch)


# Without workers in each micro-batch; with them in each step, at its start, its midst or its end.
@pytest.mark.parametrize(
    ("workers", "stops"),
    [(0, range(1, MICRO_BATCHES + 1)), (2, (1, 5, 9, 10, 14, 18)), (4, (2, 6, 7, 11, 15, 16))],
)
def test_stopped_in_any_step_it_ends_bit_equal(tmp_path, never_stopped, workers, stops):
    for at in stops:
        run_dir = tmp_path / str(at)
        first = ToyObjective(before=Stop(at))
        result = run(run_dir, first, loader_workers=workers)
        # A window is finished if its last micro-batch is under way, and else abandoned.
        assert result.step == at // ACCUMULATION
        assert result.interrupted == signal.SIGTERM
        second = ToyObjective()
        with torch.no_grad():
            for parameter in second.parameters():
                parameter.fill_(99.0)
        if result.step == 0:
            assert result.checkpoint is None
            second = ToyObjective()
        result = run(run_dir, second, loader_workers=workers)
        assert result.step == STEPS and result.interrupted is None
        seen = first.seen[: at // ACCUMULATION * ACCUMULATION] + second.seen
        assert_same(trace(run_dir, result.checkpoint, seen), never_stopped)


def test_stopped_while_a_batch_is_prepared_it_ends_bit_equal(tmp_path, never_stopped):
    for at in range(1, MICRO_BATCHES + 1):
        run_dir, first, second = tmp_path / str(at), ToyObjective(), ToyObjective()
        result = run(run_dir, first, batches=StoppingBatches(Stop(at)))
        assert result.step == (at - 1) // ACCUMULATION == len(first.seen) // ACCUMULATION
        result = run(run_dir, second)
        assert_same(trace(run_dir, result.checkpoint, first.seen + second.seen), never_stopped)


RECIPES = {
    "lamb": {"optimizer": "lamb"},
    "bert_adam": {"optimizer": "bert_adam"},
    "tokens": {"budget": "240tok", "schedule": "wsd", "checkpoint_every": "90tok"},
    "cosine": {"schedule": "cosine", "warmup": 0.0},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_stopped_in_any_step_another_recipe_ends_bit_equal(tmp_path, recipe):
    changes, whole = RECIPES[recipe], ToyObjective()
    result = run(tmp_path / "whole", whole, **changes)
    assert result.step == STEPS
    expected = trace(tmp_path / "whole", result.checkpoint, whole.seen)
    for at in range(1, MICRO_BATCHES + 1, ACCUMULATION):
        run_dir, first, second = tmp_path / str(at), ToyObjective(), ToyObjective()
        run(run_dir, first, batches=StoppingBatches(Stop(at)), **changes)
        result = run(run_dir, second, **changes)
        assert_same(trace(run_dir, result.checkpoint, first.seen + second.seen), expected)


def test_stopped_again_and_again_it_ends_bit_equal(tmp_path, never_stopped):
    seen, stops = [], 0
    while True:
        objective = ToyObjective(before=Stop(ACCUMULATION + 1))
        result = run(tmp_path, objective, loader_workers=2 * (stops % 2))
        seen += objective.seen[: ACCUMULATION * (len(objective.seen) // ACCUMULATION)]
        if result.interrupted is None:
            break
        stops += 1
    assert stops == STEPS - 1
    assert_same(trace(tmp_path, result.checkpoint, seen), never_stopped)


@pytest.mark.parametrize("checkpoint_every", ["1", "2", "4"])
def test_from_any_checkpoint_of_a_run_it_ends_bit_equal(tmp_path, never_stopped, checkpoint_every):
    run(tmp_path / "run", checkpoint_every=checkpoint_every, keep_checkpoints=9)
    for checkpoint in list_checkpoints(tmp_path / "run" / "checkpoints"):
        fork = tmp_path / f"fork-{checkpoint.name}"
        result = run(fork, resume=checkpoint)
        final = load_checkpoint(result.checkpoint or checkpoint)
        for name, tensor in never_stopped.final.parameters.items():
            assert torch.equal(final.parameters[name], tensor)
        skipped = load_checkpoint(checkpoint).state.step
        assert steps_of(fork) == never_stopped.steps[skipped:]


def test_a_finished_run_is_left_as_it_is(tmp_path):
    evaluations = []

    def evaluate():
        evaluations.append(1)
        return {"f1": 0.5}

    first = run(tmp_path, evaluate=evaluate)
    objective = ToyObjective()
    second = run(tmp_path, objective, evaluate=evaluate)
    assert second == first and evaluations == [1] and objective.seen == []
    assert torch.equal(
        objective.output.weight, load_checkpoint(first.checkpoint).parameters["output.weight"]
    )


def test_a_longer_budget_goes_on_with_a_finished_run(tmp_path):
    run(tmp_path, budget="2")
    assert run(tmp_path, budget="4").step == 4
    assert [record["step"] for record in read_log(tmp_path / "log.jsonl", "step")] == [1, 2, 3, 4]


OTHER = {
    "optimizer": "lamb",
    "learning_rate": 0.01,
    "warmup": 0.0,
    "schedule": "constant",
    "cooldown": 0.5,
    "betas": (0.8, 0.999),
    "eps": 1e-3,
    "weight_decay": 0.5,
    "layer_decay": 0.5,
    "max_grad_norm": None,
    "accumulation": 1,
    "precision": "bfloat16",
    "seed": 1,
    "budget": "3",
    "evaluate_every": "1",
    "checkpoint_every": "1",
    "keep_checkpoints": 1,
    "loader_workers": 2,
    "max_bad_steps": 1,
    "sharding": "full",
    "timeout": "1min",
    "statistics_every": 1,
    "trackers": ("tensorboard",),
}


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(TrainingConfig)])
def test_what_would_change_the_numbers_is_refused_by_name(tmp_path, name):
    if name in ("device", "kernels", "threads"):
        pytest.skip("one device and one thread here; see the test below")
    if name == "layer_decay":
        pytest.skip("a toy has no layers; see tests/finetune/test_going_on.py")
    if name == "trackers":
        pytest.importorskip("tensorboard")
    assert getattr(config(), name) != OTHER[name]
    needed = {"schedule": "wsd"} if name == "cooldown" else {}
    run(tmp_path, budget="2", **needed)
    objective = ToyObjective()
    if name in CHANGEABLE:
        assert run(tmp_path, objective, **({"budget": "2"} | {name: OTHER[name]})).step >= 2
        return
    before = objective.output.weight.clone()
    with pytest.raises(ValueError, match=f"^{name}: expected .* as step-00000002 was trained"):
        run(tmp_path, objective, **({"budget": "3"} | needed | {name: OTHER[name]}))
    assert torch.equal(objective.output.weight, before)


@pytest.mark.parametrize("now", [{"data": "b"}, {}, {"data": "a", "tokenizer": "t"}])
def test_other_data_is_refused_by_name(tmp_path, now):
    run(tmp_path, budget="2", identity={"data": "a"})
    name = "tokenizer" if "tokenizer" in now else "data"
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        run(tmp_path, budget="3", identity=now)
    assert run(tmp_path, budget="3", identity={"data": "a"}).step == 3


def test_all_that_differs_is_named_and_nothing_else(tmp_path):
    model = {"hidden_size": 8, "layers": 2, "vocab_size": 100}
    run(tmp_path, budget="2", identity={"model": model, "data": "a"})
    other = {"model": model | {"hidden_size": 16, "layers": 1}, "tokenizer": "t"}
    with pytest.raises(ValueError) as error:
        run(tmp_path, budget="3", warmup=0.5, identity=other)
    assert str(error.value) == (
        "data: expected 'a', as step-00000002 was trained, got nothing; a resumed run can't "
        "change it; other, too: model.hidden_size, model.layers, tokenizer, warmup; choose "
        "another directory, or begin anew (--resume none --overwrite)"
    )


def test_a_finished_run_that_is_started_again_says_so(tmp_path, capsys):
    run(tmp_path, budget="2")
    assert "nothing is left" not in capsys.readouterr().err
    run(tmp_path, budget="2")
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "step 2 is the last of the budget of 2: nothing is left to train"
    run(tmp_path, budget="3")
    assert "going on from step 2" in capsys.readouterr().err


def test_another_machine_is_told_and_allowed(tmp_path, monkeypatch, capsys):
    run(tmp_path, budget="2")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert run(tmp_path, budget="3").step == 3
    assert "threads was 1, is 64: the same run, but no longer bit" in capsys.readouterr().err


def damage(checkpoint: Path) -> None:
    file = checkpoint / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_auto_falls_back_past_damaged_checkpoints_and_says_so(tmp_path, never_stopped, capsys):
    run_dir = tmp_path / "run"
    run(run_dir, budget="6", checkpoint_every="1", keep_checkpoints=9)
    for step in (5, 6):
        damage(run_dir / "checkpoints" / f"step-0000000{step}")
    capsys.readouterr()
    result = run(run_dir, checkpoint_every="1", keep_checkpoints=9)
    said = capsys.readouterr().err
    assert "damaged checkpoint, kept as damaged-step-00000006" in said
    assert "damaged checkpoint, kept as damaged-step-00000005" in said
    assert "optimizer.safetensors: its SHA-256" in said
    assert "falling back to step-00000004" in said and "going on from step 4" in said
    assert steps_of(run_dir) == never_stopped.steps
    final = load_checkpoint(result.checkpoint)
    assert final.state.step == STEPS
    for name, tensor in never_stopped.final.parameters.items():
        assert torch.equal(final.parameters[name], tensor)


@pytest.mark.parametrize("how", ["auto", "path"])
def test_a_damaged_checkpoint_fails_before_a_weight_changes(tmp_path, how):
    result = run(tmp_path, budget="2")
    damage(result.checkpoint)
    objective = ToyObjective()
    before = [parameter.clone() for parameter in objective.parameters()]
    with pytest.raises(DamagedCheckpoint, match="optimizer.safetensors: its SHA-256"):
        run(tmp_path, objective, resume="auto" if how == "auto" else result.checkpoint)
    assert all(torch.equal(a, b) for a, b in zip(before, objective.parameters(), strict=True))
    assert result.checkpoint.is_dir()


def test_a_path_never_falls_back(tmp_path):
    run(tmp_path, checkpoint_every="1", keep_checkpoints=9)
    damage(tmp_path / "checkpoints" / "step-00000004")
    with pytest.raises(DamagedCheckpoint):
        run(tmp_path, resume=tmp_path / "checkpoints" / "step-00000004", overwrite=True)
    assert len(list_checkpoints(tmp_path / "checkpoints")) == STEPS


@pytest.mark.errors
@pytest.mark.parametrize("name", ["nowhere", "checkpoints", "log.jsonl"])
def test_a_path_that_is_no_checkpoint_is_named(tmp_path, name):
    run(tmp_path, budget="1")
    with pytest.raises(DamagedCheckpoint, match=name):
        run(tmp_path, resume=tmp_path / name)


def test_none_deletes_a_run_only_if_told_to(tmp_path, capsys):
    result = run(tmp_path, budget="2")
    with pytest.raises(ValueError, match="^out: .* holds a run; resume it"):
        run(tmp_path, budget="3", resume="none")
    assert load_checkpoint(result.checkpoint).state.step == 2
    # What is refused for another reason deletes nothing either.
    with pytest.raises(ValueError, match="^device"):
        run(tmp_path, resume="none", overwrite=True, device="tpu")
    assert load_checkpoint(result.checkpoint).state.step == 2
    assert run(tmp_path, budget="1", resume="none", overwrite=True).step == 1
    assert "overwrite: deleting the run in" in capsys.readouterr().err
    assert [p.name for p in list_checkpoints(tmp_path / "checkpoints")] == ["step-00000001"]
    assert len(steps_of(tmp_path)) == 1


def test_an_older_path_deletes_the_newer_only_if_told_to(tmp_path, never_stopped):
    run(tmp_path, checkpoint_every="2", keep_checkpoints=9)
    older = tmp_path / "checkpoints" / "step-00000002"
    with pytest.raises(ValueError, match="^resume: .*step-00000006 is newer than step-00000002"):
        run(tmp_path, resume=older)
    assert len(list_checkpoints(older.parent)) == 3
    run(tmp_path, resume=older, overwrite=True)
    names = [path.name for path in list_checkpoints(older.parent)]
    assert names == ["step-00000002", "step-00000006"]
    assert steps_of(tmp_path) == never_stopped.steps


def test_a_path_of_another_run_does_not_mix_with_the_one_here(tmp_path):
    other = run(tmp_path / "other", budget="2").checkpoint
    run(tmp_path / "here", budget="1")
    with pytest.raises(ValueError, match="^out: .* holds a run"):
        run(tmp_path / "here", resume=other)
    # Refused for what it is, before anything is deleted.
    with pytest.raises(ValueError, match="^seed"):
        run(tmp_path / "here", resume=other, overwrite=True, seed=3)
    assert len(list_checkpoints(tmp_path / "here" / "checkpoints")) == 1
    run(tmp_path / "here", budget="4", resume=other, overwrite=True)
    assert [record["step"] for record in steps_of(tmp_path / "here")] == [3, 4]


def test_a_run_killed_before_its_first_checkpoint_starts_anew(tmp_path, never_stopped):
    run_dir, objective = tmp_path / "run", ToyObjective()
    run(run_dir, budget="4")
    shutil.rmtree(run_dir / "checkpoints")
    result = run(run_dir, objective)
    assert_same(trace(run_dir, result.checkpoint, objective.seen), never_stopped)
