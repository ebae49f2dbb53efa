import numpy as np
import pytest
import torch

from kernels import REFERENCE, lamb
from kernels.kernel_set import LambSettings
from kernels.lamb import CHUNK, lamb_step, lamb_step_op
from tests.kernels.interpreter import programs_in
from tests.tolerance import assert_near

RATE = torch.tensor(0.01, dtype=torch.float64)
SETTINGS = LambSettings(RATE, (0.9, 0.999), 1e-6, 0.01, is_adapted=True)
SHAPES = [(7,), (0,), (9, 5), (), (8, 4)]


def normal(shape, seed):
    generator = torch.Generator().manual_seed(seed + len(shape) + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def state(shapes, dtype=torch.float32, step=1):
    """Parameters, gradients, means, squares and steps, in float32's digits whatever the dtype."""
    lists = [[normal(shape, seed).float().to(dtype) for shape in shapes] for seed in range(4)]
    steps = [torch.tensor(float(step)) for _ in shapes]
    return [*lists[:3], [square.abs() for square in lists[3]], steps]


def after(step, shapes, dtype=torch.float32, steps=(1,), **changes):
    """Run a few steps, and return all that they change."""
    parameters, gradients, means, squares, counts = state(shapes, dtype)
    for t in steps:
        for count in counts:
            count.fill_(t)
        settings = SETTINGS._replace(**changes)
        step(parameters, [g / t for g in gradients], means, squares, counts, settings)
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
    assert_parity([(3,), (count,), (4,)], learning_rate=torch.tensor(0.5))


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_a_tensor_of_zeros_takes_the_plain_step():
    """‖x‖ = 0 has no ratio; ‖u‖ = 0 neither, and nothing to scale."""
    zeros, ones = torch.zeros(2, 3), torch.ones(4)
    parameters, gradients = [zeros.clone(), ones.clone()], [torch.ones(2, 3), torch.zeros(4)]
    means, squares = ([torch.zeros(2, 3), torch.zeros(4)] for _ in range(2))
    steps = [torch.tensor(1.0)] * 2
    lamb_step(parameters, gradients, means, squares, steps, SETTINGS._replace(weight_decay=0.0))
    torch.testing.assert_close(parameters[0], torch.full((2, 3), -0.01))
    assert torch.equal(parameters[1], ones)


def test_the_step_is_as_long_as_the_tensor_asks():
    """‖Δx‖ = rate · ‖x‖ for each tensor, whatever its gradient's scale."""
    parameters, gradients, *rest = state([(9, 5), (8, 4)])
    before = [parameter.clone() for parameter in parameters]
    gradients = [1e4 * gradients[0], 1e-2 * gradients[1]]
    lamb_step(parameters, gradients, *rest, SETTINGS)
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
    *lists, steps = state([(5, 3), (8,)])
    shifted = []
    for tensors in lists:
        buffer = torch.cat([torch.zeros(1), *(t.flatten() for t in tensors)])
        shifted.append([buffer[1:16].view(5, 3), buffer[16:]])
    lamb_step(*lists, steps, SETTINGS)
    lamb_step(*shifted, steps, SETTINGS)
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
        lamb_step(*lists, [torch.tensor(1.0)], SETTINGS)
    assert seen == [is_aligned] * 8


def one_chain(x, g, mean, square, t, settings):
    """A step that isn't adapted, operation by operation as in the kernel, by numpy.

    The corrections are computed in Python's own arithmetic, and rounded once.
    """
    x, g, mean, square = (tensor.numpy() for tensor in (x, g, mean, square))
    numbers = (settings.eps, settings.weight_decay, settings.learning_rate.item())
    eps, decay, rate = (np.float32(number) for number in numbers)
    rest1, rest2 = (np.float32(1 - beta) for beta in settings.betas)
    correction1, correction2 = (np.float32(1 / (1 - beta**t)) for beta in settings.betas)
    mean = mean + rest1 * (g - mean)
    square = square + rest2 * (g * g - square)
    u = mean * correction1 / (np.sqrt(square * correction2) + eps) + decay * x
    return torch.from_numpy(x - rate * u)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.5)])
@pytest.mark.parametrize("t", [1, 2, 1000, 10**6])
def test_the_device_corrects_as_the_host_would_to_the_bit(t, betas):
    """Each tensor by its own step."""
    settings = SETTINGS._replace(is_adapted=False, betas=betas)
    *lists, steps = state([(7,), (9, 5)], step=t)
    steps[1] += 1
    want = [
        one_chain(*four, int(step), settings)
        for *four, step in zip(*lists, steps, strict=True)
    ]  # fmt: skip
    lamb_step(*lists, steps, settings)
    assert all(torch.equal(a, b) for a, b in zip(lists[0], want, strict=True))


def test_a_second_step_makes_no_table(monkeypatch):
    """Unless a tensor moved; the rate and the step are read where they lie."""
    made = []
    on = lamb._on
    monkeypatch.setattr(lamb, "_on", lambda device, rows: made.append(rows) or on(device, rows))
    lamb.address_table.cache_clear()
    lists, rate = state([(7,), (9, 5)]), RATE.clone()
    settings = SETTINGS._replace(learning_rate=rate)
    lamb_step(*lists, settings)
    assert [row[5] for row in made[-1]] == [7, 45]
    first = len(made)
    before = lists[0][0].clone()
    rate.fill_(0.0)
    lamb_step(*lists, settings)
    assert len(made) == first and torch.equal(lists[0][0], before)
    lists[1][1] = lists[1][1].clone()
    lamb_step(*lists, settings)
    assert len(made) == first + 1


def test_under_capture_a_table_is_kept_and_none_is_made(monkeypatch):
    """What a graph reads must stay, however many other tables come and go."""
    monkeypatch.setattr(lamb, "_captured", [])
    lamb.address_table.cache_clear()
    lists = state([(7,), (9, 5)])
    lamb_step(*lists, SETTINGS)
    assert lamb._captured == []
    monkeypatch.setattr(lamb, "is_capturing", lambda device: True)
    lamb_step(*lists, SETTINGS)
    ((table, places),) = lamb._captured
    assert table[:, 0].tolist() == [x.data_ptr() for x in lists[0]] and len(places) == 2
    lists[1][0] = lists[1][0].clone()
    with pytest.raises(ValueError, match="^gradients: expected to lie where they lay in a step"):
        lamb_step(*lists, SETTINGS)


def test_nothing_to_do():
    lamb_step([], [], [], [], [], SETTINGS)
    lamb_step(*state([(0,), (2, 0)]), SETTINGS)


def test_the_operator_keeps_pytorchs_contract():
    torch.library.opcheck(
        lamb_step_op, (*state([(5,), (2, 2)], step=3), RATE, 0.9, 0.999, 1e-6, 0.01, True)
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
        (
            "steps",
            [torch.tensor(1.0), torch.ones(3)],
            r"^steps\[1\]: expected shape \(\), got \(3,",
        ),
        (
            "steps",
            [torch.tensor(1.0), torch.tensor(1)],
            r"^steps\[1\]: expected float16, bfloat16",
        ),
    ],
)
def test_errors_name_the_tensor(name, tensors, message):
    given = {n: [torch.ones(2, 3), torch.ones(3)] for n in ("parameters", "gradients")}
    given |= {n: [torch.ones(2, 3), torch.ones(3)] for n in ("means", "squares")}
    given["steps"] = [torch.tensor(1.0)] * 2
    with pytest.raises(ValueError, match=message):
        lamb_step(*(given | {name: tensors}).values(), SETTINGS)
