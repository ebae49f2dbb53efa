import copy

import pytest
import torch
from torch import nn

from bert.training.config import TrainingConfig
from bert.training.lamb import Lamb
from bert.training.optimizer import build_optimizer, set_learning_rate
from bert.training.state import optimizer_tensors
from kernels import REFERENCE, TORCH
from tests.bert.training.toy import ToyObjective, run


def build(module, **settings):
    return build_optimizer(module, TrainingConfig(optimizer="lamb", **settings))


def test_what_does_not_decay_is_not_adapted():
    optimizer = build(nn.Linear(4, 3), weight_decay=0.1, betas=(0.8, 0.9), eps=1e-5)
    assert isinstance(optimizer, Lamb) and optimizer.kernels is TORCH
    described = [(g["name"], g["weight_decay"], g["is_adapted"]) for g in optimizer.param_groups]
    assert described == [("decay", 0.1, True), ("no_decay", 0.0, False)]
    assert all(g["betas"] == (0.8, 0.9) and g["eps"] == 1e-5 for g in optimizer.param_groups)


@pytest.mark.parametrize("kernels", [REFERENCE, TORCH], ids=lambda k: k.name)
def test_it_is_lamb_as_published(kernels):
    """You et al. 2020, algorithm 2, with the norm itself for φ."""
    module = nn.Linear(3, 2).double()
    x, b = module.weight.detach().clone(), module.bias.detach().clone()
    optimizer = build(module, weight_decay=0.01, betas=(0.9, 0.99), eps=1e-6)
    assert isinstance(optimizer, Lamb)
    optimizer.kernels = kernels
    set_learning_rate(optimizer, 0.1)
    m = v = mb = vb = 0.0
    for t in range(1, 4):
        g = torch.tensor([[1.0, -2.0, 0.5 * t], [0.1, 0.2, -t]], dtype=torch.float64)
        h = torch.tensor([0.5, -t], dtype=torch.float64)
        module.weight.grad, module.bias.grad = g.clone(), h.clone()
        optimizer.step()
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        r = (m / (1 - 0.9**t)) / ((v / (1 - 0.99**t)).sqrt() + 1e-6)
        u = r + 0.01 * x
        x = x - 0.1 * x.norm() / u.norm() * u
        mb, vb = 0.9 * mb + 0.1 * h, 0.99 * vb + 0.01 * h**2
        b = b - 0.1 * (mb / (1 - 0.9**t)) / ((vb / (1 - 0.99**t)).sqrt() + 1e-6)
    torch.testing.assert_close(module.weight.detach(), x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(module.bias.detach(), b, rtol=1e-12, atol=1e-12)


def test_a_parameter_without_a_gradient_takes_no_step():
    """A loss that some windows lack: its head goes on later, with its own count of steps."""
    module = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
    alone = nn.Linear(2, 2, bias=False)
    alone.load_state_dict(module[1].state_dict())
    both, one = build(module), build(alone)
    for step in range(3):
        module[0].weight.grad = torch.ones(2, 2)
        late = None if step == 0 else torch.full((2, 2), float(step))
        module[1].weight.grad = alone.weight.grad = late
        both.step()
        one.step()
    steps = {n: int(t) for n, t in optimizer_tensors(module, both).items() if n.endswith("step")}
    assert steps == {"0.weight/step": 3, "1.weight/step": 2}
    assert torch.equal(module[1].weight, alone.weight)


def test_what_a_graph_reads_stays_where_it_is():
    """The rate and the counts change in place, with the gradients kept."""
    module = nn.Linear(3, 2)
    optimizer = build(module)
    rates = [group["lr"] for group in optimizer.param_groups]
    addresses = set()
    for step in range(3):
        optimizer.zero_grad(set_to_none=False)
        module(torch.ones(1, 3)).sum().backward()
        set_learning_rate(optimizer, 0.5 * step)
        optimizer.step()
        read = [*rates, *optimizer_tensors(module, optimizer).values()]
        read += [parameter.grad for parameter in module.parameters()]
        addresses.add(tuple(tensor.data_ptr() for tensor in read))
    assert len(addresses) == 1
    assert [group["lr"].item() for group in optimizer.param_groups] == [1.0, 1.0]


def test_a_loaded_optimiser_goes_on_as_the_saved_one():
    """To the bit; the counts are in float32 on the parameters' device."""
    modules = [nn.Linear(3, 2) for _ in range(2)]
    optimizers = [build(module, weight_decay=0.1) for module in modules]

    def step(module, optimizer):
        optimizer.zero_grad()
        module(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()

    step(modules[0], optimizers[0])
    modules[1].load_state_dict(modules[0].state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for module, optimizer in zip(modules, optimizers, strict=True):
        step(module, optimizer)
    for a, b in zip(*(module.parameters() for module in modules), strict=True):
        assert torch.equal(a, b)
    counts = [state["step"] for state in optimizers[1].state.values()]
    assert [(count.item(), count.dtype) for count in counts] == [(2.0, torch.float32)] * 2


def test_it_learns_in_the_loop(tmp_path):
    before, after = ToyObjective(), ToyObjective()
    result = run(tmp_path, after, optimizer="lamb", budget="60", learning_rate=0.05)
    first = run(tmp_path / "first", before, optimizer="lamb", budget="1")
    assert result.loss is not None and first.loss is not None
    assert result.loss < 0.7 * first.loss
