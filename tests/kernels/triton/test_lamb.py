import pytest
import torch

from kernels import REFERENCE
from kernels.kernel_set import LambSettings
from kernels.lamb import CHUNK, lamb_step, lamb_step_op
from tests.kernels.interpreter import programs_in
from tests.tolerance import assert_near

SETTINGS = LambSettings(0.01, (0.9, 0.999), 1e-6, 0.01, is_adapted=True, step=1)
SHAPES = [(7,), (0,), (9, 5), (), (8, 4)]


def normal(shape, seed):
    generator = torch.Generator().manual_seed(seed + len(shape) + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def state(shapes, dtype=torch.float32):
    """Parameters, gradients, means and squares, in float32's digits whatever the dtype."""
    lists = [[normal(shape, seed).float().to(dtype) for shape in shapes] for seed in range(4)]
    return [*lists[:3], [square.abs() for square in lists[3]]]


def after(step, shapes, dtype=torch.float32, steps=(1,), **changes):
    """Run a few steps, and return all that they change."""
    parameters, gradients, means, squares = state(shapes, dtype)
    for t in steps:
        settings = SETTINGS._replace(step=t, **changes)
        step(parameters, [g / t for g in gradients], means, squares, settings)
    return [*parameters, *means, *squares]


def assert_parity(shapes, **changes):
    truth, baseline = (
        after(REFERENCE.lamb_step, shapes, dtype, **changes)
        for dtype in (torch.float64, torch.float32)
    )
    got = after(lamb_step, shapes, **changes)
    for index, (g, t, b) in enumerate(zip(got, truth, baseline, strict=True)):
        assert_near(f"tensor {index}", g, t, b, torch.float32)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": (1, 2, 3)},
        {"is_adapted": False},
        {"weight_decay": 0.0, "eps": 1e-2, "betas": (0.5, 0.8), "steps": (1000,)},
        {"betas": (0.0, 0.999)},
    ],
    ids=str,
)
def test_parity(any_order, changes):
    assert_parity(SHAPES, **changes)


@pytest.mark.parametrize("count", [1, CHUNK - 1, CHUNK, 2 * CHUNK + 4])
def test_parity_over_several_chunks(count):
    """With tensors before and after, whose chunks must not be taken for this one's."""
    assert_parity([(3,), (count,), (4,)], learning_rate=0.5)


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_a_tensor_of_zeros_takes_the_plain_step():
    """‖x‖ = 0 has no ratio; ‖u‖ = 0 neither, and nothing to scale."""
    zeros, ones = torch.zeros(2, 3), torch.ones(4)
    parameters, gradients = [zeros.clone(), ones.clone()], [torch.ones(2, 3), torch.zeros(4)]
    means, squares = ([torch.zeros(2, 3), torch.zeros(4)] for _ in range(2))
    lamb_step(parameters, gradients, means, squares, SETTINGS._replace(weight_decay=0.0))
    torch.testing.assert_close(parameters[0], torch.full((2, 3), -0.01))
    assert torch.equal(parameters[1], ones)


def test_the_step_is_as_long_as_the_tensor_asks():
    """‖Δx‖ = rate · ‖x‖ for each tensor, whatever its gradient's scale."""
    parameters, gradients, means, squares = state([(9, 5), (8, 4)])
    before = [parameter.clone() for parameter in parameters]
    gradients = [1e4 * gradients[0], 1e-2 * gradients[1]]
    lamb_step(parameters, gradients, means, squares, SETTINGS)
    for old, new in zip(before, parameters, strict=True):
        torch.testing.assert_close((new - old).norm(), 0.01 * old.norm())


def test_order_of_programs_changes_no_bit():
    results = []
    for order in ("forward", "backward", "shuffled"):
        with programs_in(order):
            results.append(after(lamb_step, [(2 * CHUNK + 5,), (6,)]))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_unaligned_tensors_are_the_same_step():
    """Views into one buffer, as DDP's gradients are, begin at any multiple of 4 bytes."""
    lists = state([(5, 3), (8,)])
    shifted = []
    for tensors in lists:
        buffer = torch.cat([torch.zeros(1), *(t.flatten() for t in tensors)])
        shifted.append([buffer[1:16].view(5, 3), buffer[16:]])
    lamb_step(*lists, SETTINGS)
    lamb_step(*shifted, SETTINGS)
    for tensors, others in zip(lists, shifted, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))


@pytest.mark.parametrize(
    ("first", "count", "is_aligned"), [(0, 8, True), (4, 8, True), (1, 8, False), (0, 6, False)]
)
def test_wide_loads_are_for_whole_groups_of_four(monkeypatch, first, count, is_aligned):
    """A wrong promise to the compiler shows on a GPU only, so the promise itself is looked at."""
    seen = []

    class Launches:
        def __getitem__(self, grid):
            return lambda *_, ALIGNED, **__: seen.append(ALIGNED)

    for name in ("lamb_moments_kernel", "lamb_apply_kernel"):
        monkeypatch.setattr(f"kernels.lamb.{name}", Launches())
    own = [torch.zeros(12)[first : first + count]]
    whole = [torch.zeros(count)]
    for position in range(4):
        lists = [whole] * 4
        lists[position] = own
        lamb_step(*lists, SETTINGS)
    assert seen == [is_aligned] * 8


def test_nothing_to_do():
    lamb_step([], [], [], [], SETTINGS)
    lamb_step(*state([(0,), (2, 0)]), SETTINGS)


def test_the_operator_keeps_pytorchs_contract():
    torch.library.opcheck(
        lamb_step_op, (*state([(5,), (2, 2)]), 0.1, 0.9, 0.999, 1e-6, 0.01, True, 3)
    )


@pytest.mark.errors
@pytest.mark.parametrize(
    ("name", "tensors", "message"),
    [
        ("gradients", [], "^gradients: expected 2 tensors, got 0$"),
        ("means", [torch.ones(2, 3), torch.ones(4)], r"^means\[1\]: expected shape \(3,\), got "),
        ("squares", [torch.ones(3, 2).T, torch.ones(3)], r"^squares\[0\]: expected contiguous fl"),
        ("parameters", [torch.ones(2, 3).double(), torch.ones(3)], r"^parameters\[0\]: expected "),
        ("gradients", [torch.ones(2, 3), torch.ones(3, device="meta")], r"^gradients\[1\]: expec"),
    ],
)
def test_errors_name_the_tensor(name, tensors, message):
    given = {n: [torch.ones(2, 3), torch.ones(3)] for n in ("parameters", "gradients")}
    given |= {n: [torch.ones(2, 3), torch.ones(3)] for n in ("means", "squares")}
    with pytest.raises(ValueError, match=message):
        lamb_step(*(given | {name: tensors}).values(), SETTINGS)
