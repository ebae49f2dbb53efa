import numpy as np
import pytest
import torch
from scipy import stats

from kernels import Dropout
from kernels.philox import keep_attention, keep_rows, philox


def twin(key, counter, rounds):
    """Philox-4x32 in plain Python integers, one counter at a time."""
    c, k = list(counter), list(key)
    for _ in range(rounds):
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(b >> 32) ^ c[1] ^ k[0], b % 2**32, (a >> 32) ^ c[3] ^ k[1], a % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def words(seed, counter, rounds):
    tensors = tuple(torch.tensor(c, dtype=torch.int64) for c in counter)
    return [int(w) for w in philox(torch.tensor(seed, dtype=torch.int64), tensors, rounds)]


# The known answers that Salmon et al. published with Random123.
@pytest.mark.parametrize(
    ("rounds", "counter", "key", "answer"),
    [
        (7, [0] * 4, [0, 0], [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]),
        (10, [0] * 4, [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (10, [2**32 - 1] * 4, [2**32 - 1] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    ],
)
def test_published_answers(rounds, counter, key, answer):
    assert twin(key, counter, rounds) == answer
    seed = key[0] + (key[1] << 32)
    assert words(seed - 2**64 if seed >= 2**63 else seed, counter, rounds) == answer


def dropout(p=0.1, seed=-(2**62) - 12345, stream=3):
    return Dropout(p, torch.tensor(seed, dtype=torch.int64), stream)


def key_of(seed):
    return [seed % 2**32, (seed >> 32) % 2**32]


def test_rows_follow_the_stated_layout():
    drop = dropout()
    mask = keep_rows(drop, 5, 21)
    for row in range(5):
        for column in range(21):
            word = twin(key_of(int(drop.seed)), [row, column // 8, 0, 3 << 16], 7)[column % 8 // 2]
            half = word >> 16 * (column % 2) & 0xFFFF
            assert bool(mask[row, column]) == (half >= drop.threshold)


def test_attention_follows_the_stated_layout():
    drop = dropout()
    mask = keep_attention(drop, 2, 2, 37)
    for head in range(2):
        for i in range(37):
            for j in range(37):
                counter = [i // 16 * 8 + i % 8, j // 32 * 8 + j % 8, 2, (3 << 16) + head]
                word = twin(key_of(int(drop.seed)), counter, 7)[2 * (i // 8 % 2) + j // 8 % 2]
                half = word >> 16 * (j // 16 % 2) & 0xFFFF
                assert bool(mask[head, i, j]) == (half >= drop.threshold)


def test_rate_is_the_rounded_probability():
    drop = dropout(p=0.1)
    kept = int(keep_rows(drop, 1000, 1000).sum())
    assert stats.binomtest(kept, 10**6, 1 - drop.threshold / 65536).pvalue > 1e-3
    assert drop.scale == 65536 / (65536 - 6554)


def test_masks_are_independent_across_streams_seeds_heads_and_sequences():
    base = keep_attention(dropout(p=0.5), 0, 2, 128)
    others = {
        "head": (base[0], base[1]),
        "stream": (base[0], keep_attention(dropout(p=0.5, stream=4), 0, 1, 128)[0]),
        "seed": (base[0], keep_attention(dropout(p=0.5, seed=1), 0, 1, 128)[0]),
        "sequence": (base[0], keep_attention(dropout(p=0.5), 1, 1, 128)[0]),
        "row": (base[0][:64], base[0][64:]),
        "rows' mask": (base[0], keep_rows(dropout(p=0.5), 128, 128)),
    }
    for name, (a, b) in others.items():
        agree = int((a == b).sum())
        assert stats.binomtest(agree, a.numel(), 0.5).pvalue > 1e-4, name


def test_a_shorter_sequence_has_the_longer_ones_corner():
    long, short = (keep_attention(dropout(), 5, 3, n) for n in (64, 23))
    assert np.array_equal(long[:, :23, :23], short)
