"""Sizes past 32 bits, natively: the last of over 2³¹ elements come out as they do alone.

Offsets are computed in the kernels, so only a kernel that runs on so much memory shows whether
they are; and a grid's y and z axes end at 65,535, which batches of short sequences pass. On a GPU
these want a card of 80 GB. They were written where no GPU was and have not run on one yet: the
tests themselves are rehearsed on a CPU, at small sizes.
"""

import math
from typing import NamedTuple

import pytest
import torch

from kernels import Dropout, PackedSequences
from kernels.add_layer_norm import add_layer_norm
from kernels.attention import attention
from kernels.attention_probabilities import attention_probabilities
from kernels.bias_gelu import bias_gelu
from kernels.cross_entropy import IGNORED, LOG2E, cross_entropy_kernel, tile
from kernels.dropout import dropout
from kernels.embedding import embedding_layer_norm
from kernels.kernel_set import EmbeddingIndices, EmbeddingTables, LambSettings
from kernels.lamb import lamb_step
from kernels.layer_norm import layer_norm

LAST = 8
MEMORY = 75 * 2**30


class Sizes(NamedTuple):
    device: str
    rows: int
    """That come before the last eight: on a GPU, 2³¹ elements."""
    hidden: int
    sequences: int


def has_memory():
    return torch.cuda.is_available() and torch.cuda.mem_get_info()[1] >= MEMORY


@pytest.fixture(
    params=[
        pytest.param(Sizes("cpu", 24, 64, 5), id="rehearsal"),
        pytest.param(
            Sizes("cuda", 2**21, 1024, 70_000),
            id="native",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not has_memory(), reason="needs a GPU with 75 GiB of memory"),
            ],
        ),
    ]
)
def sizes(request):
    yield request.param
    if request.param.device == "cuda":
        torch.cuda.empty_cache()


def normal(sizes, *shape, dtype=torch.bfloat16):
    return torch.randn(shape, device=sizes.device, dtype=dtype)


def run(function, inputs):
    """Outputs, then the inputs' gradients for the outputs themselves from upstream."""
    inputs = [x.requires_grad_() for x in inputs]
    outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    gradients = torch.autograd.grad(outputs, inputs, [y.detach() for y in outputs])
    return [*(y.detach() for y in outputs), *gradients]


def assert_last_as_alone(function, inputs):
    """For a function of rows that doesn't mix them."""
    alone = run(function, [x[-LAST:].clone() for x in inputs])
    for whole, expected in zip(run(function, inputs), alone, strict=True):
        assert torch.equal(whole[-LAST:], expected)


def test_layer_norm(sizes):
    vector = normal(sizes, sizes.hidden)
    assert_last_as_alone(
        lambda x: layer_norm(x, vector, vector, 1e-12),
        [normal(sizes, sizes.rows + LAST, sizes.hidden)],
    )


def test_bias_gelu(sizes):
    bias = normal(sizes, sizes.hidden)
    x = normal(sizes, sizes.rows + LAST, sizes.hidden)
    assert_last_as_alone(lambda x: bias_gelu(x, bias), [x])


def test_add_layer_norm(sizes):
    vector = normal(sizes, sizes.hidden)
    rows = [normal(sizes, sizes.rows + LAST, sizes.hidden) for _ in range(2)]
    assert_last_as_alone(
        lambda x, residual: add_layer_norm(x, vector, residual, vector, vector, 1e-12), rows
    )


def test_dropout(sizes):
    x = torch.ones(sizes.rows + LAST, sizes.hidden, device=sizes.device, dtype=torch.bfloat16)
    mask = Dropout(0.5, torch.tensor(1, device=sizes.device), 0)
    y, dx = (rows[-LAST:] for rows in run(lambda x: dropout(x, mask), [x]))
    assert ((y == 0) | (y == 2)).all() and torch.equal(dx, 2 * y)
    assert 0.4 < (y == 2).double().mean().item() < 0.6


def test_embedding(sizes):
    """Each token takes a word of its own, so that the table passes 2³¹ elements too."""
    count = sizes.rows + LAST
    word = torch.arange(count, device=sizes.device)
    indices = EmbeddingIndices(word, word % 16, word % 2)
    position, token_type = (normal(sizes, rows, sizes.hidden) for rows in (16, 2))
    vector, table = normal(sizes, sizes.hidden), normal(sizes, count, sizes.hidden)

    def embed(words, indices):
        tables = EmbeddingTables(words, position, token_type)
        return embedding_layer_norm(indices, tables, vector, vector, 1e-12)

    last = EmbeddingIndices(word[:LAST], *(index[-LAST:] for index in indices[1:]))
    alone = run(lambda words: embed(words, last), [table[-LAST:].clone()])
    for whole, expected in zip(
        run(lambda words: embed(words, indices), [table]), alone, strict=True
    ):
        assert torch.equal(whole[-LAST:], expected)


@pytest.mark.parametrize("length", [128, pytest.param(512, marks=pytest.mark.slow)])
def test_attention(sizes, length):
    """Query, key and value are thirds of one tensor, so that the strides reach furthest."""
    count, heads = sizes.rows // length + 2, sizes.hidden // 64
    packed = normal(sizes, count * length, 3, heads, 64)
    last = packed[-length:].clone()

    def attend(lengths):
        sequences = PackedSequences.from_lengths(lengths, sizes.device)
        return lambda *qkv: attention(*qkv, sequences)

    alone = run(attend([length]), [x.detach() for x in last.unbind(1)])
    whole = run(attend([length] * count), [x.detach() for x in packed.unbind(1)])
    for a, b in zip(whole, alone, strict=True):
        assert torch.equal(a[-length:], b)


def test_more_sequences_than_a_grids_second_axis_has_places(sizes):
    query, key, value = (normal(sizes, 2 * sizes.sequences, 2, 64) for _ in range(3))
    sequences = PackedSequences.from_lengths([2] * sizes.sequences, sizes.device)
    pair = PackedSequences.from_lengths([2], sizes.device)
    last = [x[-2:].clone() for x in (query, key, value)]
    alone = run(lambda *qkv: attention(*qkv, pair), last)
    whole = run(lambda *qkv: attention(*qkv, sequences), [query, key, value])
    for a, b in zip(whole, alone, strict=True):
        assert torch.equal(a[-2:], b)
    with torch.no_grad():
        weights = attention_probabilities(query, key, sequences)
        assert torch.equal(weights[-1:], attention_probabilities(*last[:2], pair))


def test_attention_probabilities(sizes):
    length, heads = 128, sizes.hidden // 64
    count = sizes.rows * sizes.hidden // (heads * length**2) + 2
    query, key = (normal(sizes, count * length, heads, 64) for _ in range(2))
    whole = attention_probabilities(
        query, key, PackedSequences.from_lengths([length] * count, sizes.device)
    )
    alone = attention_probabilities(
        query[-length:], key[-length:], PackedSequences.from_lengths([length], sizes.device)
    )
    assert torch.equal(whole[-1:], alone)


def test_cross_entropy(sizes):
    """A chunk's logits pass 2³¹ elements only where a vocabulary is beyond all that there are."""
    padded, rows = 64 * sizes.rows * sizes.hidden // 2**14, min(sizes.sequences, 257)
    logits = normal(sizes, rows, padded)
    last = logits[-1:].clone()
    bias = normal(sizes, padded, dtype=torch.float32)
    labels = torch.full((rows,), IGNORED, device=sizes.device)
    labels[-1] = padded - 1
    found = []
    for matrix, label in ((logits, labels), (last, labels[-1:])):
        losses = torch.empty(len(matrix), device=sizes.device)
        cross_entropy_kernel[(len(matrix),)](
            matrix, bias, label, losses,
            LOG2E=LOG2E, IGNORED=IGNORED, HAS_GRADIENT=True, VOCAB=padded, PADDED=padded,
            **tile(padded),
        )  # fmt: skip
        found.append((losses[-1], matrix[-1]))
    (loss, dlogits), (expected, dexpected) = found
    assert torch.equal(loss, expected) and torch.equal(dlogits, dexpected)
    assert loss.isfinite() and dlogits[-1] < 0


def test_lamb(sizes):
    """One tensor of as many elements: alike, so that its norms are known."""
    count = sizes.rows * sizes.hidden + LAST
    x, g = (torch.full((count,), value, device=sizes.device) for value in (2.0, 0.5))
    mean, square = torch.zeros_like(x), torch.zeros_like(x)
    rate, step = torch.tensor(0.125, device=sizes.device), torch.ones((), device=sizes.device)
    settings = LambSettings(rate, (0.9, 0.999), 1e-6, 0.0, is_adapted=True)
    lamb_step([x], [g], [mean], [square], [step], settings)
    least, most = (value.item() for value in x.aminmax())
    # ‖x‖/‖u‖ · u is 2 everywhere, and 2,048 roundings are summed to each partial.
    assert math.isclose(least, 1.75, rel_tol=1e-4) and math.isclose(most, 1.75, rel_tol=1e-4)
    assert torch.equal(mean[-LAST:], mean[:LAST]) and torch.equal(square[-LAST:], square[:LAST])
    assert math.isclose(mean[-1].item(), 0.05, rel_tol=1e-5)
