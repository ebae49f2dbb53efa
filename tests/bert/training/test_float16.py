"""float16 with a scaled loss: torch's recipe, exact resume, overflow told from real trouble."""

import math
import random

import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from bert.training import loss_scale
from bert.training.gradients import dropout_seed
from bert.training.log import read_log
from bert.training.loss_scale import first_scale, next_scale
from bert.training.nonfinite import TrainingDiverged
from bert.training.optimizer import build_optimizer
from bert.training.state import load_checkpoint
from tests.bert.training.test_resume import Stop
from tests.bert.training.test_step import SquareRoot
from tests.bert.training.toy import ToyBatch, ToyBatches, ToyObjective, config, run


class Steep(ToyObjective):
    """Gradients that fit into float16 when scaled by 2**10, and not by 2**16."""

    def forward(self, batch, dropout_seed):
        return {name: 200 * loss for name, loss in super().forward(batch, dropout_seed).items()}


def log_of(run_dir, kind):
    return list(read_log(run_dir / "log.jsonl", kind))


def test_matrix_products_are_in_float16_and_nothing_else_is(tmp_path):
    objective, dtypes = ToyObjective(), set()
    objective.output.register_forward_hook(lambda module, args, out: dtypes.add(out.dtype))
    run(tmp_path, objective, precision="float16", budget="9")
    assert dtypes == {torch.float16}
    assert {p.dtype for p in objective.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in objective.parameters()} == {torch.float32}
    assert len(log_of(tmp_path, "step")) > 3


@pytest.mark.parametrize("make", [ToyObjective, Steep])
def test_it_takes_the_steps_of_torchs_own_recipe(tmp_path, make):
    settings = {"accumulation": 1, "schedule": "constant", "warmup": 0.0, "budget": "12"}
    ours = make()
    run(tmp_path, ours, precision="float16", **settings)

    theirs, batches, scaler = make().train(), ToyBatches(), GradScaler("cpu")
    scales = []
    optimizer = build_optimizer(theirs, config(**settings))
    for index in range(12):
        optimizer.zero_grad()
        batch, seed = batches[index], dropout_seed(0, index)
        torch.manual_seed(seed)
        with torch.autocast("cpu", torch.float16):
            losses = theirs(batch, torch.tensor(seed))
        counts = theirs.counts(batch)
        loss = sum(losses[name] / counts[name] for name in losses if counts[name])
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        scaler.step(optimizer)
        scales.append(scaler.get_scale())
        scaler.update()
    halved = [k + 1 for k in range(11) if scales[k + 1] < scales[k]]
    overflows = log_of(tmp_path, "overflow")
    assert [record["step"] for record in overflows if record["step"] < 12] == halved
    assert len(log_of(tmp_path, "step")) == 12 - len(overflows) > 3
    assert all(math.isfinite(record["loss"]) for record in overflows)
    checkpoint = load_checkpoint(tmp_path / "checkpoints" / "step-00000012")
    state, told = checkpoint.state, scaler.state_dict()
    assert (state.loss_scale, state.loss_scale_age) == (told["scale"], told["_growth_tracker"])
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(checkpoint.parameters[name], parameter.detach())


def test_an_overflow_is_no_bad_step(tmp_path):
    objective = Steep()
    run(tmp_path, objective, precision="float16", budget="12", max_bad_steps=1)
    scales = [record["loss_scale"] for record in log_of(tmp_path, "overflow")]
    assert scales == [2.0 ** (16 - i) for i in range(len(scales))] and scales
    assert log_of(tmp_path, "bad_step") == []


@pytest.mark.parametrize("at", [4, 13, 28])
def test_a_stopped_run_goes_on_with_its_scale(tmp_path, at):
    settings = {"precision": "float16", "budget": "12"}
    whole = run(tmp_path / "whole", Steep(), **settings)
    stopped = Steep()
    stopped.before = Stop(at)
    assert run(tmp_path / "halves", stopped, **settings).step < 12
    halves = run(tmp_path / "halves", Steep(), **settings)
    first, second = load_checkpoint(whole.checkpoint), load_checkpoint(halves.checkpoint)
    assert first.state.loss_scale == second.state.loss_scale
    for ours, theirs in (
        (first.parameters, second.parameters),
        (first.optimizer, second.optimizer),
    ):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_is_infinite_at_any_scale_ends_the_run(tmp_path):
    with pytest.raises(TrainingDiverged, match="step 18 skipped: .*gradient of hidden.bias"):
        run(tmp_path, SquareRoot(), precision="float16", budget="40", max_bad_steps=2)
    assert [record["step"] for record in log_of(tmp_path, "overflow")] == list(range(1, 17))


def test_a_bad_loss_is_a_bad_step(tmp_path):
    class Bad(ToyBatches):
        def __getitem__(self, index):
            batch = super().__getitem__(index)
            scale = math.nan if index == 4 else 1.0
            return ToyBatch(batch.ids, batch.inputs * scale, batch.labels)

    run(tmp_path, batches=Bad(), precision="float16")
    (record,) = log_of(tmp_path, "bad_step")
    assert record["source"] == "output of hidden (Linear), micro-batch 4"


def test_the_scale_moves_as_torchs_does(monkeypatch):
    assert GradScaler("cpu").get_scale() == first_scale("float16")
    assert GradScaler("cpu").get_growth_interval() == loss_scale.STEPS_TO_GROW
    monkeypatch.setattr(loss_scale, "STEPS_TO_GROW", 20)
    draw, weight = random.Random(0), nn.Parameter(torch.ones(()))
    optimizer, scaler = torch.optim.SGD([weight], lr=0.0), GradScaler("cpu", growth_interval=20)
    scale, age, seen = first_scale("float16"), 0, set()
    for _ in range(400):
        overflowed = draw.random() < 0.03
        scaler.scale(weight).backward()
        if overflowed:
            weight.grad = torch.tensor(math.inf)
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scale, age = next_scale(scale, age, overflowed)
        told = scaler.state_dict()
        assert (scale, age) == (told["scale"], told["_growth_tracker"])
        seen.add(scale)
    assert len(seen) > 5 and first_scale("float32") == 1.0
