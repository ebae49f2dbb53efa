import pytest
import torch
import triton
import triton.language as tl

from kernels import Dropout
from kernels.philox import keep_attention as stated
from kernels.random_bits import keep_attention


@triton.jit
def mask_kernel(
    mask_ptr, seed_ptr, stream, threshold, sequence, length,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Write one head's mask, tile by tile, as [queries, keys]."""
    head, query, key = tl.program_id(0), tl.program_id(1) * QUERIES, tl.program_id(2) * KEYS
    keep = keep_attention(
        tl.load(seed_ptr), stream, threshold, sequence, head, query, key, QUERIES, KEYS
    )
    i, j = query + tl.arange(0, QUERIES)[:, None], key + tl.arange(0, KEYS)[None, :]
    tl.store(mask_ptr + (head * length + i) * length + j, keep, mask=(i < length) & (j < length))


@pytest.mark.parametrize(("queries", "keys"), [(16, 32), (32, 64), (128, 32), (64, 128)])
def test_attentions_mask_is_the_stated_one_whatever_the_tile(queries, keys):
    dropout, heads, length = Dropout(0.3, torch.tensor(-(2**61) - 7), 41), 2, 75
    mask = torch.zeros(heads, length, length, dtype=torch.bool)
    mask_kernel[(heads, -(-length // queries), -(-length // keys))](
        mask, dropout.seed, dropout.stream, dropout.threshold, 70_000, length,
        QUERIES=queries, KEYS=keys,
    )  # fmt: skip
    assert torch.equal(mask, stated(dropout, 70_000, heads, length))
