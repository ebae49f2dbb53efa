"""The random bits of dropout inside a kernel: `kernels.philox`, bit for bit, as Triton functions.

The 16-bit halves of the generator's words lie in registers next to the elements that they decide
on, so that a mask costs no shared memory: a thread that holds 8 neighbouring elements of a row
calls the generator once for them.
"""

import triton
import triton.language as tl


@triton.jit
def philox(seed, c0, c1, c2, c3):
    """Turn a counter of four 32-bit words into four random words (Salmon et al. 2011).

    Each product is one 32 × 32 → 64-bit multiplication, which is one instruction; asking for its
    halves apart would be two. The upper half is taken last, since LLVM would else join it with the
    lower half of the round before in 64 bits, and take the product apart.
    """
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    c0, c1 = c0.to(tl.uint32), c1.to(tl.uint32)
    c2, c3 = c2.to(tl.uint32), c3.to(tl.uint32)
    for _ in tl.static_range(7):
        a = c0.to(tl.uint64) * 0xD2511F53
        b = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = c1 ^ k0 ^ (b >> 32).to(tl.uint32)
        c1 = b.to(tl.uint32)
        c2 = c3 ^ k1 ^ (a >> 32).to(tl.uint32)
        c3 = a.to(tl.uint32)
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def keep_rows(seed_ptr, stream, threshold, rows, BLOCK: tl.constexpr):
    """Draw the mask of whole rows, columns 0 to BLOCK: `kernels.philox.keep_rows`.

    Column 8g + 4a + 2b + c has word 2a + b of counter g, and its half c, the low one first.
    `join` adds an axis at the end, so three of them spell the column's last three binary digits.
    A half is compared where it lies, in the upper 16 bits; what is below it can't matter, since
    the threshold's lower 16 bits are zero.
    """
    row, group = rows[:, None], tl.arange(0, BLOCK // 8)[None, :]
    zero = tl.zeros_like(row + group)
    seed = tl.load(seed_ptr)
    w0, w1, w2, w3 = philox(seed, row + zero, group + zero, zero, (stream << 16) + zero)
    low = tl.join(tl.join(w0 << 16, w2 << 16), tl.join(w1 << 16, w3 << 16))
    high = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    bits = tl.join(low, high).reshape(rows.shape[0], BLOCK)
    return bits >= (threshold.to(tl.uint32) << 16)


@triton.jit
def keep_attention(
    seed, stream, threshold, sequence, head, query, key,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Draw the mask of a tile of attention probabilities: `kernels.philox.keep_attention`.

    The tile is [QUERIES, KEYS] from (query, key) on; `query` is a multiple of 16 and `key` of 32.
    Tensor cores leave a tile of sums in registers so that a thread holds, of each 16 × 32 block,
    places 8 rows and 8 columns apart; the layout gives those eight to one counter: word
    2·(row // 8 % 2) + column // 8 % 2, half column // 16 % 2. So each choice is an axis of two,
    which is set between the others, and no element changes its thread: the compiler sees which of
    the two an element takes. (`tl.join` would say the same, but a product whose operand comes from
    it gets another layout: on an A100 a fifth more instructions.)
    """
    row = query // 2 + tl.arange(0, QUERIES // 2)[:, None]
    column = key // 4 + tl.arange(0, KEYS // 4)[None, :]
    zero = tl.zeros_like(row + column)
    w0, w1, w2, w3 = philox(
        seed, row + zero, column + zero, zero + sequence, zero + (stream * 65536 + head)
    )
    two = tl.arange(0, 2)
    row8, column8 = two[None, None, :, None], two[None, None, None, :]
    upper = tl.where(column8 == 0, w0[:, :, None, None], w1[:, :, None, None])
    lower = tl.where(column8 == 0, w2[:, :, None, None], w3[:, :, None, None])
    words = tl.where(row8 == 0, upper, lower)[:, :, :, :, None]
    bits = tl.where(two == 0, words << 16, words)  # the last axis: which half
    bits = bits.reshape(QUERIES // 16, 8, KEYS // 32, 8, 2, 2, 2)  # … row 8, column 8, half
    bits = bits.permute(0, 4, 1, 2, 6, 5, 3).reshape(QUERIES, KEYS)
    return bits >= (threshold.to(tl.uint32) << 16)


@triton.jit
def dropout_scale(threshold, dtype: tl.constexpr):
    """One over the exact probability of keeping: what kept elements are multiplied by."""
    return 65536.0 / (65536 - threshold).to(dtype)
