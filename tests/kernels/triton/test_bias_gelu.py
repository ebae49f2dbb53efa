import pytest
import torch

from kernels import REFERENCE
from kernels.bias_gelu import (
    bias_gelu,
    bias_gelu_backward_kernel,
    bias_gelu_backward_op,
    bias_gelu_forward_kernel,
    bias_gelu_op,
)
from tests.kernels.interpreter import addresses, programs_in
from tests.tolerance import assert_parity

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
by_form = pytest.mark.parametrize("form", ["erf", "tanh"])


def normal(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale


@by_form
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[1])
def test_parity_in_every_dtype(dtype, form):
    arguments = [normal(19, 24, scale=3.0), normal(24), form]
    assert_parity(bias_gelu, REFERENCE.bias_gelu, arguments, dtype, True)


@pytest.mark.parametrize("features", [1, 3, 256, 312, 3072])
def test_parity_at_every_width(features):
    arguments = [normal(3, features), normal(features), "erf"]
    assert_parity(bias_gelu, REFERENCE.bias_gelu, arguments, torch.bfloat16)


@pytest.mark.parametrize("tokens", [0, 1, 17, 150])
def test_parity_in_any_order(any_order, tokens):
    arguments = [normal(tokens, 40, scale=3.0), normal(40), "erf"]
    assert_parity(bias_gelu, REFERENCE.bias_gelu, arguments, torch.float32, True)


def value_and_slope(function, x, form):
    x = x.clone().requires_grad_()
    y = function(x, torch.zeros(x.shape[1]).to(x), form)
    return y.detach(), torch.autograd.grad(y.sum(), x)[0]


@by_form
def test_the_stated_error_holds_on_the_whole_line(form):
    line = torch.linspace(-20, 20, 80 * 256).view(80, 256)
    truth = value_and_slope(REFERENCE.bias_gelu, line.double(), form)
    got = value_and_slope(bias_gelu, line, form)
    assert ((got[0] - truth[0]).abs() / line.abs().clamp(min=1)).max() < 4.2e-7
    assert (got[1] - truth[1]).abs().max() < 4.2e-7


@by_form
@pytest.mark.filterwarnings("ignore:overflow")
def test_nothing_overflows_far_out(form):
    ends = torch.tensor([-1e19, -1e4, -0.0, 0.0, 1e4, 1e19])[:, None]
    value, slope = value_and_slope(bias_gelu, ends, form)
    assert torch.equal(value, ends.clamp(min=0))
    assert torch.equal(slope[[0, 1, 4, 5]], torch.tensor([0.0, 0, 1, 1])[:, None])
    torch.testing.assert_close(slope[2:4], torch.full((2, 1), 0.5))


@by_form
def test_gradients_in_float64(form):
    inputs = [normal(3, 5).requires_grad_(), normal(5).requires_grad_()]
    assert torch.autograd.gradcheck(lambda x, b: bias_gelu(x, b, form), inputs)


def test_order_of_programs_changes_no_bit():
    results = []
    for order in ("forward", "backward", "shuffled"):
        with programs_in(order):
            inputs = [normal(70, 300).float().requires_grad_(), normal(300).float()]
            inputs[1].requires_grad_()
            results.append(torch.autograd.grad(bias_gelu(*inputs).cos().sum(), inputs))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_bias_may_have_another_dtype():
    x, bias = normal(6, 24).bfloat16().requires_grad_(), normal(24).float().requires_grad_()
    y = bias_gelu(x, bias)
    y.float().square().sum().backward()
    assert (y.dtype, x.grad.dtype, bias.grad.dtype) == (x.dtype, x.dtype, torch.float32)
    torch.testing.assert_close(y, REFERENCE.bias_gelu(x.float(), bias).bfloat16())


def test_strided_input():
    x, bias = normal(6, 24).float(), normal(24).float()
    wide = torch.stack((x, -x), 2)[..., 0]
    assert not wide.is_contiguous()
    assert torch.equal(bias_gelu(wide, bias), bias_gelu(x, bias))


def test_offsets_pass_32_bits():
    """The last of 2²⁴ + 1 rows of 256 begins at element 2³², where 32 bits have wrapped to 0."""
    rows, features = 2**24 + 1, 256
    x, y, bias = torch.empty(1), torch.empty(1), torch.empty(features)
    first, last = 4 * (rows - 1) * features, 4 * (rows * features - 1)
    sizes = {"TANH": False, "FEATURES": features, "BLOCK_ROWS": 1, "BLOCK_COLUMNS": features}
    with addresses(program=rows - 1) as seen:
        bias_gelu_forward_kernel[(1,)](x, bias, y, rows, **sizes)
    assert seen["load"][2:] == [x.data_ptr() + first, x.data_ptr() + last]
    assert seen["store"] == [y.data_ptr() + first, y.data_ptr() + last]
    with addresses(program=rows - 1) as seen:
        bias_gelu_backward_kernel[(1,)](x, x, bias, y, bias, rows, 1, **sizes)
    assert seen["load"][2:] == [x.data_ptr() + first, x.data_ptr() + last] * 2
    assert seen["store"][:2] == [y.data_ptr() + first, y.data_ptr() + last]
    assert seen["store"][2:] == [bias.data_ptr() + first, bias.data_ptr() + last]


def test_operators_keep_pytorchs_contract():
    x, bias = normal(6, 24).float(), normal(24).float()
    torch.library.opcheck(bias_gelu_op, (x, bias, False))
    torch.library.opcheck(bias_gelu_backward_op, (x, x, bias, True))
    torch.library.opcheck(bias_gelu_backward_op, (x[:0], x[:0], bias, False))


@pytest.mark.compile
def test_compiles_as_one_graph():
    def call(x, bias):
        return bias_gelu(x * 2, bias, "tanh").sin()

    inputs = [normal(6, 24).float().requires_grad_(), normal(24).float().requires_grad_()]
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    got, want = (torch.autograd.grad(f(*inputs).sum(), inputs) for f in (compiled, call))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.errors
@pytest.mark.parametrize(
    ("x", "bias", "form", "message"),
    [
        (torch.ones(8), torch.ones(8), "erf", r"^x: expected two axes \(tokens, features\), got"),
        (torch.ones(2, 8).int(), torch.ones(8), "erf", "^x: expected float16, bfloat16, float32 "),
        (torch.ones(2, 8), torch.ones(2, 8), "erf", r"^bias: expected shape \(8,\), got \(2, 8\)"),
        (torch.ones(2, 8), torch.ones(8), "relu", "^form: expected one of erf, tanh, got 'relu'$"),
    ],
)
def test_errors_name_the_argument(x, bias, form, message):
    with pytest.raises(ValueError, match=message):
        bias_gelu(x, bias, form)
