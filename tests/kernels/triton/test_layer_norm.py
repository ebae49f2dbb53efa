import pytest
import torch

from kernels import REFERENCE
from kernels.layer_norm import (
    layer_norm,
    layer_norm_backward_kernel,
    layer_norm_backward_op,
    layer_norm_forward_kernel,
    layer_norm_op,
)
from tests.kernels.interpreter import addresses
from tests.tolerance import assert_parity

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[1])


def normal(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale


def arguments(tokens, hidden, eps=1e-12):
    return [normal(tokens, hidden, scale=3.0), normal(hidden, seed=2), normal(hidden, seed=3), eps]


@by_dtype
def test_parity_in_every_dtype(dtype):
    assert_parity(layer_norm, REFERENCE.layer_norm, arguments(19, 24), dtype, True)


@pytest.mark.parametrize("hidden", [2, 128, 312, 768, 1024, 1536])
def test_parity_at_every_width(hidden):
    assert_parity(layer_norm, REFERENCE.layer_norm, arguments(5, hidden), torch.bfloat16)


@pytest.mark.parametrize("tokens", [0, 1, 33])
def test_parity_in_any_order(any_order, tokens):
    assert_parity(layer_norm, REFERENCE.layer_norm, arguments(tokens, 40), torch.float32, True)


def test_a_row_far_from_zero_keeps_its_digits():
    """E[x²] − E[x]² in float32 would leave none of them."""
    x, weight, bias, eps = arguments(3, 64)
    assert_parity(layer_norm, REFERENCE.layer_norm, [x + 3000, weight, bias, eps], torch.float32)


def test_weights_may_have_another_dtype_than_the_input():
    x, weight, bias, eps = arguments(4, 16)
    x16 = x.bfloat16().requires_grad_()
    w32, b64 = weight.float().requires_grad_(), bias.clone().requires_grad_()
    y = layer_norm(x16, w32, b64, eps)
    y.sum().backward()
    assert (y.dtype, x16.grad.dtype) == (torch.bfloat16, torch.bfloat16)
    assert (w32.grad.dtype, b64.grad.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(y, REFERENCE.layer_norm(x16, w32, b64, eps))


def test_strided_input():
    x, weight, bias, eps = (a.float() if hasattr(a, "float") else a for a in arguments(6, 24))
    wide = torch.stack((x, -x), 1)[:, 0]
    assert not wide.is_contiguous()
    assert torch.equal(layer_norm(wide, weight, bias, eps), layer_norm(x, weight, bias, eps))


def test_gradients_in_float64():
    x, weight, bias, _ = (a.requires_grad_() if hasattr(a, "sum") else a for a in arguments(2, 5))
    assert torch.autograd.gradcheck(lambda *a: layer_norm(*a, 1e-3), [x, weight, bias])


def test_offsets_pass_32_bits():
    """The last of 2²⁴ + 1 rows of 256 begins at element 2³², where 32 bits have wrapped to 0."""
    rows, hidden = 2**24 + 1, 256
    x, y = torch.empty(1, dtype=torch.bfloat16), torch.empty(1, dtype=torch.bfloat16)
    vector, statistics = torch.empty(hidden), torch.empty(1)
    with addresses(program=rows - 1) as seen:
        layer_norm_forward_kernel[(1,)](
            x, vector, vector, y, statistics, statistics, rows,
            EPS=1e-12, HIDDEN=hidden, BLOCK_ROWS=1, BLOCK_HIDDEN=hidden,
        )  # fmt: skip
    first, last = 2 * (rows - 1) * hidden, 2 * (rows * hidden - 1)
    assert seen["load"][:2] == [x.data_ptr() + first, x.data_ptr() + last]
    assert seen["store"][:2] == [y.data_ptr() + first, y.data_ptr() + last]
    partials = torch.empty(1)
    with addresses(program=rows - 1) as seen:
        layer_norm_backward_kernel[(1,)](
            y, x, vector, statistics, statistics, x, partials, rows, 1,
            HIDDEN=hidden, BLOCK_ROWS=1, BLOCK_HIDDEN=hidden,
        )  # fmt: skip
    assert seen["load"][2:4] == [x.data_ptr() + first, x.data_ptr() + last]
    assert seen["load"][4:6] == [y.data_ptr() + first, y.data_ptr() + last]
    assert seen["store"][:2] == [x.data_ptr() + first, x.data_ptr() + last]
    assert seen["store"][2] == partials.data_ptr() + 4 * 2 * (rows - 1) * hidden
    assert seen["store"][-1] == partials.data_ptr() + 4 * (2 * rows * hidden - 1)


def test_operators_keep_pytorchs_contract():
    x, weight, bias, eps = (a.float() if hasattr(a, "float") else a for a in arguments(6, 24))
    _, mean, rstd = layer_norm_op(x, weight, bias, eps)
    torch.library.opcheck(layer_norm_op, (x, weight, bias, eps))
    torch.library.opcheck(layer_norm_backward_op, (x, x, weight, mean, rstd))
    torch.library.opcheck(layer_norm_op, (x[:0], weight, bias, eps))


@pytest.mark.compile
def test_compiles_as_one_graph():
    def call(x, weight, bias):
        return layer_norm(x * 2, weight, bias, 1e-12).sin()

    inputs = [a.float().requires_grad_() for a in arguments(6, 24)[:3]]
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for function in (call, compiled):
        grads = torch.autograd.grad(function(*inputs).sum(), inputs)
        if function is call:
            expected = grads
    for got, want in zip(grads, expected, strict=True):
        assert torch.equal(got, want)


@pytest.mark.errors
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.ones(2, 3, 8)}, r"^x: expected two axes \(tokens, hidden\), got shape \(2, 3"),
        ({0: torch.ones(2, 8).int()}, "^x: expected float16, bfloat16, float32 or float64, got "),
        ({1: torch.ones(7)}, r"^weight: expected shape \(8,\), got \(7,\)$"),
        ({2: torch.ones(1, 8)}, r"^bias: expected shape \(8,\), got \(1, 8\)$"),
        ({2: torch.ones(8, device="meta")}, "^bias: expected a tensor on cpu, got one on meta$"),
    ],
)
def test_errors_name_the_argument(change, message):
    given = {0: torch.ones(2, 8), 1: torch.ones(8), 2: torch.ones(8)} | change
    with pytest.raises(ValueError, match=message):
        layer_norm(*given.values(), 1e-12)


@pytest.mark.errors
def test_a_cpu_tensor_without_the_interpreter_is_refused(monkeypatch):
    monkeypatch.setattr("kernels.device.INTERPRETED", False)
    with pytest.raises(ValueError, match="^x: expected a tensor on a GPU, got one on cpu"):
        layer_norm(torch.ones(2, 8), torch.ones(8), torch.ones(8), 1e-12)
