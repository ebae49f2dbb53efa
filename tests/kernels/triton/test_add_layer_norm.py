import pytest
import torch

from kernels import REFERENCE, Dropout
from kernels.add_layer_norm import (
    add_layer_norm,
    add_layer_norm_backward_kernel,
    add_layer_norm_backward_op,
    add_layer_norm_forward_kernel,
    add_layer_norm_op,
)
from kernels.philox import keep_rows
from tests.kernels.interpreter import addresses, programs_in
from tests.tolerance import assert_parity

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def drop(p=0.3, seed=-(2**61) - 7, stream=5):
    return Dropout(p, torch.tensor(seed), stream)


def tensors(tokens, hidden):
    vectors = [normal(hidden, seed=i) for i in range(3)]
    return [normal(tokens, hidden), vectors[0], normal(tokens, hidden, seed=9), *vectors[1:]]


@pytest.mark.parametrize("dropout", [None, drop()], ids=["plain", "dropout"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[1])
def test_parity_in_every_dtype(dtype, dropout):
    arguments = [*tensors(19, 24), 1e-12, dropout]
    assert_parity(add_layer_norm, REFERENCE.add_layer_norm, arguments, dtype, True)


@pytest.mark.parametrize("hidden", [3, 128, 312, 768, 1024])
def test_parity_at_every_width(hidden):
    arguments = [*tensors(5, hidden), 1e-12, drop()]
    assert_parity(add_layer_norm, REFERENCE.add_layer_norm, arguments, torch.bfloat16)


@pytest.mark.parametrize("tokens", [0, 1, 33])
def test_parity_in_any_order(any_order, tokens):
    arguments = [*tensors(tokens, 40), 1e-12, drop()]
    assert_parity(add_layer_norm, REFERENCE.add_layer_norm, arguments, torch.float32, True)


def test_the_mask_is_the_stated_one():
    """Bit for bit, at widths that fill a block and that don't, in a high stream, row by row."""
    for hidden, stream, p in ((20, 0, 0.1), (64, 41, 0.99)):
        dropout = drop(p=p, stream=stream)
        x, zero = torch.ones(9, hidden), torch.zeros(hidden)
        _, total = add_layer_norm(x, zero, torch.zeros(9, hidden), zero, zero, 1.0, dropout)
        assert torch.equal(total != 0, keep_rows(dropout, 9, hidden))
        assert set(total.unique().tolist()) <= {0.0, torch.tensor(dropout.scale).float().item()}


def test_gradients_in_float64():
    """A numeric derivative agrees only if the backward pass has the forward pass's mask."""
    inputs = [t.requires_grad_() for t in tensors(3, 9)]
    assert torch.autograd.gradcheck(
        lambda *a: add_layer_norm(*a, 1e-3, drop()), inputs, fast_mode=True
    )


@pytest.mark.parametrize("used", [0, 1])
def test_an_output_that_nobody_used_has_no_gradient(used):
    inputs = [t.requires_grad_() for t in tensors(3, 8)]
    got, want = (
        torch.autograd.grad(
            function(*inputs, 1e-3, drop())[used].sin().sum(), inputs, allow_unused=True
        )
        for function in (add_layer_norm, REFERENCE.add_layer_norm)
    )
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, torch.zeros_like(g) if w is None else w)


def test_order_of_programs_changes_no_bit():
    """The partial sums are added in a fixed order, whichever program came first."""
    results = []
    for order in ("forward", "backward", "shuffled"):
        with programs_in(order):
            inputs = [t.float().requires_grad_() for t in tensors(33, 24)]
            outputs = add_layer_norm(*inputs, 1e-12, drop())
            results.append(torch.autograd.grad([o.cos().sum() for o in outputs], inputs))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_offsets_pass_32_bits():
    rows, hidden = 2**24 + 1, 256
    one, vector = torch.empty(1, dtype=torch.bfloat16), torch.empty(hidden)
    with addresses(program=rows - 1) as seen:
        add_layer_norm_forward_kernel[(1,)](
            one, vector, one, vector, vector, one, one, vector, vector, None, 0, 0, rows,
            EPS=1e-12, HAS_DROPOUT=False, HIDDEN=hidden, BLOCK_ROWS=1, BLOCK_HIDDEN=hidden,
        )  # fmt: skip
    reach = [one.data_ptr() + 2 * (rows - 1) * hidden, one.data_ptr() + 2 * (rows * hidden - 1)]
    assert seen["load"][:4] == reach * 2 and seen["store"][:4] == reach * 2
    partials = torch.empty(1)
    with addresses(program=rows - 1) as seen:
        add_layer_norm_backward_kernel[(1,)](
            one, one, one, vector, vector, vector, one, one, partials, None, 0, 0, rows, 1,
            HAS_DROPOUT=False, HAS_DSUM=True, HIDDEN=hidden, BLOCK_ROWS=1, BLOCK_HIDDEN=hidden,
        )  # fmt: skip
    assert seen["load"][2:6] == reach * 2 and seen["load"][-2:] == reach  # sum, dy, and dsum
    assert seen["store"][:2] == reach
    assert seen["store"][2] == partials.data_ptr() + 4 * 3 * (rows - 1) * hidden
    assert seen["store"][-1] == partials.data_ptr() + 4 * (3 * rows * hidden - 1)


def test_operators_keep_pytorchs_contract():
    inputs = [t.float() for t in tensors(6, 24)]
    seed = torch.tensor(3)
    y, total, mean, rstd = add_layer_norm_op(*inputs, 1e-12, seed, 1, 6554)
    torch.library.opcheck(add_layer_norm_op, (*inputs, 1e-12, seed, 1, 6554))
    for dsum, seeds in ((y, seed), (None, None)):
        torch.library.opcheck(
            add_layer_norm_backward_op,
            (y, dsum, total, inputs[3], mean, rstd, seeds, 1, 6554, torch.float32),
        )


@pytest.mark.compile
@pytest.mark.parametrize("p", [0.0, 0.2])
def test_compiles_as_one_graph(p):
    def call(seed, *inputs):
        y, total = add_layer_norm(*inputs, 1e-12, Dropout(p, seed, 3))
        return y.sin() + total

    inputs = [t.float().requires_grad_() for t in tensors(6, 24)]
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    got, want = (
        torch.autograd.grad(function(torch.tensor(5), *inputs).sum(), inputs)
        for function in (compiled, call)
    )
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.errors
@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, torch.ones(8), r"^x: expected two axes \(tokens, hidden\), got shape \(8,\)$"),
        (1, torch.ones(7), r"^x_bias: expected shape \(8,\), got \(7,\)$"),
        (2, torch.ones(3, 8), r"^residual: expected shape \(2, 8\), got \(3, 8\)$"),
        (4, torch.ones(8).long(), "^bias: expected float16, bfloat16, float32 or float64, got"),
        (6, Dropout(0.1, torch.ones(2).long(), 0), "^dropout: expected one int64 on cpu, got "),
    ],
)
def test_errors_name_the_argument(index, value, message):
    arguments = [t.float() for t in tensors(2, 8)] + [1e-12, None]
    arguments[index] = value
    with pytest.raises(ValueError, match=message):
        add_layer_norm(*arguments)
