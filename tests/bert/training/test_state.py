import json
import resource
import shutil
from dataclasses import asdict

import pytest
import torch
from torch import nn

from bert.training.checkpoint_files import DamagedCheckpoint, read_checkpoint, write_checkpoint
from bert.training.config import TrainingConfig
from bert.training.hardware import Hardware
from bert.training.optimizer import build_optimizer
from bert.training.restoring import restore
from bert.training.state import (
    TRAINING,
    Identity,
    TrainingState,
    load_checkpoint,
    optimizer_tensors,
    save_checkpoint,
    state_tensors,
)

IDENTITY = Identity.of({"seed": 0}, Hardware(torch.device("cpu"), "float32", ""))


class Net(nn.Module):
    """Tied weights, a frozen part, a parameter that never has a gradient, both sorts of buffer."""

    def __init__(self, width: int = 4):
        super().__init__()
        self.embedding = nn.Embedding(5, width)
        self.decoder = nn.Linear(width, 5)
        self.decoder.weight = self.embedding.weight
        self.frozen = nn.Linear(width, width).requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(2, 3))
        self.register_buffer("kept", torch.rand(3))
        self.register_buffer("passing", torch.rand(3), persistent=False)


def trained(width: int = 4) -> tuple[Net, torch.optim.Optimizer]:
    net = Net(width)
    optimizer = build_optimizer(net, TrainingConfig())
    for k in range(3):
        net.decoder(net.embedding(torch.tensor([0, 1, k]))).square().sum().backward()
        optimizer.step()
    return net, optimizer


def test_what_was_saved_comes_back_bit_by_bit(tmp_path):
    net, optimizer = trained()
    state = TrainingState(step=3, tokens=9, elapsed=0.1 + 0.2, loss=1 / 3, evaluation={"f1": 0.7})
    path = save_checkpoint(tmp_path, state, IDENTITY, net, optimizer)
    other, other_optimizer = trained()
    with torch.no_grad():
        for tensor in state_tensors(other).values():
            tensor.mul_(-2)

    checkpoint = load_checkpoint(path)
    restore(checkpoint, other, other_optimizer)
    assert checkpoint.state == state and checkpoint.identity == IDENTITY
    before, after = state_tensors(net), state_tensors(other)
    assert before.keys() == after.keys() == {
        "embedding.weight", "decoder.bias", "frozen.weight", "frozen.bias", "unused", "kept",
    }  # fmt: skip
    assert all(torch.equal(before[name], after[name]) for name in before)
    moments, restored = (
        optimizer_tensors(net, optimizer),
        optimizer_tensors(other, other_optimizer),
    )
    assert (
        moments.keys()
        == restored.keys()
        == {
            f"{name}/{key}"
            for name in ("embedding.weight", "decoder.bias")
            for key in ("step", "exp_avg", "exp_avg_sq")
        }
    )
    assert all(torch.equal(moments[name], restored[name]) for name in moments)
    assert other.decoder.weight is other.embedding.weight
    # Both go on alike.
    for model, opt in ((net, optimizer), (other, other_optimizer)):
        opt.zero_grad()
        model.decoder(model.embedding(torch.tensor([4]))).sum().backward()
        opt.step()
    assert torch.equal(net.embedding.weight, other.embedding.weight)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda net: setattr(net, "unused", nn.Parameter(torch.ones(3, 2))), "unused: expected"),
        (lambda net: setattr(net, "more", nn.Parameter(torch.ones(1))), "more is missing"),
        (lambda net: delattr(net, "unused"), "unused is not in the model"),
        (lambda net: net.frozen.double(), r"frozen\.\w+: expected torch.float64"),
        (lambda net: net.decoder.requires_grad_(False), "doesn't fit this optimiser"),
    ],
)
def test_another_model_is_refused_before_a_tensor_changes(tmp_path, change, problem):
    net, optimizer = trained()
    path = save_checkpoint(tmp_path, TrainingState(step=1), IDENTITY, net, optimizer)
    other = Net()
    change(other)
    before = {name: tensor.clone() for name, tensor in state_tensors(other).items()}
    with pytest.raises(ValueError, match=problem):
        restore(load_checkpoint(path), other, build_optimizer(other, TrainingConfig()))
    assert all(torch.equal(before[n], t) for n, t in state_tensors(other).items())


def test_the_full_disk_that_safetensors_meets_is_an_oserror(tmp_path, monkeypatch):
    net, optimizer = trained(width=500)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(OSError, match=r"too large.*of [0-9]{7} bytes.*step-00000001"):
            save_checkpoint(tmp_path, TrainingState(step=1), IDENTITY, net, optimizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def rewritten(tmp_path, name, content):
    """A checkpoint whose manifest agrees with what is wrong in it."""
    path = save_checkpoint(tmp_path / "good", TrainingState(step=1), IDENTITY, *trained())
    contents = read_checkpoint(path) | {name: content}

    def write_files(directory):
        for file, data in contents.items():
            (directory / file).write_bytes(data)

    return write_checkpoint(tmp_path, 1, 0, write_files)


SCALARS = {"state": asdict(TrainingState(step=1)), "identity": asdict(IDENTITY)}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("parameters.safetensors", b""),
        ("parameters.safetensors", b"\xff" * 100),
        ("optimizer.safetensors", b"\x80\x04\x95cposix\nsystem\n"),
        ("extra.bin", b""),
        (TRAINING, b""),
        (TRAINING, b"[]"),
        (TRAINING, b'{"state": {}, "identity": {}}'),
        (TRAINING, json.dumps(SCALARS | {"identity": {"fixed": 1, "machine": {}}}).encode()),
        (TRAINING, json.dumps(SCALARS | {"state": SCALARS["state"] | {"step": "1"}}).encode()),
        (TRAINING, json.dumps(SCALARS | {"state": SCALARS["state"] | {"step": 2}}).encode()),
        (TRAINING, json.dumps(SCALARS | {"state": SCALARS["state"] | {"new": 2}}).encode()),
    ],
)
def test_what_is_wrong_in_itself_is_our_own_error(tmp_path, name, content):
    (tmp_path / "good").mkdir()
    with pytest.raises(DamagedCheckpoint, match="step-00000001"):
        load_checkpoint(rewritten(tmp_path, name, content))


def test_a_checkpoint_from_before_early_stopping_is_read(tmp_path):
    (tmp_path / "good").mkdir()
    state = {name: value for name, value in SCALARS["state"].items() if "best" not in name}
    assert len(SCALARS["state"]) - len(state) == 3
    path = rewritten(tmp_path, TRAINING, json.dumps(SCALARS | {"state": state}).encode())
    assert load_checkpoint(path).state == TrainingState(step=1)


def test_a_renamed_checkpoint_is_not_taken_for_another_step(tmp_path):
    path = save_checkpoint(tmp_path, TrainingState(step=1), IDENTITY, *trained())
    moved = shutil.move(path, tmp_path / "step-00000009")
    with pytest.raises(DamagedCheckpoint, match="holds step 1"):
        load_checkpoint(moved)


@pytest.mark.errors
def test_an_identity_must_be_json():
    with pytest.raises(ValueError, match="^identity: expected what JSON can say"):
        Identity.of({"data": object()}, Hardware(torch.device("cpu"), "float32", ""))
