"""Attention's addresses past 32 bits: of one program, which runs without the memory.

The sequence is one token, the last of 2²⁴ + 1; its head the last of 256, of 16 dimensions. From
one head to the next of a query are 2²⁴ elements. So the way to its token, that to its head, and
those to its output and its LSE are each beyond 2³¹: in 32 bits they would end elsewhere.
"""

import torch

from kernels.attention_dkdv import attention_dkdv_kernel
from kernels.attention_dq import attention_dq_kernel
from kernels.attention_forward import attention_forward_kernel
from kernels.attention_probabilities import attention_probabilities_kernel
from kernels.attention_short_backward import attention_short_backward_kernel
from tests.kernels.interpreter import addresses

START, HEADS, SIZE = 2**24, 256, 16
TOKENS, HEAD = START + 1, HEADS - 1
STRIDES = (3 * HEADS * SIZE, 2**24)
PACKED = START * STRIDES[0] + HEAD * STRIDES[1]
WHOLE = (START * HEADS + HEAD) * SIZE
ROW = HEAD * TOKENS + START
SHAPE = {"SCALE": 1.0, "HEAD_DIM": SIZE, "PRECISION": "ieee"}


def one():
    return torch.empty(1)


def lengths():
    """Offsets of a sequence of 2²⁴ tokens and one of one; and what is read at their addresses."""
    offsets = torch.empty(1, dtype=torch.int32)
    begin = offsets.data_ptr() + 4
    return offsets, {begin: START, begin + 4: TOKENS}


def reach(tensor, first, count):
    """The lowest and highest address of `count` elements from `first` on."""
    return tensor.data_ptr() + 4 * first, tensor.data_ptr() + 4 * (first + count - 1)


def places(seen):
    """What was touched, but the offsets of the sequences; each once."""
    return {(low, high) for low, high in zip(seen[::2], seen[1::2], strict=True)}


def run(kernel, tensors, offsets, given, dropped=("HAS_DROPOUT",), tiles=(1,), **tile):
    """Run the program of the last head of the second sequence."""
    with addresses(program=HEADS + HEAD, given=given) as seen:
        kernel[(1,)](
            *tensors, offsets, *STRIDES * 3, TOKENS, HEADS, *tiles, None, 0, 0,
            **SHAPE, **tile, **{name: False for name in dropped},
        )  # fmt: skip
    known = {(address, address) for address in given}
    return places(seen["load"]) - known, places(seen["store"])


def test_forward():
    query, key, value, output, lse = (one() for _ in range(5))
    loads, stores = run(
        attention_forward_kernel, (query, key, value, None, None, output, lse), *lengths(),
        ("HAS_DROPOUT", "DESCRIPTORS"), QUERIES=16, KEYS=16, TILES=1, TAIL=16,
    )  # fmt: skip
    assert loads == {reach(tensor, PACKED, SIZE) for tensor in (query, key, value)}
    assert stores == {reach(output, WHOLE, SIZE), reach(lse, ROW, 1)}


def test_dq():
    query, key, value, output, doutput, dquery, lse, delta = (one() for _ in range(8))
    loads, stores = run(
        attention_dq_kernel, (query, key, value, output, doutput, dquery, lse, delta), *lengths(),
        ("HAS_DROPOUT", "DESCRIPTORS"), QUERIES=16, KEYS=16,
    )  # fmt: skip
    assert loads == {
        *(reach(tensor, PACKED, SIZE) for tensor in (query, key, value)),
        *(reach(tensor, WHOLE, SIZE) for tensor in (output, doutput)),
        reach(lse, ROW, 1),
    }
    assert stores == {reach(dquery, WHOLE, SIZE), reach(delta, ROW, 1)}


def test_dkdv():
    query, doutput, key, value, dkey, dvalue, lse, delta = (one() for _ in range(8))
    loads, stores = run(
        attention_dkdv_kernel, (query, doutput, key, value, dkey, dvalue, lse, delta), *lengths(),
        ("HAS_DROPOUT", "DESCRIPTORS", "TRANSPOSED"), QUERIES=16, KEYS=16,
    )  # fmt: skip
    assert loads == {
        *(reach(tensor, PACKED, SIZE) for tensor in (query, key, value)),
        reach(doutput, WHOLE, SIZE),
        *(reach(tensor, ROW, 1) for tensor in (lse, delta)),
    }
    assert stores == {reach(tensor, WHOLE, SIZE) for tensor in (dkey, dvalue)}


def test_short_backward():
    query, key, value, output, doutput, dquery, dkey, dvalue, lse = (one() for _ in range(9))
    tensors = (query, key, value, output, doutput, dquery, dkey, dvalue, lse)
    loads, stores = run(attention_short_backward_kernel, tensors, *lengths(), tiles=(), BLOCK=16)
    assert loads == {
        *(reach(tensor, PACKED, SIZE) for tensor in (query, key, value)),
        *(reach(tensor, WHOLE, SIZE) for tensor in (output, doutput)),
        reach(lse, ROW, 1),
    }
    assert stores == {reach(tensor, WHOLE, SIZE) for tensor in (dquery, dkey, dvalue)}


def test_probabilities():
    """Beside a sequence of 2¹⁶ tokens: its matrix has 2³² elements."""
    query, key, probabilities = (one() for _ in range(3))
    offsets, given = lengths()
    longest, side = 2**16, 16
    tiles = longest // side
    matrix = (HEADS + HEAD) * longest**2
    with addresses(program=(HEADS + HEAD) * tiles + tiles - 1, given=given) as seen:
        attention_probabilities_kernel[(1,)](
            query, key, probabilities, offsets, *STRIDES * 2, HEADS, tiles, longest,
            QUERIES=side, KEYS=1024, **SHAPE,
        )  # fmt: skip
    assert reach(key, PACKED, SIZE) in places(seen["load"])
    assert min(seen["store"]) == reach(probabilities, matrix + (longest - side) * longest, 1)[0]
    assert max(seen["store"]) == reach(probabilities, matrix, longest**2)[1]
