import copy

import pytest
import torch
from torch import nn

from bert.training.hardware import Hardware
from bert.training.optimizer import build_optimizer
from bert.training.step import take_step
from tests.bert.training.toy import ToyBatch, ToyBatches, ToyObjective, config

CPU = Hardware(torch.device("cpu"), "float32", "")


def step(objective, optimizer, window, **settings):
    return take_step(objective, optimizer, window, config(**settings), CPU, lambda: None)


@pytest.mark.parametrize("max_grad_norm", [0.1, 1e6, None])
def test_clipping_is_torchs(max_grad_norm):
    batches, settings = ToyBatches(), config(max_grad_norm=max_grad_norm)
    ours, theirs = ToyObjective(dropout=False), ToyObjective(dropout=False)
    outcome = step(
        ours, build_optimizer(ours, settings), [(0, batches[0])], max_grad_norm=max_grad_norm
    )

    optimizer = build_optimizer(theirs, settings)
    losses = theirs(batches[0], torch.tensor(0))
    counts = theirs.counts(batches[0])
    (losses["label"] / counts["label"] + losses["odd"] / counts["odd"]).backward()
    norm = nn.utils.clip_grad_norm_(theirs.parameters(), max_grad_norm or float("inf"))
    optimizer.step()
    assert outcome.grad_norm == pytest.approx(norm.item())
    for ours_now, theirs_now in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours_now, theirs_now)


def test_the_last_steps_gradients_are_gone():
    objective = ToyObjective()
    optimizer = build_optimizer(objective, config())
    norms = {step(objective, optimizer, [(0, ToyBatches()[0])]).grad_norm for _ in range(1)}
    for parameter in objective.parameters():
        parameter.grad = torch.full_like(parameter, 1e6)
    assert step(objective, optimizer, [(0, ToyBatches()[0])]).grad_norm < 100 * max(norms)


class SquareRoot(ToyObjective):
    """A finite loss with an infinite gradient."""

    def forward(self, batch, dropout_seed):
        losses = super().forward(batch, dropout_seed)
        return losses | {"odd": losses["odd"] + (self.hidden.bias * 0).sqrt().sum()}


class Huge(ToyObjective):
    """Finite gradients whose norm overflows."""

    def forward(self, batch, dropout_seed):
        losses = super().forward(batch, dropout_seed)
        return losses | {"odd": losses["odd"] + (self.output.weight * 3e37).sum()}


class BadLoss(ToyObjective):
    """A loss that goes wrong outside of any module."""

    def forward(self, batch, dropout_seed):
        losses = super().forward(batch, dropout_seed)
        return losses | {"label": losses["label"] * float("inf")}


class Packed(nn.Module):
    """A module whose bad output lies deep in it."""

    def forward(self, x):
        return {"packed": [ToyBatch((), x, x)]}


class DeepOutput(ToyObjective):
    def __init__(self):
        super().__init__()
        self.packed = Packed()

    def forward(self, batch, dropout_seed):
        losses = super().forward(batch, dropout_seed)
        bad = self.packed(losses["odd"] / 0.0)["packed"][0].inputs
        return losses | {"odd": bad}


def with_nan_inputs(index):
    batch = ToyBatches()[index]
    return ToyBatch(batch.ids, batch.inputs * float("nan"), batch.labels)


def a_bad_parameter():
    objective = ToyObjective()
    with torch.no_grad():
        objective.norm.weight[1] = float("inf")
    return objective


@pytest.mark.parametrize(
    ("make", "bad_batch", "source"),
    [
        (ToyObjective, True, "output of hidden (Linear), micro-batch 1"),
        (DeepOutput, False, "output of packed (Packed), micro-batch 0"),
        (BadLoss, False, "output of the objective itself, micro-batch 0"),
        (SquareRoot, False, "gradient of hidden.bias, the nearest to the loss of 1 bad ones"),
        (Huge, False, "norm of all gradients, each finite; the largest is in output.weight"),
        (a_bad_parameter, False, "parameter norm.weight itself"),
    ],
)
def test_a_step_that_is_not_finite_is_not_taken_and_its_source_is_named(make, bad_batch, source):
    objective, batches = make(), ToyBatches()
    optimizer = build_optimizer(objective, config())
    if make is not a_bad_parameter:
        # Something to lose: moments of one good step.
        good = ToyObjective.forward
        for name, value in good(objective, batches[0], torch.tensor(1)).items():
            value.backward(retain_graph=name == "label")
        optimizer.step()
    parameters = copy.deepcopy(objective.state_dict())
    moments = copy.deepcopy(optimizer.state_dict())
    window = [(0, batches[0]), (1, with_nan_inputs(1) if bad_batch else batches[1])]
    outcome = step(objective, optimizer, window)
    assert outcome.source == source
    assert not (torch.tensor([outcome.loss, outcome.grad_norm]).isfinite().all())
    for name, value in objective.state_dict().items():
        assert torch.equal(value, parameters[name]), name
    for index, entry in optimizer.state_dict()["state"].items():
        for key, value in entry.items():
            assert torch.equal(value, moments["state"][index][key])


def test_looking_for_the_source_leaves_no_hook():
    objective = ToyObjective()
    step(objective, build_optimizer(objective, config()), [(0, with_nan_inputs(0))])
    assert not any(module._forward_hooks for module in objective.modules())
