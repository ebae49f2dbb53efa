import pytest
import torch

from kernels import REFERENCE, PackedSequences
from kernels.attention_probabilities import attention_probabilities, attention_probabilities_op
from tests.tolerance import assert_near

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def query_and_key(tokens, heads=2, head_dim=16):
    generator = torch.Generator().manual_seed(tokens)
    packed = torch.randn(tokens, 2, heads, head_dim, generator=generator, dtype=torch.float64)
    return packed.unbind(1)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[1])
def test_parity_in_every_dtype(dtype):
    """Of strided inputs; zeros past each sequence's end are compared too."""
    query, key = (x.to(dtype) for x in query_and_key(17 + 1 + 70, heads=1))
    sequences = PackedSequences.from_lengths((17, 0, 1, 70))
    truth = REFERENCE.attention_probabilities(query.double(), key.double(), sequences)
    baseline = REFERENCE.attention_probabilities(query, key, sequences)
    got = attention_probabilities(query, key, sequences)
    assert_near("probabilities", got, truth, baseline, dtype)
    assert torch.equal(got == 0, truth == 0)


@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_parity_at_every_head_dim_in_any_order(any_order, head_dim):
    query, key = (x.float() for x in query_and_key(40, 1, head_dim))
    sequences = PackedSequences.from_lengths((40,))
    truth = REFERENCE.attention_probabilities(query.double(), key.double(), sequences)
    baseline = REFERENCE.attention_probabilities(query, key, sequences)
    got = attention_probabilities(query, key, sequences)
    assert_near("probabilities", got, truth, baseline, torch.float32)


@pytest.mark.parametrize("lengths", [(), (0,), (0, 0)], ids=str)
def test_nothing_gives_nothing(lengths):
    query, key = query_and_key(0)
    got = attention_probabilities(query, key, PackedSequences.from_lengths(lengths))
    assert got.shape == (len(lengths), 2, 0, 0)


def test_a_gradient_is_refused():
    query, key = (x.float().requires_grad_() for x in query_and_key(3))
    got = attention_probabilities(query, key, PackedSequences.from_lengths((3,)))
    with pytest.raises(RuntimeError, match="no autograd formula"):
        got.sum().backward()


@pytest.mark.compile
def test_the_operator_keeps_pytorchs_contract():
    query, key = (x.float() for x in query_and_key(8))
    sequences = PackedSequences.from_lengths((5, 3))
    torch.library.opcheck(
        attention_probabilities_op, (query, key, sequences.cu_seqlens, 5),
        test_utils=("test_schema", "test_faketensor"),
    )  # fmt: skip

    def call(query, key):
        return attention_probabilities(query, key, sequences).sqrt()

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(query, key), call(query, key))


@pytest.mark.errors
def test_errors_name_the_argument():
    query, key = query_and_key(6)
    with pytest.raises(ValueError, match=r"^key: expected shape \(6, 2, 16\), got \(5, 2, 16\)$"):
        attention_probabilities(query, key[:5], PackedSequences.from_lengths((6,)))
    with pytest.raises(ValueError, match="^sequences: expected lengths that add up to the 6 pack"):
        attention_probabilities(query, key, PackedSequences.from_lengths((5,)))
