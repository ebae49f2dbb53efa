import math

import pytest
import torch
from torch import nn

from bert import BertConfig, BertForPreTraining
from bert.training.config import TrainingConfig
from bert.training.hardware import Hardware
from bert.training.muon import MuonAdamW, orthogonalise
from bert.training.optimizer import build_optimizer, describe_groups, set_learning_rate
from bert.training.restoring import restore
from bert.training.state import (
    Identity,
    TrainingState,
    load_checkpoint,
    optimizer_tensors,
    save_checkpoint,
)


class Net(nn.Module):
    """What build_optimizer looks at in a BERT: an encoder with a packed qkv, and things around."""

    def __init__(self):
        super().__init__()
        self.word = nn.Embedding(7, 4)
        self.encoder = nn.ModuleDict({"qkv": nn.Linear(4, 12), "up": nn.Linear(4, 8, bias=False)})
        self.head = nn.Linear(4, 2)


def build(module, **settings):
    return build_optimizer(module, TrainingConfig(optimizer="muon", **settings))


@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 4, 9), (2, 9, 4)])
def test_orthogonalising_keeps_the_directions_and_levels_the_singular_values(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape, dtype=torch.float64)
    u, s, v = torch.linalg.svd(matrices, full_matrices=False)
    got = u.mT @ orthogonalise(matrices) @ v.mT
    levels = got.diagonal(dim1=1, dim2=2)
    assert ((levels > 0.6) & (levels < 1.25)).all()
    torch.testing.assert_close(got, torch.diag_embed(levels), rtol=0, atol=1e-9)


def test_the_groups():
    described = describe_groups(build(Net(), weight_decay=0.1))
    assert {name: group["tensors"] for name, group in described.items()} == {
        "muon": 1, "muon_qkv": 1, "decay": 2, "no_decay": 2,
    }  # fmt: skip


def test_it_is_muon_as_published_and_adamw_beside_it():
    net, twin = Net().double(), Net().double()
    twin.load_state_dict(net.state_dict())
    optimizer = build(net, weight_decay=0.1)
    adamw = build_optimizer(twin, TrainingConfig(weight_decay=0.1))
    assert isinstance(optimizer, MuonAdamW)
    for each in (optimizer, adamw):
        set_learning_rate(each, 0.02)
    weights = {n: net.encoder[n].weight.detach().clone() for n in ("qkv", "up")}
    momenta = {n: torch.zeros_like(w) for n, w in weights.items()}
    for _ in range(4):
        for parameter, other in zip(net.parameters(), twin.parameters(), strict=True):
            parameter.grad = torch.randn_like(parameter)
            other.grad = parameter.grad.clone()
        optimizer.step()
        adamw.step()
        for name, weight in weights.items():
            gradient = net.encoder[name].weight.grad
            momenta[name] = 0.95 * momenta[name] + 0.05 * gradient
            update = 0.05 * gradient + 0.95 * momenta[name]
            maps = update.split(4) if name == "qkv" else [update]
            update = torch.cat([published(m) * 0.2 * math.sqrt(max(m.shape)) for m in maps])
            weight.copy_(weight - 0.02 * 0.1 * weight - 0.02 * update)
            got = net.encoder[name].weight.detach()
            torch.testing.assert_close(got, weight, rtol=0, atol=1e-12)
    for name, parameter in net.named_parameters():
        if "encoder" not in name or name.endswith("bias"):
            assert torch.equal(parameter, dict(twin.named_parameters())[name])


def published(g):
    """Jordan et al. 2024, zeropower_via_newtonschulz5, as its text has it."""
    x = g / g.norm()
    transposed = g.shape[0] > g.shape[1]
    x = x.T if transposed else x
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x - 4.7750 * a @ x + 2.0315 * a @ a @ x
    return x.T if transposed else x


def train(net, optimizer, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in net.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def test_saved_and_restored_it_goes_on_bit_equal(tmp_path):
    identity = Identity.of({}, Hardware(torch.device("cpu"), "float32", ""))
    net, other = Net(), Net()
    optimizer, other_optimizer = build(net), build(other)
    train(net, optimizer, range(3))
    path = save_checkpoint(tmp_path, TrainingState(step=3), identity, net, optimizer)
    assert {
        n: t.shape for n, t in optimizer_tensors(net, optimizer).items() if "qkv.weight" in n
    } == {
        "encoder.qkv.weight/step": torch.Size(),
        "encoder.qkv.weight/exp_avg": torch.Size([12, 4]),
    }
    restore(load_checkpoint(path), other, other_optimizer)
    for each, its_optimizer in ((net, optimizer), (other, other_optimizer)):
        train(each, its_optimizer, range(3, 6))
    for ours, theirs in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_parameter_without_a_gradient_takes_no_step():
    net = Net()
    optimizer, still = build(net, weight_decay=0.1), net.encoder["up"].weight.detach().clone()
    net.encoder["qkv"].weight.grad = torch.ones(12, 4)
    optimizer.step()
    assert torch.equal(net.encoder["up"].weight, still)


@pytest.mark.errors
def test_without_an_encoder_it_is_refused():
    with pytest.raises(
        ValueError, match="^optimizer: expected matrices of an encoder .* got none"
    ):
        build(nn.Linear(2, 2))


def test_of_a_bert_it_takes_the_layers_and_nothing_else():
    shape = BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=12,
    )  # fmt: skip
    described = describe_groups(build(BertForPreTraining(shape)))
    assert described["muon"]["parameters"] == 2 * (8 * 8 + 2 * 8 * 12)
    assert described["muon_qkv"]["parameters"] == 2 * (3 * 8 * 8)
