import copy

import pytest
import torch
from torch import nn

from bert import BertConfig, BertForPreTraining
from bert.training.config import TrainingConfig
from bert.training.optimizer import (
    build_optimizer,
    describe_groups,
    is_decayed,
    set_learning_rate,
)


class Tied(nn.Module):
    """What a BERT has: tied embeddings, a decoder with its own bias, LayerNorm; a frozen part."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.dense = nn.Linear(4, 4)
        self.LayerNorm = nn.LayerNorm(4)
        self.decoder = nn.Linear(4, 5)
        self.decoder.weight = self.embedding.weight
        self.position_bias = nn.Parameter(torch.zeros(2, 2))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def groups(optimizer, module):
    names = {id(p): n for n, p in module.named_parameters()}
    return {g["name"]: {names[id(p)] for p in g["params"]} for g in optimizer.param_groups}


def test_only_matrices_decay_and_each_parameter_has_one_place():
    module = Tied()
    optimizer = build_optimizer(module, TrainingConfig(weight_decay=0.1, betas=(0.8, 0.9)))
    assert groups(optimizer, module) == {
        "decay": {"embedding.weight", "dense.weight"},
        "no_decay": {
            "dense.bias",
            "LayerNorm.weight",
            "LayerNorm.bias",
            "decoder.bias",
            "position_bias",
        },
    }
    assert sum(len(g["params"]) for g in optimizer.param_groups) == 7
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]
    assert all(g["betas"] == (0.8, 0.9) and g["fused"] for g in optimizer.param_groups)


def test_groups_are_described_for_the_log():
    described = describe_groups(build_optimizer(Tied(), TrainingConfig(weight_decay=0.1)))
    assert described == {
        "decay": {"tensors": 2, "parameters": 36, "weight_decay": 0.1, "rate_scale": 1.0},
        "no_decay": {
            "tensors": 5,
            "parameters": 4 + 4 + 4 + 5 + 4,
            "weight_decay": 0.0,
            "rate_scale": 1.0,
        },
    }


def test_a_step_without_gradient_moves_only_what_decays():
    module = Tied()
    before = copy.deepcopy(module.state_dict())
    optimizer = build_optimizer(module, TrainingConfig(weight_decay=0.1))
    set_learning_rate(optimizer, 0.5)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, value in module.state_dict().items():
        decayed = name in ("embedding.weight", "dense.weight", "decoder.weight")
        torch.testing.assert_close(value, before[name] * (0.95 if decayed else 1.0))


def test_it_is_adamw_as_published():
    weight = nn.Linear(3, 1, bias=False).double()
    start = weight.weight.detach().clone()
    config = TrainingConfig(learning_rate=0.1, weight_decay=0.01, betas=(0.9, 0.99), eps=1e-6)
    optimizer = build_optimizer(weight, config)
    expected, m, v = start.clone(), 0.0, 0.0
    for k in range(1, 4):
        gradient = torch.tensor([[1.0, -2.0, 0.5 * k]], dtype=torch.float64)
        weight.weight.grad = gradient.clone()
        optimizer.step()
        # Loshchilov and Hutter 2019, algorithm 2.
        m = 0.9 * m + 0.1 * gradient
        v = 0.99 * v + 0.01 * gradient**2
        expected = expected * (1 - 0.1 * 0.01)
        expected -= 0.1 * (m / (1 - 0.9**k)) / ((v / (1 - 0.99**k)).sqrt() + 1e-6)
    torch.testing.assert_close(weight.weight.detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["adamw", "bert_adam", "lamb", "muon"])
def test_each_layer_has_a_share_of_the_rate_of_the_one_above(kind):
    """Without gradients a step is weight decay alone, whose length is the rate."""
    shape = BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=12, num_attention_heads=2,
        intermediate_size=12, initializer_range=1.0, pad_token_id=None,
    )  # fmt: skip
    model = BertForPreTraining(shape).double()
    before = copy.deepcopy(model.state_dict())
    config = TrainingConfig(optimizer=kind, layer_decay=0.5, weight_decay=0.25)
    optimizer = build_optimizer(model, config)
    set_learning_rate(optimizer, 0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    shares = {"bert.embeddings": 0.5**13, "bert.pooler": 1.0, "mlm_head": 1.0, "nsp_head": 1.0}
    shares |= {f"bert.encoder.layers.{n}": 0.5 ** (12 - n) for n in range(12)}
    seen = set()
    for name, parameter in model.named_parameters():
        if is_decayed(name, parameter):
            (place,) = [part for part in shares if name.startswith(f"{part}.")]
            seen.add(place)
            # LAMB's step is as long as the tensor, whatever the decay that it comes from.
            rate = shares[place] * (0.1 if kind == "lamb" else 0.1 * 0.25)
            moved = (before[name] - parameter.detach()) / before[name]
            torch.testing.assert_close(moved, torch.full_like(moved, rate), rtol=1e-7, atol=0)
    assert seen == shares.keys()
    described = describe_groups(optimizer)
    assert sum(group["tensors"] for group in described.values()) == len(list(model.parameters()))
    assert described["decay/embeddings"]["rate_scale"] == 0.5**13
    assert described["no_decay/layer_11"]["rate_scale"] == 0.5


@pytest.mark.errors
def test_a_decay_over_layers_needs_layers():
    with pytest.raises(ValueError, match="^layer_decay: expected the layers of an encoder, got"):
        build_optimizer(nn.Linear(2, 2), TrainingConfig(layer_decay=0.9))


@pytest.mark.errors
def test_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="^objective: expected a trainable parameter"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), TrainingConfig())
