import pytest
import torch

from kernels import REFERENCE, Dropout
from kernels.embedding import (
    embedding_backward_kernel,
    embedding_backward_op,
    embedding_forward_kernel,
    embedding_layer_norm,
    embedding_op,
)
from kernels.kernel_set import EmbeddingIndices, EmbeddingTables
from kernels.philox import keep_rows
from tests.kernels.interpreter import addresses, programs_in
from tests.tolerance import assert_parity

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
ROWS = (11, 9, 2)


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def drop(p=0.3, seed=-(2**61) - 7, stream=5):
    return Dropout(p, torch.tensor(seed), stream)


def tensors(hidden):
    """The three tables, weight and bias."""
    return [normal(n, hidden) for n in ROWS] + [normal(hidden, seed=i) for i in range(2)]


def draw(tokens):
    return EmbeddingIndices(*(torch.randint(0, n, (tokens,)) for n in ROWS))


def flat(operation, indices, padding_idx=-1, dropout=None, eps=1e-12):
    """The operation as a function of its floating tensors alone."""

    def call(word, position, token_type, weight, bias):
        tables = EmbeddingTables(word, position, token_type)
        return operation(indices, tables, weight, bias, eps, padding_idx, dropout)

    return call


def both(*rest):
    return (
        flat(embedding_layer_norm, *rest),
        flat(REFERENCE.embedding_layer_norm, *rest),
    )


@pytest.mark.parametrize("dropout", [None, drop()], ids=["plain", "dropout"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[1])
def test_parity_in_every_dtype(dtype, dropout):
    assert_parity(*both(draw(19), 3, dropout), tensors(24), dtype, True)


@pytest.mark.parametrize("hidden", [2, 312, 1024])
def test_parity_at_every_width(hidden):
    assert_parity(*both(draw(3), -1, drop()), tensors(hidden), torch.bfloat16)


@pytest.mark.parametrize("tokens", [0, 1, 12])
def test_parity_in_any_order(any_order, tokens):
    assert_parity(*both(draw(tokens), -1, drop()), tensors(40), torch.float32, True)


def test_padding_gets_no_gradient_and_its_value_counts():
    inputs = [t.requires_grad_() for t in tensors(8)]
    indices = EmbeddingIndices(
        torch.tensor([0, 4, 0]), torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1])
    )
    y = flat(embedding_layer_norm, indices, 0)(*inputs)
    torch.testing.assert_close(y, flat(REFERENCE.embedding_layer_norm, indices)(*inputs))
    word, position, *_ = torch.autograd.grad(y.sin().sum(), inputs)
    assert not word[0].any() and word[4].any() and position[:3].any(1).all()


def test_the_mask_is_the_stated_one():
    for hidden, stream, p in ((20, 0, 0.1), (64, 41, 0.99)):
        dropout = drop(p=p, stream=stream)
        tables = EmbeddingTables(*(torch.ones(n, hidden) for n in ROWS))
        zero, one = torch.zeros(hidden), torch.ones(hidden)
        y = embedding_layer_norm(draw(9), tables, zero, one, 1.0, dropout=dropout)
        assert torch.equal(y != 0, keep_rows(dropout, 9, hidden))
        assert set(y.unique().tolist()) <= {0.0, torch.tensor(dropout.scale).float().item()}


def test_gradients_in_float64():
    """A numeric derivative agrees only if the backward pass has the forward pass's mask."""
    inputs = [t.requires_grad_() for t in tensors(4)]
    call = flat(embedding_layer_norm, draw(4), -1, drop(), 1e-3)
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)


def test_order_of_programs_changes_no_bit():
    results, indices = [], draw(12)
    for order in ("forward", "backward", "shuffled"):
        with programs_in(order):
            inputs = [t.float().requires_grad_() for t in tensors(24)]
            y = flat(embedding_layer_norm, indices, -1, drop())(*inputs)
            results.append(torch.autograd.grad(y.cos().sum(), inputs))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_tables_may_differ_in_dtype_be_strided_or_frozen():
    word, position, token_type, weight, bias = (t.float() for t in tensors(8))
    position = position.double().requires_grad_()
    strided = torch.stack((word, word), 2)[..., 0].requires_grad_()
    indices, inputs = draw(6), (strided, position, token_type, weight, bias)
    got = flat(embedding_layer_norm, indices)(*inputs)
    want = flat(REFERENCE.embedding_layer_norm, indices)(*inputs)
    torch.testing.assert_close(got, want.float())
    grads = [torch.autograd.grad(y.sin().sum(), inputs[:2]) for y in (got, want)]
    for g, w, x in zip(*grads, inputs[:2], strict=True):
        torch.testing.assert_close(g, w, check_dtype=False, rtol=1e-5, atol=1e-5)
        assert g.dtype == x.dtype


def test_offsets_pass_32_bits():
    """The last of 2²⁴ + 1 rows of 256 begins at element 2³², where 32 bits have wrapped to 0."""
    rows, hidden = 2**24 + 1, 256
    one, vector, partials = torch.empty(1), torch.empty(hidden), torch.empty(1)
    index, statistic = torch.empty(1, dtype=torch.int64), torch.empty(1)
    sizes = {"HAS_DROPOUT": False, "HIDDEN": hidden, "BLOCK_ROWS": 1, "BLOCK_HIDDEN": hidden}
    reach = [one.data_ptr() + 4 * (rows - 1) * hidden, one.data_ptr() + 4 * (rows * hidden - 1)]
    with addresses(program=rows - 1) as seen:
        embedding_forward_kernel[(1,)](
            vector, vector, vector, index, vector, vector, one, statistic, statistic, None, 0, 0,
            rows, EPS=1e-12, **sizes,
        )  # fmt: skip
    assert seen["store"][:2] == reach
    with addresses(program=rows - 1) as seen:
        embedding_backward_kernel[(1,)](
            one, vector, vector, vector, index, vector, statistic, statistic, one, partials, None,
            0, 0, rows, 1, **sizes,
        )  # fmt: skip
    assert seen["load"][2:4] == reach and seen["store"][:2] == reach
    assert seen["store"][2] == partials.data_ptr() + 4 * 2 * (rows - 1) * hidden
    assert seen["store"][-1] == partials.data_ptr() + 4 * (2 * rows * hidden - 1)


def test_operators_keep_pytorchs_contract():
    *tables, weight, bias = (t.float() for t in tensors(24))
    for tokens, seed in ((6, torch.tensor(3)), (0, None)):
        indices = torch.stack(draw(tokens))
        arguments = (*tables, indices, weight, bias, 1e-12, seed, 1, 6554)
        torch.library.opcheck(embedding_op, arguments)
        y, mean, rstd = embedding_op(*arguments)
        arguments = (y, *tables, indices, weight, mean, rstd, seed, 1, 6554)
        torch.library.opcheck(embedding_backward_op, arguments)


@pytest.mark.compile
def test_compiles_as_one_graph():
    def call(seed, *inputs):
        return flat(embedding_layer_norm, indices, 3, Dropout(0.2, seed, 3))(*inputs).sin()

    indices = draw(6)
    inputs = [t.float().requires_grad_() for t in tensors(24)]
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    got, want = (
        torch.autograd.grad(function(torch.tensor(5), *inputs).sum(), inputs)
        for function in (compiled, call)
    )
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.errors
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"word": torch.ones(8)}, r"^tables.word: expected two axes \(vocab, hidden\), got shape"),
        ({"position": torch.ones(9, 7)}, r"^tables.position: expected shape \(9, 8\), got \(9, 7"),
        ({"token_type": torch.ones(2, 8).int()}, "^tables.token_type: expected float16, bfloat16"),
        ({"kinds": torch.zeros(3).long()}, r"^indices.token_type: expected \(2,\) torch.int64 on"),
        ({"kinds": torch.zeros(2).int()}, r"^indices.token_type: .*, got \(2,\) torch.int32 on c"),
        ({"bias": torch.ones(1, 8)}, r"^bias: expected shape \(8,\), got \(1, 8\)$"),
        ({"dropout": Dropout(0.1, torch.ones(2), 0)}, "^dropout: expected one int64 on cpu, got "),
    ],
)
def test_errors_name_the_argument(change, message):
    word, position, token_type, weight, bias = (t.float() for t in tensors(8))
    given = {"word": word, "position": position, "token_type": token_type} | {
        "kinds": torch.zeros(2).long(), "weight": weight, "bias": bias, "dropout": None
    } | change  # fmt: skip
    tables = EmbeddingTables(*(given[name] for name in EmbeddingTables._fields))
    indices = EmbeddingIndices(*(torch.zeros(2).long() for _ in range(2)), given["kinds"])
    with pytest.raises(ValueError, match=message):
        embedding_layer_norm(
            indices, tables, given["weight"], given["bias"], 1.0, dropout=given["dropout"]
        )
