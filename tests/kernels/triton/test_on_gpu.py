"""What only a GPU shows: the kernels as compiled there, at real sizes, again and again.

`make gpu-check` runs these. They were written where no GPU was, and have not run yet.
"""

import pytest
import torch

from benchmarks.roofline import SHAPES
from benchmarks.workloads import TINY, cast, operation_of, values, verify, workloads
from kernels import TRITON

pytestmark = pytest.mark.gpu
NAMES = [work.name for work in workloads(TINY, torch.device("cpu"))]
REPEATS = 1000


def find(name, shape, device="cuda"):
    return next(w for w in workloads(shape, torch.device(device)) if w.name == name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
def test_parity_at_real_shapes(name, shape):
    """Outputs and every gradient, with the dropout masks of the reference."""
    work = find(name, shape)
    verify(work, operation_of(TRITON, work), same_masks=True)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", NAMES)
def test_parity_on_a_gpu_that_is_not_the_current_one(name):
    assert torch.cuda.current_device() == 0
    work = find(name, SHAPES[0]._replace(sequences=16, parameters=2**20), "cuda:1")
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
