import json
import math
import multiprocessing
import os
import resource
import signal
import stat

import pytest
import torch

from bert.training.checkpoint_files import list_checkpoints
from bert.training.log import read_log
from bert.training.nonfinite import TrainingDiverged
from bert.training.schedule import learning_rate
from bert.training.state import load_checkpoint
from tests.bert.training.toy import (
    Clock,
    ToyBatch,
    ToyBatches,
    ToyObjective,
    config,
    run,
    send,
)


def log_of(run_dir, kind):
    return list(read_log(run_dir / "log.jsonl", kind))


def test_it_learns(tmp_path):
    run(tmp_path, budget="150", learning_rate=0.03)
    losses = [record["losses"]["label"] for record in log_of(tmp_path, "step")]
    assert sum(losses[-10:]) / 10 < 0.5 * sum(losses[:3]) / 3


def test_what_it_leaves(tmp_path):
    objective = ToyObjective()
    result = run(tmp_path / "run", objective, identity={"data": "toy"})
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoints", "lock", "log.jsonl", "run.json",
    ]  # fmt: skip
    assert result.checkpoint == tmp_path / "run" / "checkpoints" / "step-00000006"
    saved = load_checkpoint(result.checkpoint)
    for name, parameter in objective.named_parameters():
        assert torch.equal(parameter, saved.parameters[name])
    description = json.loads((tmp_path / "run" / "run.json").read_text())
    assert description["config"]["learning_rate"] == 0.05
    assert description["identity"]["data"] == "toy"
    assert description["parameter_groups"]["decay"]["tensors"] == 2
    modes = {
        stat.S_IMODE(path.stat().st_mode)
        for path in (tmp_path / "run").rglob("*")
        if path.is_file()
    }
    assert modes == {0o666 & ~current_umask()}


def current_umask():
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_the_log_has_each_step_once_with_what_was_done(tmp_path):
    result = run(tmp_path, ToyObjective(dropout=False), max_grad_norm=None)
    records = log_of(tmp_path, "step")
    assert [record["step"] for record in records] == list(range(1, 7))
    batches = ToyBatches()
    tokens = [sum(batches.tokens(batches[i]) for i in range(3 * k)) for k in range(1, 7)]
    assert [record["tokens"] for record in records] == tokens
    assert result.tokens == tokens[-1]
    rates = [learning_rate(config(), (k + 0.5) / 6) for k in range(6)]
    assert [record["learning_rate"] for record in records] == rates
    for record in records:
        assert record["loss"] == pytest.approx(sum(record["losses"].values()))
        assert record["grad_norm"] > 0 and record["elapsed"] > 0


def test_the_losses_are_those_of_the_window_however_it_is_cut(tmp_path):
    """Ten samples a step, in one, two or four micro-batches."""

    class Cut(ToyBatches):
        def __init__(self, parts):
            super().__init__(dtype=torch.float64)
            self.parts = parts

        def __getitem__(self, index):
            return self.batch(self.parts[index % len(self.parts)])

    finals = []
    for parts in (
        [[*range(10)]],
        [[0, 2, 4, 6], [1, 3, 5, 7, 8, 9]],
        [[0], [2, 1], [9], [3, 4, 5, 6, 7, 8]],
    ):  # noqa: E501
        objective = ToyObjective(torch.float64, dropout=False)
        run(tmp_path / str(len(parts)), objective, batches=Cut(parts), accumulation=len(parts))
        finals.append(objective)
    for other in finals[1:]:
        for ours, theirs in zip(other.parameters(), finals[0].parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def test_evaluations_come_when_due_and_at_the_end_in_eval_mode(tmp_path):
    objective, modes = ToyObjective(), []

    def evaluate():
        modes.append((objective.training, torch.is_grad_enabled()))
        return {"accuracy": len(modes) / 10}

    result = run(tmp_path, objective, budget="7", evaluate=evaluate, evaluate_every="3")
    assert modes == [(False, False)] * 3 and objective.training
    records = log_of(tmp_path, "evaluation")
    assert [record["step"] for record in records] == [3, 6, 7]
    assert [record["results"]["accuracy"] for record in records] == [0.1, 0.2, 0.3]
    assert result.evaluation == {"accuracy": 0.3}


def test_an_evaluation_does_not_change_the_training(tmp_path):
    def evaluate():
        torch.manual_seed(1)
        return {"noise": torch.rand(()).item()}

    quiet, noisy = ToyObjective(), ToyObjective()
    run(tmp_path / "a", quiet)
    run(tmp_path / "b", noisy, evaluate=evaluate, evaluate_every="1")
    for a, b in zip(quiet.parameters(), noisy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_checkpoints_come_when_due_and_the_newest_are_kept(tmp_path):
    run(tmp_path, budget="7", checkpoint_every="2", keep_checkpoints=2)
    assert [record["step"] for record in log_of(tmp_path, "checkpoint")] == [2, 4, 6, 7]
    names = [path.name for path in list_checkpoints(tmp_path / "checkpoints")]
    assert names == ["step-00000006", "step-00000007"]


def test_tokens_are_a_budget_and_an_interval(tmp_path):
    result = run(
        tmp_path,
        budget="200tok",
        schedule="cosine",
        evaluate=lambda: {"f1": 0.5},
        evaluate_every="60tok",
        checkpoint_every="100tok",
        keep_checkpoints=9,
    )
    tokens = [0] + [record["tokens"] for record in log_of(tmp_path, "step")]
    assert tokens[-2] < 200 <= tokens[-1] == result.tokens
    rates = [record["learning_rate"] for record in log_of(tmp_path, "step")]
    expected = config(budget="200tok", schedule="cosine")
    assert rates == [learning_rate(expected, n / 200) for n in tokens[:-1]]
    for kind, every in (("evaluation", 60), ("checkpoint", 100)):
        passed = [
            step for step in range(1, len(tokens))
            if tokens[step] // every > tokens[step - 1] // every or step == len(tokens) - 1
        ]  # fmt: skip
        assert [record["step"] for record in log_of(tmp_path, kind)] == passed


class Timed(ToyObjective):
    """Each forward pass takes a second of the clock."""

    def __init__(self, clock, seconds=1.0):
        super().__init__(before=self.tick)
        self.clock, self.seconds = clock, seconds

    def tick(self, batch: ToyBatch) -> None:
        self.clock.now += self.seconds


def timed_run(run_dir, clock, budget, evaluation_seconds=0.0, seconds=1.0, **options):
    def evaluate():
        clock.now += evaluation_seconds
        return {"f1": 0.5}

    return run(
        run_dir,
        Timed(clock, seconds),
        clock=clock,
        budget=budget,
        accumulation=1,
        evaluate=evaluate,
        **options,
    )


def test_a_wall_clock_run_ends_within_its_budget(tmp_path):
    clock = Clock()
    result = timed_run(tmp_path, clock, "20s", evaluation_seconds=4.0, reserve_seconds=4.0)
    assert clock.now - 100.0 == result.elapsed == 20.0
    assert result.step == 16 and result.evaluation == {"f1": 0.5}
    rates = [record["learning_rate"] for record in log_of(tmp_path, "step")]
    assert rates == [learning_rate(config(), k / 16) for k in range(16)]


def test_a_step_that_does_not_fit_is_not_begun(tmp_path):
    clock = Clock()
    result = timed_run(tmp_path, clock, "20s", seconds=3.0)
    assert result.step == 6 and result.elapsed == 18.0


def test_what_comes_before_the_first_step_is_in_the_budget(tmp_path):
    clock = Clock()

    class SlowToMove(Timed):
        def to(self, *arguments, **options):
            clock.now += 5.0
            return super().to(*arguments, **options)

    objective = SlowToMove(clock)
    started = clock.now
    result = run(tmp_path, objective, clock=clock, budget="20s", accumulation=1)
    assert clock.now - started == result.elapsed == 20.0 and result.step == 15


def test_a_measured_evaluation_is_kept_room_for(tmp_path):
    clock = Clock()
    result = timed_run(tmp_path, clock, "30s", evaluation_seconds=4.0, evaluate_every="10s")
    evaluations = [record["elapsed"] for record in log_of(tmp_path, "evaluation")]
    assert evaluations[0] == 14.0 and result.elapsed <= 30.0
    assert evaluations[-1] == result.elapsed >= 29.0


def test_a_wall_clock_run_that_stops_ends_as_one_that_does_not(tmp_path):
    finals = []
    for stops in (False, True):
        run_dir, stopped = tmp_path / str(stops), 0
        while True:
            clock = Clock()
            clock.now = 1000.0 * stopped  # the time between stop and start does not count
            objective, taken = Timed(clock), []

            def tick(batch, objective=objective, taken=taken, stops=stops):
                objective.clock.now += 1.0
                taken.append(batch)
                if stops and len(taken) == 4:
                    send(signal.SIGTERM)

            objective.before = tick
            result = run(run_dir, objective, clock=clock, budget="18s", accumulation=1)
            if result.interrupted is None:
                break
            stopped += 1
            assert stopped < 9
        finals.append(load_checkpoint(result.checkpoint))
        assert result.step == 18 and result.elapsed == 18.0 and stopped == 4 * stops
    for name, tensor in finals[0].parameters.items():
        assert torch.equal(finals[1].parameters[name], tensor)


def test_checkpoints_by_the_clock(tmp_path):
    clock = Clock()
    timed_run(tmp_path, clock, "20s", checkpoint_every="6s", keep_checkpoints=9)
    assert [r["step"] for r in log_of(tmp_path, "checkpoint")] == [6, 12, 18, 20]


class BadBatches(ToyBatches):
    """NaN in the inputs of some micro-batches."""

    def __init__(self, *bad):
        super().__init__()
        self.bad = bad

    def __getitem__(self, index):
        batch = super().__getitem__(index)
        if index in self.bad:
            return ToyBatch(batch.ids, batch.inputs * math.nan, batch.labels)
        return batch


def test_a_bad_step_is_skipped_and_told(tmp_path, capsys):
    result = run(tmp_path, batches=BadBatches(4), checkpoint_every="1", keep_checkpoints=9)
    (record,) = log_of(tmp_path, "bad_step")
    assert record["step"] == 2 and record["loss"] == record["grad_norm"] == "nan"
    assert record["source"] == "output of hidden (Linear), micro-batch 4"
    assert "step 2 skipped: loss nan" in capsys.readouterr().err
    assert [r["step"] for r in log_of(tmp_path, "step")] == [1, 3, 4, 5, 6]
    one, two, *_, last = map(load_checkpoint, list_checkpoints(tmp_path / "checkpoints"))
    for before, after in ((one.parameters, two.parameters), (one.optimizer, two.optimizer)):
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(tensor.isfinite().all() for tensor in last.parameters.values())
    assert (two.state.bad_steps, last.state.bad_steps) == (1, 0)
    assert two.state.loss == one.state.loss and result.loss == last.state.loss


def test_too_many_bad_steps_in_a_row_end_the_run(tmp_path):
    bad = [3 * k for k in (1, 3, 4, 5)]
    with pytest.raises(TrainingDiverged, match="step 6 skipped: .*bad step 3 in a row") as error:
        run(tmp_path, batches=BadBatches(*bad), max_bad_steps=3, budget="9", checkpoint_every="5")
    assert "\n" not in str(error.value)
    assert [record["step"] for record in log_of(tmp_path, "bad_step")] == [2, 4, 5, 6]
    # The count goes on after a resume, and so does a run with a limit that allows it.
    with pytest.raises(TrainingDiverged, match="bad step 3 in a row"):
        run(tmp_path, batches=BadBatches(*bad), max_bad_steps=3, budget="9")
    assert run(tmp_path, batches=BadBatches(*bad), max_bad_steps=4, budget="9").step == 9


def test_a_full_disk_ends_the_run_and_leaves_the_older_checkpoint(tmp_path):
    objective = ToyObjective(width=3000)
    first = run(tmp_path, objective, budget="2")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=r"checkpoint of [0-9]{6} bytes .*step-00000004"):
            run(tmp_path, ToyObjective(width=3000), budget="4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [*(tmp_path / "checkpoints").iterdir()] == [first.checkpoint]
    assert run(tmp_path, ToyObjective(width=3000), budget="4").step == 4
    assert [record["step"] for record in log_of(tmp_path, "step")] == [1, 2, 3, 4]


def test_a_dead_worker_ends_the_run_and_the_last_checkpoint_serves(tmp_path):
    calls = []

    def kill_a_worker(batch):
        calls.append(batch)
        if len(calls) == 8:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    objective = ToyObjective(before=kill_a_worker)
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        run(tmp_path / "run", objective, budget="90", loader_workers=2, checkpoint_every="2")
    result, reference = run(tmp_path / "run", budget="90"), run(tmp_path / "ref", budget="90")
    final, expected = load_checkpoint(result.checkpoint), load_checkpoint(reference.checkpoint)
    for name, tensor in expected.parameters.items():
        assert torch.equal(final.parameters[name], tensor)


def test_ctrl_c_of_a_terminal_reaches_the_workers_too(tmp_path):
    calls = []

    def to_all(batch):
        calls.append(batch)
        if len(calls) == 5:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGINT)
            send(signal.SIGINT)

    result = run(tmp_path, ToyObjective(before=to_all), loader_workers=2)
    assert (result.step, result.exit_code) == (1, 130)


def test_bfloat16_keeps_parameters_and_gradients_in_float32(tmp_path):
    objective, dtypes = ToyObjective(), set()
    objective.output.register_forward_hook(lambda module, args, out: dtypes.add(out.dtype))
    run(tmp_path, objective, precision="bfloat16")
    assert dtypes == {torch.bfloat16}
    assert {p.dtype for p in objective.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in objective.parameters()} == {torch.float32}


@pytest.mark.errors
def test_a_run_without_a_budget_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="^budget: expected"):
        run(tmp_path / "run", budget=None)
