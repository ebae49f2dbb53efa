"""The random bits of dropout as a pure function: Philox-4x32 with 7 rounds (Salmon et al. 2011).

A counter of four 32-bit words and a key (the seed) give four random words, in any order, on any
device, with no state. So a mask need not be kept for the backward pass: it is computed again. A
word gives two elements, 16 bits each; an element is kept where its bits reach the threshold.

Two layouts say which counter an element has. Both let a GPU thread use all 8 elements of one call.

- Rows (`keep_rows`), element (row, column): counter (row, column // 8, 0, stream·2¹⁶); word
  column % 8 // 2; the low half first.
- Attention (`keep_attention`), element (query i, key j) of a sequence and a head: counter
  (i // 16 · 8 + i % 8, j // 32 · 8 + j % 8, sequence, stream·2¹⁶ + head); word
  2 · (i // 8 % 2) + j // 8 % 2; half j // 16 % 2, the low one first. That is how the tensor cores'
  accumulators lie in a thread's registers.
"""

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from kernels.kernel_set import Dropout

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 7


def philox(
    seed: Int64[Tensor, ""], counter: tuple[Int64[Tensor, "..."], ...], rounds: int = ROUNDS
) -> tuple[Int64[Tensor, "..."], ...]:
    """Turn a counter of four words into four random words, each in [0, 2³²) held in an int64."""
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(rounds):
        a, b = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # 64-bit products, modulo 2⁶⁴
        c0, c1, c2, c3 = (
            ((b >> 32) & _MASK) ^ c1 ^ k0,
            b & _MASK,
            ((a >> 32) & _MASK) ^ c3 ^ k1,
            a & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def keep_rows(dropout: Dropout, rows: int, columns: int) -> Bool[Tensor, "rows columns"]:
    """Draw the mask of a matrix of activations: True where the element is kept."""
    device = dropout.seed.device
    row = torch.arange(rows, device=device)[:, None]
    group = torch.arange((columns + 7) // 8, device=device)[None, :]
    zero = torch.zeros((), dtype=torch.int64, device=device)
    words = torch.stack(philox(dropout.seed, (row, group, zero, zero + (dropout.stream << 16))), 2)
    halves = torch.stack((words & 0xFFFF, words >> 16), 3)  # row, group, word, half
    return halves.flatten(1)[:, :columns] >= dropout.threshold


def keep_attention(
    dropout: Dropout, sequence: int, heads: int, length: int
) -> Bool[Tensor, "heads length length"]:
    """Draw the mask of one sequence's attention probabilities: True where one is kept."""
    device = dropout.seed.device
    head = torch.arange(heads, device=device)[:, None, None]
    i = torch.arange(length, device=device)[None, :, None]
    j = torch.arange(length, device=device)[None, None, :]
    counter = (
        i // 16 * 8 + i % 8,
        j // 32 * 8 + j % 8,
        torch.full((), sequence, dtype=torch.int64, device=device),
        (dropout.stream << 16) + head,
    )
    words = torch.stack(philox(dropout.seed, counter))
    word = (2 * (i // 8 % 2) + j // 8 % 2).expand(heads, length, length)
    bits = words.gather(0, word[None])[0] >> (j // 16 % 2 * 16)
    return (bits & 0xFFFF) >= dropout.threshold
