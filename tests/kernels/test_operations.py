"""Every operation of every set against REFERENCE in float64: values, gradients, properties."""

from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels import REFERENCE, TORCH, Dropout, KernelSet, PackedSequences
from kernels.kernel_set import EmbeddingIndices, EmbeddingTables, LambSettings
from tests.tolerance import assert_near, assert_parity

SETS = [TORCH]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LENGTHS = [(5,), (1, 2, 3), (0, 4, 0, 7), (17, 16, 15), (129, 127, 128, 1), (3,) * 7, (0,), ()]
by_set = pytest.mark.parametrize("kernels", SETS, ids=lambda k: k.name)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[1])


def normal(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale


def qkv(lengths, heads=2, head_dim=16):
    return [normal(sum(lengths), heads, head_dim, seed=i) for i in range(3)]


@by_set
@by_dtype
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_attention(kernels, dtype, lengths):
    sequences = PackedSequences.from_lengths(lengths)
    assert_parity(kernels.attention, REFERENCE.attention, [*qkv(lengths), sequences], dtype, True)


@by_set
@pytest.mark.parametrize("head_dim", [16, 32, 64, 128])
def test_attention_head_dims(kernels, head_dim):
    sequences = PackedSequences.from_lengths([9, 33])
    arguments = [*qkv([9, 33], 3, head_dim), sequences]
    assert_parity(kernels.attention, REFERENCE.attention, arguments, torch.float32)


@by_set
def test_attention_of_a_long_sequence(kernels):
    sequences = PackedSequences.from_lengths([512, 100])
    arguments = [*qkv([512, 100]), sequences]
    assert_parity(kernels.attention, REFERENCE.attention, arguments, torch.float32)


@by_set
def test_attention_takes_strided_packed_qkv(kernels):
    packed = normal(12, 3, 2, 16)
    sequences = PackedSequences.from_lengths([5, 7])
    strided = kernels.attention(*packed.unbind(1), sequences)
    apart = kernels.attention(*(x.contiguous() for x in packed.unbind(1)), sequences)
    assert torch.equal(strided, apart)


@by_set
@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=6),
    data=st.data(),
)
def test_a_sequence_attends_alone_as_among_others(kernels, lengths, data):
    """Packing invariance: a sequence's output doesn't depend on what it is packed with."""
    tensors = qkv(lengths)
    together = kernels.attention(*tensors, PackedSequences.from_lengths(lengths))
    index = data.draw(st.integers(0, len(lengths) - 1))
    rows = slice(sum(lengths[:index]), sum(lengths[: index + 1]))
    alone = kernels.attention(
        *(x[rows] for x in tensors), PackedSequences.from_lengths([lengths[index]])
    )
    torch.testing.assert_close(together[rows], alone, rtol=0, atol=1e-14)


@by_set
def test_attention_is_blind_to_the_order_of_keys(kernels):
    query, key, value = qkv([11])
    order = torch.randperm(11)
    sequences = PackedSequences.from_lengths([11])
    straight = kernels.attention(query, key, value, sequences)
    shuffled = kernels.attention(query, key[order], value[order], sequences)
    torch.testing.assert_close(straight, shuffled, rtol=0, atol=1e-14)


@by_set
@by_dtype
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_attention_probabilities(kernels, dtype, lengths):
    query, key, _ = (x.to(dtype) for x in qkv(lengths))
    sequences = PackedSequences.from_lengths(lengths)
    truth = REFERENCE.attention_probabilities(query.double(), key.double(), sequences)
    baseline = REFERENCE.attention_probabilities(query, key, sequences)
    got = kernels.attention_probabilities(query, key, sequences)
    assert_near("probabilities", got, truth, baseline, dtype)
    for index, length in enumerate(lengths):
        sums = got[index].double().sum(-1)
        torch.testing.assert_close(
            sums[:, :length], torch.ones(2, length).double(), rtol=0, atol=0.02
        )
        assert (got[index][:, length:] == 0).all() and (got[index][:, :, length:] == 0).all()


def norm_arguments(tokens, hidden):
    return normal(tokens, hidden, scale=3.0), normal(hidden, seed=2), normal(hidden, seed=3)


@by_set
@by_dtype
@pytest.mark.parametrize("tokens", [0, 1, 7])
@pytest.mark.parametrize("hidden", [5, 312, 768])
def test_layer_norm(kernels, dtype, tokens, hidden):
    arguments = [*norm_arguments(tokens, hidden), 1e-12]
    assert_parity(kernels.layer_norm, REFERENCE.layer_norm, arguments, dtype, True)


@by_set
def test_layer_norm_survives_a_large_mean(kernels):
    """A one-pass variance would lose all digits here."""
    x, weight, bias = norm_arguments(4, 64)
    arguments = [x + 1_000, weight, bias, 1e-12]
    assert_parity(kernels.layer_norm, REFERENCE.layer_norm, arguments, torch.float32)


@by_set
@by_dtype
@pytest.mark.parametrize("tokens", [0, 1, 7])
@pytest.mark.parametrize("hidden", [5, 312])
def test_add_layer_norm(kernels, dtype, tokens, hidden):
    x, weight, bias = norm_arguments(tokens, hidden)
    arguments = [x, normal(hidden), normal(tokens, hidden, seed=5), weight, bias, 1e-5]
    assert_parity(kernels.add_layer_norm, REFERENCE.add_layer_norm, arguments, dtype, True)


@by_set
@by_dtype
@pytest.mark.parametrize("form", ["erf", "tanh"])
@pytest.mark.parametrize("tokens", [0, 1, 33])
def test_bias_gelu(kernels, dtype, form, tokens):
    arguments = [normal(tokens, 13, scale=3.0), normal(13), form]
    assert_parity(kernels.bias_gelu, REFERENCE.bias_gelu, arguments, dtype, True)


@by_set
@by_dtype
@pytest.mark.parametrize("padding_idx", [-1, 3])
@pytest.mark.parametrize("tokens", [0, 1, 50])
def test_embedding_layer_norm(kernels, dtype, padding_idx, tokens):
    indices = EmbeddingIndices(
        torch.randint(0, 11, (tokens,)),
        torch.randint(0, 9, (tokens,)),
        torch.randint(0, 2, (tokens,)),
    )

    def flat(operation):
        def call(word, position, token_type, weight, bias):
            tables = EmbeddingTables(word, position, token_type)
            return operation(indices, tables, weight, bias, 1e-12, padding_idx)

        return call

    arguments = [normal(11, 24), normal(9, 24), normal(2, 24), normal(24), normal(24, seed=1)]
    candidate, reference = (flat(k.embedding_layer_norm) for k in (kernels, REFERENCE))
    assert_parity(candidate, reference, arguments, dtype, True)


@by_set
@by_dtype
@pytest.mark.parametrize("masked", [0, 1, 40])
def test_linear_cross_entropy(kernels, dtype, masked):
    labels = torch.randint(0, 17, (masked,))
    labels[::4] = -100
    arguments = [normal(masked, 24), normal(17, 24), normal(17), labels]
    assert_parity(kernels.linear_cross_entropy, REFERENCE.linear_cross_entropy, arguments, dtype)


@by_set
@pytest.mark.parametrize("is_adapted", [True, False])
def test_lamb_step(kernels, is_adapted):
    """Three steps; the first tensor's norm is zero, and the second's gradient."""

    def after(operation, dtype):
        parameters = [normal(3, 4, seed=s).to(dtype) for s in range(4)] + [normal(5).to(dtype)]
        means, squares = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
        parameters[0].zero_()
        for step in (1, 2, 3):
            gradients = [normal(*p.shape, seed=step).to(dtype) for p in parameters]
            gradients[1].zero_()
            steps = [torch.tensor(float(step))] * len(parameters)
            settings = LambSettings(torch.tensor(0.1), (0.9, 0.99), 1e-6, 0.0, is_adapted)
            operation(parameters, gradients, means, squares, steps, settings)
        return [*parameters, *means, *squares]

    got = after(kernels.lamb_step, torch.float32)
    truth, baseline = (
        after(REFERENCE.lamb_step, dtype) for dtype in (torch.float64, torch.float32)
    )
    for index, (g, t, b) in enumerate(zip(got, truth, baseline, strict=True)):
        assert_near(f"tensor {index}", g, t, b, torch.float32)


def drop(p=0.3, seed=11, stream=2):
    return Dropout(p, torch.tensor(seed), stream)


ALL_SETS = pytest.mark.parametrize("kernels", [REFERENCE, *SETS], ids=lambda k: k.name)


@ALL_SETS
def test_attention_gradients_use_the_forward_mask(kernels):
    """In float64 a numeric derivative agrees only if the backward pass has the same mask."""
    sequences = PackedSequences.from_lengths([3, 0, 4])
    arguments = [x.requires_grad_() for x in qkv([3, 4], 2, 3)]
    assert torch.autograd.gradcheck(
        lambda q, k, v: kernels.attention(q, k, v, sequences, drop()), arguments
    )


@ALL_SETS
def test_attention_drops_whole_probabilities_at_the_stated_rate(kernels):
    """With an identity for values, the output is the dropped probabilities themselves."""
    length = 64
    query, key, _ = qkv([length] * 3, 2, length)
    value = torch.eye(length).double()[:, None].expand(length, 2, length).repeat(3, 1, 1)
    sequences = PackedSequences.from_lengths([length] * 3)
    plain = kernels.attention(query, key, value, sequences)
    dropped = kernels.attention(query, key, value, sequences, drop())
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], plain[kept] * drop().scale, rtol=1e-12, atol=0)
    count, p = kept.numel(), drop().threshold / 65536
    assert abs(kept.double().mean() - (1 - p)) < 4 * (p * (1 - p) / count) ** 0.5
    assert (kept[:length] != kept[length : 2 * length]).any(), "sequences share a mask"
    assert (kept[:, 0] != kept[:, 1]).any(), "heads share a mask"


@ALL_SETS
@pytest.mark.parametrize("seed", [0, -5, 2**63 - 1])
def test_attention_of_many_lengths_drops_each_by_itself(kernels, seed):
    """Lengths far apart are computed apart; none may share another's mask, or overflow a seed."""
    lengths = [40, 10, 25, 6, 15]
    query, key, _ = qkv(lengths, 1, 64)
    value = torch.cat([torch.eye(64).double()[:n] for n in lengths])[:, None]
    sequences = PackedSequences.from_lengths(lengths)
    masks = [
        kernels.attention(query, key, value, sequences, drop(seed=s, p=0.5)) != 0
        for s in (seed, seed, 77)
    ]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    first, second = (masks[0][start : start + 10, 0, :10] for start in (0, 40))
    assert not torch.equal(first, second)


@ALL_SETS
def test_add_layer_norm_drops_and_replays(kernels):
    x, bias, residual = normal(40, 64), normal(64), normal(40, 64, seed=9)
    weight, shift = torch.ones(64).double(), torch.zeros(64).double()

    def total(d):
        return kernels.add_layer_norm(x, bias, residual, weight, shift, 1e-12, d)[1]

    update = total(drop()) - residual
    kept = update != 0
    torch.testing.assert_close(
        update[kept], ((x + bias) * drop().scale)[kept], rtol=1e-9, atol=1e-12
    )
    assert abs(kept.double().mean() - 0.7) < 4 * (0.21 / 2560) ** 0.5
    assert torch.equal(total(drop()), total(drop()))
    assert not torch.equal(total(drop()), total(drop(stream=3)))
    assert not torch.equal(total(drop()), total(drop(seed=12)))
    assert torch.equal(total(drop(p=0.0)), total(None))


@ALL_SETS
def test_gradients_use_the_forward_mask(kernels):
    tables = EmbeddingTables(*(normal(n, 6).requires_grad_() for n in (5, 4, 2)))
    indices = EmbeddingIndices(*(torch.randint(0, 2, (3,)) for _ in range(3)))
    rows = [normal(3, 6, seed=i).requires_grad_() for i in range(2)]
    vectors = [normal(6, seed=i).requires_grad_() for i in range(3)]
    check = torch.autograd.gradcheck
    assert check(lambda x: kernels.dropout(x, drop()), rows[:1])
    assert check(
        lambda x, r, xb, w, b: kernels.add_layer_norm(x, xb, r, w, b, 1e-3, drop()),
        [*rows, *vectors],
    )
    assert check(
        lambda word, position, kind, w, b: kernels.embedding_layer_norm(
            indices, EmbeddingTables(word, position, kind), w, b, 1e-3, -1, drop()
        ),
        [*tables, *vectors[:2]],
    )


@ALL_SETS
def test_dropout_op_and_embedding_dropout(kernels):
    x = torch.ones(100, 30).double()
    dropped = kernels.dropout(x, drop())
    assert set(dropped.unique().tolist()) == {0.0, drop().scale}
    assert kernels.dropout(x, None) is x
    indices = EmbeddingIndices(*(torch.zeros(50, dtype=torch.int64) for _ in range(3)))
    tables = EmbeddingTables(*(normal(1, 30, seed=i) for i in range(3)))
    weight, bias = torch.ones(30).double(), torch.ones(30).double()
    arguments = (indices, tables, weight, bias, 1e-12, -1)
    plain = kernels.embedding_layer_norm(*arguments)
    dropped = kernels.embedding_layer_norm(*arguments, drop())
    kept = dropped != 0
    assert 0.6 < kept.double().mean() < 0.8
    torch.testing.assert_close(dropped[kept], (plain * drop().scale)[kept])


@pytest.mark.errors
@ALL_SETS
def test_a_wrong_number_of_tokens_is_refused(kernels):
    with pytest.raises(ValueError, match=r"^sequences: expected lengths that add up to the 6 "):
        kernels.attention(*qkv([6]), PackedSequences.from_lengths([2, 3]))


def test_every_set_has_every_operation():
    for kernels in (REFERENCE, *SETS):
        for field in fields(KernelSet):
            assert field.name == "name" or callable(getattr(kernels, field.name))
