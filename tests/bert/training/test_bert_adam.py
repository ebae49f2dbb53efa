import pytest
import torch
from torch import nn

from bert.training.bert_adam import BertAdam
from bert.training.config import TrainingConfig
from bert.training.optimizer import build_optimizer, set_learning_rate
from bert.training.state import optimizer_tensors
from tests.bert.training.toy import ToyObjective, run


def build(module, **settings):
    return build_optimizer(module, TrainingConfig(optimizer="bert_adam", **settings))


def as_published(x, gradients, *, rate, beta1, beta2, epsilon, decay):
    """AdamWeightDecayOptimizer.apply_gradients of google-research/bert, number by number."""
    values, first, second = x.flatten().tolist(), [0.0] * x.numel(), [0.0] * x.numel()
    for gradient in gradients:
        for i, g in enumerate(gradient.flatten().tolist()):
            first[i] = beta1 * first[i] + (1.0 - beta1) * g
            second[i] = beta2 * second[i] + (1.0 - beta2) * g**2
            update = first[i] / (second[i] ** 0.5 + epsilon)
            values[i] -= rate * (update + decay * values[i])
    return torch.tensor(values, dtype=torch.float64).reshape(x.shape)


def test_it_is_googles_step_for_step():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4)).double()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    gradients = {n: torch.randn(7, *p.shape, dtype=torch.float64) for n, p in before.items()}
    optimizer = build(module, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-3)
    assert isinstance(optimizer, BertAdam)
    set_learning_rate(optimizer, 0.02)
    for k in range(7):
        for name, parameter in module.named_parameters():
            parameter.grad = gradients[name][k].clone()
        optimizer.step()
        for name, parameter in module.named_parameters():
            expected = as_published(
                before[name],
                gradients[name][: k + 1],
                rate=0.02,
                beta1=0.8,
                beta2=0.95,
                epsilon=1e-3,
                decay=0.1 if name == "0.weight" else 0.0,
            )
            torch.testing.assert_close(parameter.detach(), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("step", "longer"), [(1, 3.2), (12, 6.6), (1000, 1.3)])
def test_its_steps_are_longer_than_adamws_as_its_docstring_says(step, longer):
    moved = {}
    for name in ("bert_adam", "adamw"):
        module = nn.Linear(1, 1, bias=False).double()
        config = TrainingConfig(optimizer=name, learning_rate=1e-3, weight_decay=0.0, eps=1e-12)
        optimizer = build_optimizer(module, config)
        for _ in range(step):
            before = module.weight.item()
            module.weight.grad = torch.ones(1, 1, dtype=torch.float64)
            optimizer.step()
        moved[name] = before - module.weight.item()
    assert moved["bert_adam"] / moved["adamw"] == pytest.approx(longer, abs=0.05)


def test_a_parameter_without_a_gradient_takes_no_step():
    module = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
    optimizer, still = build(module, weight_decay=0.1), module[1].weight.detach().clone()
    module[0].weight.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(module[1].weight, still)
    assert optimizer_tensors(module, optimizer).keys() == {
        "0.weight/exp_avg", "0.weight/exp_avg_sq",
    }  # fmt: skip


def test_it_learns_in_the_loop(tmp_path):
    result = run(tmp_path, ToyObjective(), optimizer="bert_adam", budget="60", learning_rate=0.03)
    first = run(tmp_path / "first", ToyObjective(), optimizer="bert_adam", budget="1")
    assert result.loss is not None and first.loss is not None
    assert result.loss < 0.7 * first.loss
