"""What only a GPU shows: the kernels as compiled there, at real sizes, again and again.

`make gpu-check` runs these. They were written where no GPU was, and have not run yet.
"""

import pytest
import torch

from benchmarks.kernel_speed import TINY, cast, operation_of, values, verify, workloads
from benchmarks.roofline import SHAPES
from kernels import TRITON, Dropout
from kernels.bias_gelu import bias_gelu
from kernels.dropout import dropout
from kernels.layer_norm import layer_norm

pytestmark = pytest.mark.gpu
NAMES = [work.name for work in workloads(TINY, torch.device("cpu"))]
REPEATS = 1000


def find(name, shape):
    return next(w for w in workloads(shape, torch.device("cuda")) if w.name == name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
def test_parity_at_real_shapes(name, shape):
    """Outputs and every gradient, with the dropout masks of the reference."""
    work = find(name, shape)
    verify(work, operation_of(TRITON, work), same_masks=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [128, 512])
def test_a_thousand_repeats_agree_to_the_bit(name, length):
    """A race between threads would show as another bit, sooner or later."""
    shape = SHAPES[0]._replace(sequences=2048 // length, length=length, parameters=2**20)
    work = find(name, shape)
    inputs, operation = work.inputs(), operation_of(TRITON, work)
    first = values(operation, cast(inputs, work.dtype))
    for repeat in range(REPEATS):
        again = values(operation, cast(inputs, work.dtype))
        for index, (a, b) in enumerate(zip(first, again, strict=True)):
            assert torch.equal(a, b), f"value {index} differs in repeat {repeat}"


HIDDEN, LAST = 1024, 8
ROWS = 2**21 + LAST  # 2³¹ elements come before the last eight rows


def test_offsets_pass_32_bits():
    """The last of over 2³¹ elements come out as they do alone."""
    x = torch.randn(ROWS, HIDDEN, device="cuda", dtype=torch.bfloat16)
    vector = torch.randn(HIDDEN, device="cuda", dtype=torch.bfloat16)
    last = x[-LAST:].clone()
    whole, alone = (layer_norm(rows, vector, vector, 1e-12) for rows in (x, last))
    assert torch.equal(whole[-LAST:], alone)
    whole, alone = (bias_gelu(rows, vector) for rows in (x, last))
    assert torch.equal(whole[-LAST:], alone)


def test_dropouts_offsets_pass_32_bits():
    x = torch.ones(ROWS, HIDDEN, device="cuda", dtype=torch.bfloat16)
    y = dropout(x, Dropout(0.5, torch.tensor(1, device="cuda"), 0))[-LAST:]
    assert ((y == 0) | (y == 2)).all()
    assert 0.4 < (y == 2).double().mean().item() < 0.6
