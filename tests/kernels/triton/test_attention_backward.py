import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels import REFERENCE, Dropout, PackedSequences
from kernels import attention_backward as backward_module
from kernels.attention_backward import (
    attention_backward_op,
    dkdv_tile,
    dq_tile,
    longest_short,
)
from kernels.attention_dkdv import attention_dkdv_kernel
from kernels.attention_dq import attention_dq_kernel
from kernels.attention_short_backward import attention_short_backward_kernel
from kernels.attention_tiles import can_describe
from kernels.philox import keep_attention
from tests.kernels.interpreter import one_program, programs_in
from tests.tolerance import assert_near

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
NAMES = ("dquery", "dkey", "dvalue")


def drop(p=0.3, seed=-(2**61) - 7, stream=5):
    return Dropout(p, torch.tensor(seed), stream)


by_dropout = pytest.mark.parametrize("dropout", [None, drop()], ids=["plain", "dropout"])
by_kernel = pytest.mark.parametrize("short", [0, 128], ids=["dq and dkdv", "short"])


class Attended(NamedTuple):
    """What the operator takes: inputs, an upstream gradient, and what the forward pass left."""

    doutput: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    lse: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    seed: Tensor | None
    stream: int
    threshold: int


@dataclass
class Watched:
    """A kernel that says when it is launched."""

    kernel: Any
    say: Callable[[], None]

    def __getitem__(self, grid):
        self.say()
        return self.kernel[grid]


def log2_sums(query, key, sequences):
    """The logarithm to base 2 of each row's sum of exponentials."""
    lse = query.new_empty(query.shape[1], query.shape[0])
    for begin, length in zip(sequences.offsets, sequences.lengths, strict=False):
        rows = slice(begin, begin + length)
        scores = torch.einsum("ihd,jhd->hij", query[rows], key[rows]) / math.sqrt(query.shape[2])
        lse[:, rows] = scores.logsumexp(-1) / math.log(2)
    return lse


def attended(lengths, dtype, dropout=None, heads=1, head_dim=16):
    """Make the operator's arguments without the forward kernel, and REFERENCE's gradients.

    Query, key and value are slices of one packed tensor, and the upstream gradient is strided.
    """
    sequences = PackedSequences.from_lengths(lengths)
    generator = torch.Generator().manual_seed(sum(lengths) + head_dim)
    shape = (sum(lengths), 4, heads, head_dim)
    tensors = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).unbind(1)

    def attend(to):
        *inputs, doutput = (x.detach().to(to).requires_grad_() for x in tensors)
        output = REFERENCE.attention(*inputs, sequences, dropout)
        # A batch of no tokens is no function of its inputs: gradients of none, then.
        gradients = torch.autograd.grad(output, inputs, doutput, materialize_grads=True)
        return output.detach(), gradients

    output, truth = attend(torch.float64)
    _, baseline = attend(dtype)
    query, key, value, doutput = tensors
    arguments = Attended(
        doutput, query, key, value, output.to(dtype),
        log2_sums(query.double(), key.double(), sequences).to(
            torch.promote_types(dtype, torch.float32)
        ),
        sequences.cu_seqlens, sequences.max_seqlen,
        *((dropout.seed, dropout.stream, dropout.threshold) if dropout else (None, 0, 0)),
    )  # fmt: skip
    return arguments, truth, baseline


def hold(arguments, truth, baseline):
    got = attention_backward_op(*arguments)
    for name, *tensors in zip(NAMES, got, truth, baseline, strict=True):
        assert_near(name, *tensors, arguments.query.dtype)


@by_dropout
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[1])
def test_parity_in_every_dtype(dtype, dropout):
    hold(*attended((17, 0, 1, 33), dtype, dropout, heads=2))


@pytest.mark.parametrize(
    ("head_dim", "short"), [(32, 0), (32, 128), (64, 0), (64, 128), (128, 128)]
)
def test_parity_at_every_head_dim(monkeypatch, head_dim, short):
    """A head of 128 leaves no registers for the short kernel: the others serve it."""
    monkeypatch.setattr(backward_module, "SHORT", short)
    hold(*attended((33,), torch.bfloat16, drop(), head_dim=head_dim))


@pytest.mark.parametrize(
    ("lengths", "short"), [((15, 16), 0), ((15, 16), 128), ((127, 128), 0), ((127, 128), 128)]
)
def test_parity_at_the_edges_of_a_tile(monkeypatch, lengths, short):
    monkeypatch.setattr(backward_module, "SHORT", short)
    hold(*attended(lengths, torch.float16, drop()))


@pytest.mark.parametrize("lengths", [(), (0,), (0, 0, 3)], ids=str)
def test_parity_where_there_is_little_or_nothing(lengths):
    hold(*attended(lengths, torch.float16))


@by_dropout
@pytest.mark.parametrize(
    ("target", "dtype", "head_dim"),
    [
        *((target, torch.bfloat16, 16) for target in ("sm80", "sm90", "gfx942")),
        ("gfx942", torch.bfloat16, 128),
        ("gfx942", torch.float32, 16),
    ],
)
def test_the_tiles_of_every_architecture(monkeypatch, target, dtype, head_dim, dropout):
    """Whole tiles and a tail, where a sequence ends within a tile, at its edge and one past it."""
    monkeypatch.setattr(backward_module, "architecture", lambda device: target)
    hold(*attended((129, 128, 5), dtype, dropout, head_dim=head_dim))


def test_no_tile_does_work_twice_on_a_gpu_whose_warps_have_32_rows():
    """A warp of MI300X multiplies 32 rows of a product, in dkdv of queries and of keys."""
    for dtype in (torch.bfloat16, torch.float32):
        for head_dim in (16, 32):
            tile = dkdv_tile("gfx942", head_dim, dtype, True)
            assert min(tile["QUERIES"], tile["KEYS"]) == 32 * tile["num_warps"]


def test_longer_sequences_than_shared_memory_holds_have_two_kernels(monkeypatch):
    """One tile of 128 tokens would ask an RTX 4090 for more shared memory than it has."""
    assert [longest_short(t) for t in ("", "sm80", "sm90", "sm100", "gfx942")] == [128] * 5
    assert [longest_short(t) for t in ("sm86", "sm89", "sm120")] == [64] * 3
    monkeypatch.setattr(backward_module, "architecture", lambda device: "sm89")
    launched = []
    kernels = ("attention_short_backward_kernel", "attention_dq_kernel", "attention_dkdv_kernel")
    for name in kernels:
        kernel = getattr(backward_module, name)
        watched = Watched(kernel, lambda name=name: launched.append(name))
        monkeypatch.setattr(backward_module, name, watched)
    hold(*attended((64, 5), torch.bfloat16))
    hold(*attended((65, 5), torch.bfloat16))
    assert tuple(launched) == kernels


def test_every_form_of_the_loop_is_run():
    """What the test above runs: dkdv on turned tiles and not, both with descriptors and not."""
    targets = ("sm80", "sm90", "gfx942")
    dq = [dq_tile(target, 16, torch.bfloat16) for target in targets]
    dkdv = [dkdv_tile(t, 16, torch.bfloat16, drops) for t in targets for drops in (False, True)]
    assert {tile["DESCRIPTORS"] for tile in dq} == {False, True}
    forms = {(tile["DESCRIPTORS"], tile["TRANSPOSED"]) for tile in dkdv}
    assert forms == {(True, False), (False, False), (False, True)}
    assert dq_tile("sm100", 16, torch.bfloat16) == dq_tile("sm90", 16, torch.bfloat16)


@by_kernel
def test_programs_in_any_order_and_again_change_no_bit(monkeypatch, short):
    """No element is added to by two programs, so no run differs from another in any bit."""
    monkeypatch.setattr(backward_module, "SHORT", short)
    arguments, *_ = attended((128, 5), torch.bfloat16, drop())
    results = []
    for order in ("forward", "forward", "backward", "shuffled"):
        with programs_in(order):
            results.append(attention_backward_op(*arguments))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    ("dtype", "short", "target"),
    [
        (torch.float32, 0, "sm90"),
        (torch.bfloat16, 0, "sm80"),
        (torch.bfloat16, 0, "sm90"),
        (torch.bfloat16, 128, "sm90"),
    ],
    ids=["32x32", "128x64 and 64x64", "64x128 and 64x64", "short"],
)
def test_the_mask_is_the_stated_one_in_every_gradient(monkeypatch, dtype, short, target):
    """With unit matrices for Q, K and D, with V all ones and δ zero, each gradient is the mask.

    (D·Vᵀ is all ones then, and dS the dropped probabilities.)
    """
    monkeypatch.setattr(backward_module, "SHORT", short)
    monkeypatch.setattr(backward_module, "architecture", lambda device: target)
    lengths, heads, dropout = (5, 33), 2, drop(p=0.4, stream=41)
    sequences = PackedSequences.from_lengths(lengths)
    unit = torch.cat([torch.eye(64)[:length] for length in lengths])
    unit = unit[:, None].expand(-1, heads, -1).contiguous().to(dtype)
    lse = log2_sums(unit.float(), unit.float(), sequences)
    gradients = attention_backward_op(
        unit, unit, unit, torch.ones_like(unit), torch.zeros_like(unit), lse,
        sequences.cu_seqlens, 33, dropout.seed, dropout.stream, dropout.threshold,
    )  # fmt: skip
    for index, (begin, length) in enumerate(zip(sequences.offsets, lengths, strict=False)):
        keep = keep_attention(dropout, index, heads, length)
        dquery, dkey, dvalue = (
            g[begin : begin + length, :, :length].transpose(0, 1) != 0 for g in gradients
        )
        assert torch.equal(dquery, keep)
        assert torch.equal(dkey, keep.mT) and torch.equal(dvalue, keep.mT)


@by_kernel
def test_any_strides_give_the_same_bits(monkeypatch, short):
    monkeypatch.setattr(backward_module, "SHORT", short)
    arguments, *_ = attended((7, 121), torch.bfloat16, heads=2)
    assert all(can_describe(x) for x in arguments[1:4])
    expected = attention_backward_op(*arguments)
    for axis in (1, 2):  # heads before tokens: no descriptor; head_dim not innermost: a copy
        moved = [x.transpose(0, axis).contiguous().transpose(0, axis) for x in arguments[:4]]
        assert not can_describe(moved[1]) or moved[1].stride(2) != 1
        got = attention_backward_op(*moved, *arguments[4:])
        assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


@pytest.mark.filterwarnings("ignore:invalid value")  # infinities meet in the other sequence
@by_kernel
@by_dropout
def test_another_sequences_infinities_stay_there(monkeypatch, short, dropout):
    """The last tile reaches into the next sequence, whose rows are zeroed, not weighed by zero."""
    monkeypatch.setattr(backward_module, "SHORT", short)
    arguments, *_ = attended((70, 4), torch.bfloat16, dropout)
    clean = attention_backward_op(*arguments)
    for x in arguments[:6]:
        (x if x.dim() == 3 else x.mT)[70:] = float("inf")
    for a, b in zip(clean, attention_backward_op(*arguments), strict=True):
        assert torch.equal(a[:70], b[:70])


def test_the_last_of_70_000_sequences_which_begins_past_element_2_to_the_31():
    """Only that program runs. The memory is not touched before, so that it isn't really there."""
    count, stride, row = 70_000, 2**15, torch.arange(1, 17).half()
    memory = torch.from_numpy(np.empty((count - 1) * stride + 16, np.float16))
    tokens = memory.as_strided((count, 1, 16), (stride, 16, 1))
    tokens[-1] = row
    cu_seqlens = PackedSequences.from_lengths([1] * count).cu_seqlens
    output = row.expand(count, 1, 16).contiguous()
    doutput = torch.ones_like(output)
    lse, delta = torch.full((1, count), float(row @ row)), torch.zeros(1, count)
    numbers = (*(stride, 16) * 3, count, 1)
    constants = {"SCALE": 1.0, "HEAD_DIM": 16, "HAS_DROPOUT": False, "PRECISION": "ieee"}
    gradients = torch.zeros(6, count, 1, 16, dtype=torch.float16)
    with one_program(count - 1):
        attention_dq_kernel[(1,)](
            tokens, tokens, tokens, output, doutput, gradients[0], lse, delta, cu_seqlens,
            *numbers, 1, None, 0, 0, **constants, **dq_tile("sm80", 16, torch.float16),
        )  # fmt: skip
        attention_dkdv_kernel[(1,)](
            tokens, doutput, tokens, tokens, gradients[1], gradients[2], lse, delta, cu_seqlens,
            *numbers, 1, None, 0, 0, **constants, **dkdv_tile("sm80", 16, torch.float16, False),
        )  # fmt: skip
        attention_short_backward_kernel[(1,)](
            tokens, tokens, tokens, output, doutput, *gradients[3:], lse, cu_seqlens,
            *numbers, None, 0, 0, **constants, BLOCK=32,
        )  # fmt: skip
    # One key has probability 1 whatever its score: only the value has a gradient.
    assert delta[0, -1] == row.sum() and not delta[0, :-1].any()
    for dquery, dkey, dvalue in (gradients[:3], gradients[3:]):
        assert torch.equal(dvalue[-1], doutput[-1]) and not dvalue[:-1].any()
        assert not dquery.any() and not dkey.any()


def test_the_operator_keeps_pytorchs_contract():
    for dropout in (None, drop()):
        arguments, *_ = attended((2,), torch.bfloat16, dropout)
        torch.library.opcheck(attention_backward_op, tuple(arguments))
