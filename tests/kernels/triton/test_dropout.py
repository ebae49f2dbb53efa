import pytest
import torch

from kernels import REFERENCE, Dropout
from kernels.dropout import dropout, dropout_kernel, dropout_op
from kernels.philox import keep_rows
from tests.kernels.interpreter import addresses
from tests.tolerance import assert_parity

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def drop(p=0.3, seed=-(2**61) - 7, stream=5):
    return Dropout(p, torch.tensor(seed), stream)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[1])
def test_parity_in_every_dtype(dtype):
    x = torch.randn(9, 24, dtype=torch.float64)
    assert_parity(dropout, REFERENCE.dropout, [x, drop()], dtype, True)


@pytest.mark.parametrize(("rows", "features"), [(0, 8), (1, 1), (19, 312), (2, 1536)])
def test_the_mask_is_the_stated_one_and_the_gradients(any_order, rows, features):
    mask = drop(p=0.1, stream=41)
    x = torch.full((rows, features), 2.0, requires_grad=True)
    y = dropout(x, mask)
    (dx,) = torch.autograd.grad(y.sum(), x)
    expected = keep_rows(mask, rows, features) * torch.tensor(mask.scale)
    assert torch.equal(y, 2 * expected) and torch.equal(dx, expected)


def test_nothing_dropped_is_the_input_itself():
    x = torch.ones(2, 8)
    assert dropout(x, None) is x and dropout(x, drop(p=1e-6)) is x


def test_offsets_pass_32_bits():
    """The last of 2²⁴ + 1 rows of 256 begins at element 2³², where 32 bits have wrapped to 0."""
    rows, hidden, one = 2**24 + 1, 256, torch.empty(1)
    with addresses(program=rows - 1) as seen:
        dropout_kernel[(1,)](
            one, one, torch.tensor(0), 0, 1, rows, HIDDEN=hidden, BLOCK_ROWS=1, BLOCK_HIDDEN=hidden
        )
    reach = [one.data_ptr() + 4 * (rows - 1) * hidden, one.data_ptr() + 4 * (rows * hidden - 1)]
    assert seen["load"][:2] == reach and seen["store"] == reach


def test_operator_keeps_pytorchs_contract():
    torch.library.opcheck(dropout_op, (torch.ones(6, 24), torch.tensor(3), 1, 6554))
    torch.library.opcheck(dropout_op, (torch.ones(0, 24), torch.tensor(3), 1, 6554))


@pytest.mark.compile
def test_compiles_as_one_graph():
    def call(seed, x):
        return dropout(x * 2, Dropout(0.2, seed, 3)).sin()

    x, seed = torch.randn(6, 24, requires_grad=True), torch.tensor(5)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    got, want = (torch.autograd.grad(f(seed, x).sum(), x)[0] for f in (compiled, call))
    assert torch.equal(got, want)


@pytest.mark.errors
@pytest.mark.parametrize(
    ("x", "mask", "message"),
    [
        (torch.ones(8), None, r"^x: expected two axes \(rows, features\), got shape \(8,\)$"),
        (torch.ones(2, 8).int(), None, "^x: expected float16, bfloat16, float32 or float64, got "),
        (torch.ones(2, 8), Dropout(0.1, torch.ones(1), 0), "^dropout: expected one int64 on cpu"),
    ],
)
def test_errors_name_the_argument(x, mask, message):
    with pytest.raises(ValueError, match=message):
        dropout(x, mask)
