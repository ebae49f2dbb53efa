import math

import numpy as np
import pytest
import torch

from kernels import REFERENCE, Dropout, PackedSequences
from kernels import attention as attention_module
from kernels.attention import attention, attention_op, attention_with_lse, forward_tile
from kernels.attention_forward import attention_forward_kernel
from kernels.attention_tiles import can_describe
from kernels.philox import keep_attention
from tests.kernels.interpreter import one_program, programs_in
from tests.tolerance import assert_near, assert_parity

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[1])


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def qkv(lengths, heads=1, head_dim=16):
    return [normal(sum(lengths), heads, head_dim, seed=i) for i in range(3)]


def drop(p=0.3, seed=-(2**61) - 7, stream=5):
    return Dropout(p, torch.tensor(seed), stream)


by_dropout = pytest.mark.parametrize("dropout", [None, drop()], ids=["plain", "dropout"])


@by_dropout
@by_dtype
def test_parity_in_every_dtype(dtype, dropout):
    lengths = (17, 0, 1, 33)
    arguments = [*qkv(lengths, heads=2), PackedSequences.from_lengths(lengths), dropout]
    assert_parity(attention, REFERENCE.attention, arguments, dtype, True)


@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_parity_at_every_head_dim(head_dim):
    arguments = [*qkv((33,), 1, head_dim), PackedSequences.from_lengths((33,)), drop()]
    assert_parity(attention, REFERENCE.attention, arguments, torch.bfloat16)


@pytest.mark.parametrize("lengths", [(), (0,), (0, 0, 3)], ids=str)
def test_parity_where_there_is_little_or_nothing(lengths):
    arguments = [*qkv(lengths), PackedSequences.from_lengths(lengths)]
    assert_parity(attention, REFERENCE.attention, arguments, torch.float16)


@by_dropout
@pytest.mark.parametrize(
    ("target", "dtype"),
    [
        *((target, torch.bfloat16) for target in ("sm80", "sm90", "sm100", "gfx942")),
        ("gfx942", torch.float32),
    ],
)
def test_the_tiles_of_every_architecture(monkeypatch, target, dtype, dropout):
    """Whole tiles and a tail, where a sequence ends within a tile, at its edge and one past it."""
    monkeypatch.setattr(attention_module, "architecture", lambda device: target)
    lengths = (289, 128, 5)
    inputs = [x.to(dtype) for x in qkv(lengths)]
    sequences = PackedSequences.from_lengths(lengths)
    truth = REFERENCE.attention(*(x.double() for x in inputs), sequences, dropout)
    baseline = REFERENCE.attention(*inputs, sequences, dropout)
    got = attention(*inputs, sequences, dropout)
    assert_near("output", got, truth, baseline, dtype)


def test_every_step_of_keys_is_taken():
    """What the test above runs: one tile of 256, two of 128, one of 128, one of 64."""
    steps = {
        (tile["TILES"], tile["KEYS"])
        for target in ("sm80", "sm90", "sm100", "gfx942")
        for drops in (False, True)
        for tile in [forward_tile(target, 16, torch.bfloat16, drops, 289)]
    }
    assert steps == {(1, 256), (2, 128), (1, 128), (1, 64)}


def test_programs_in_any_order_change_no_bit():
    results = []
    sequences = PackedSequences.from_lengths((40, 5))
    for order in ("forward", "backward", "shuffled"):
        with programs_in(order):
            inputs = [x.bfloat16().requires_grad_() for x in qkv((40, 5), 2)]
            output = attention(*inputs, sequences, drop())
            results.append([output, *torch.autograd.grad(output.float().cos().sum(), inputs)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["32x32", "128x128"])
def test_the_mask_is_the_stated_one_in_forward_and_backward(dtype):
    """With equal keys and a unit matrix for values the output is the mask, whatever the tile.

    And with a unit matrix for the upstream gradient, dvalue is its transpose.
    """
    lengths, heads, dropout = (5, 64), 2, drop(p=0.4, stream=41)
    query = torch.zeros(sum(lengths), heads, 64, dtype=dtype)
    sequences = PackedSequences.from_lengths(lengths)
    value = torch.zeros_like(query)
    for begin, length in zip(sequences.offsets, lengths, strict=False):
        value[begin : begin + length, :, :length] = torch.eye(length)[:, None]
    value.requires_grad_()
    output = attention(query, query, value, sequences, dropout)
    (dvalue,) = torch.autograd.grad(output, value, value.detach())
    for index, (begin, length) in enumerate(zip(sequences.offsets, lengths, strict=False)):
        keep = keep_attention(dropout, index, heads, length)
        rows = slice(begin, begin + length)
        assert torch.equal(output[rows, :, :length].transpose(0, 1) != 0, keep)
        assert torch.equal(dvalue[rows, :, :length].permute(1, 2, 0) != 0, keep)


def test_gradients_in_float64():
    """A numeric derivative agrees only if the backward kernels have the forward one's mask."""
    sequences = PackedSequences.from_lengths([3])
    inputs = [x.requires_grad_() for x in qkv([3])]
    assert torch.autograd.gradcheck(
        lambda *a: attention(*a, sequences, drop()), inputs, fast_mode=True
    )


def test_packed_qkv_is_read_in_place():
    packed = normal(140, 3, 2, 16).bfloat16()
    sequences = PackedSequences.from_lengths([7, 133])
    assert all(can_describe(x) for x in packed.unbind(1))
    strided = attention(*packed.unbind(1), sequences)
    assert torch.equal(strided, attention(*(x.contiguous() for x in packed.unbind(1)), sequences))
    # Heads before tokens, and head_dim not innermost: no descriptor, and a copy.
    heads_first = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in packed.unbind(1)]
    assert not can_describe(heads_first[0])
    assert torch.equal(strided, attention(*heads_first, sequences))
    outermost = [x.transpose(0, 2).contiguous().transpose(0, 2) for x in packed.unbind(1)]
    assert outermost[0].stride(2) != 1
    assert torch.equal(strided, attention(*outermost, sequences))


def test_lse_is_the_logarithm_of_the_sum():
    query, key, value = (x.float().requires_grad_() for x in qkv([7, 40], 2))
    output, lse = attention_with_lse(query, key, value, PackedSequences.from_lengths([7, 40]))
    for head in range(2):
        for rows in (slice(0, 7), slice(7, 47)):
            scores = query[rows, head] @ key[rows, head].T / math.sqrt(16)
            torch.testing.assert_close(lse[head, rows], scores.logsumexp(-1).detach())
    assert output.requires_grad and not lse.requires_grad


@by_dropout
def test_another_sequences_infinities_stay_there(dropout):
    """The last tile reaches into the next sequence, whose rows are zeroed, not weighed by zero."""
    inputs = [x.bfloat16() for x in qkv([133, 4])]
    sequences = PackedSequences.from_lengths([133, 4])
    clean = attention(*inputs, sequences, dropout)
    for x in inputs:
        x[133:] = float("inf")
    assert torch.equal(attention(*inputs, sequences, dropout)[:133], clean[:133])


def test_the_last_of_70_000_sequences_which_begins_past_element_2_to_the_31():
    """Only that program runs. The memory is not touched before, so that it isn't really there."""
    count, stride = 70_000, 2**15
    memory = torch.from_numpy(np.empty((count - 1) * stride + 16, np.float16))
    tokens = memory.as_strided((count, 1, 16), (stride, 16, 1))
    tokens[-1] = torch.arange(16)
    output, lse = torch.zeros(count, 1, 16, dtype=torch.float16), torch.zeros(1, count)
    tile = forward_tile("sm80", 16, torch.float16, False, 1)
    with one_program(count - 1):
        attention_forward_kernel[(1,)](
            tokens, tokens, tokens, None, None, output, lse,
            PackedSequences.from_lengths([1] * count).cu_seqlens, *(stride, 16) * 3,
            count, 1, 1, None, 0, 0, SCALE=1.0, HEAD_DIM=16, HAS_DROPOUT=False,
            PRECISION="ieee", **tile,
        )  # fmt: skip
    assert torch.equal(output[-1, 0], torch.arange(16).half()) and not output[:-1].any()
    assert lse[0, -1] == sum(i * i for i in range(16)) and not lse[0, :-1].any()


def test_operators_keep_pytorchs_contract():
    query, key, value = (x.bfloat16() for x in qkv([5, 3]))
    for seed in (torch.tensor(3), None):
        packing = (PackedSequences.from_lengths([5, 3]).cu_seqlens, 5, seed, 1, 6554)
        torch.library.opcheck(attention_op, (query, key, value, *packing))


@pytest.mark.compile
@pytest.mark.parametrize("p", [0.0, 0.2])
def test_compiles_as_one_graph(p):
    sequences = PackedSequences.from_lengths([5, 3])

    def call(seed, *inputs):
        return attention(*inputs, sequences, Dropout(p, seed, 3)).sin()

    inputs = [x.float().requires_grad_() for x in qkv([5, 3])]
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    got, want = (
        torch.autograd.grad(f(torch.tensor(5), *inputs).sum(), inputs) for f in (compiled, call)
    )
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.errors
@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, torch.ones(6, 16), r"^query: expected three axes \(tokens, heads, head_dim\), got"),
        (0, torch.ones(6, 2, 24), "^query: expected head_dim 16, 32, 64 or 128, got 24$"),
        (0, torch.ones(6, 2, 16).int(), "^query: expected float16, bfloat16, float32 or float64"),
        (1, torch.ones(6, 1, 16), r"^key: expected shape \(6, 2, 16\), got \(6, 1, 16\)$"),
        (2, torch.ones(6, 2, 16).half(), "^value: expected query's dtype torch.float32, got"),
        (2, torch.ones(6, 2, 16, device="meta"), "^value: expected a tensor on cpu, got one on"),
        (
            3,
            PackedSequences.from_lengths([5]),
            "^sequences: expected lengths that add up to the 6 packed tokens, got 5$",
        ),
        (
            3,
            PackedSequences.from_lengths([6]).to("meta"),
            "^sequences: expected cu_seqlens on cpu, got meta$",
        ),
        (4, Dropout(0.1, torch.ones(()), 0), "^dropout: expected one int64 on cpu, got"),
    ],
)
def test_errors_name_the_argument(index, value, message):
    arguments = [
        *(torch.ones(6, 2, 16) for _ in range(3)),
        PackedSequences.from_lengths([6]),
        None,
    ]
    arguments[index] = value
    with pytest.raises(ValueError, match=message):
        attention(*arguments)
