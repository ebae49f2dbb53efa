import pytest
import torch

from kernels import REFERENCE
from kernels.cross_entropy import (
    IGNORED,
    LOG2E,
    add_product,
    cross_entropy_kernel,
    linear_cross_entropy,
    linear_cross_entropy_op,
)
from tests.kernels.interpreter import addresses
from tests.tolerance import assert_parity

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def normal(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale


def arguments(rows, vocab, width=12):
    labels = torch.randint(0, vocab, (rows,), generator=torch.Generator().manual_seed(rows))
    labels[3::4] = IGNORED
    return [normal(rows, width, seed=1), normal(vocab, width), normal(vocab, seed=2), labels]


def gradients(function, inputs, labels):
    inputs = [x.detach().requires_grad_() for x in inputs]
    return torch.autograd.grad(function(*inputs, labels), inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[1])
def test_parity_in_every_dtype(dtype):
    """19 rows are two chunks of the interpreter's."""
    assert_parity(
        linear_cross_entropy, REFERENCE.linear_cross_entropy, arguments(19, 37), dtype, True
    )


@pytest.mark.parametrize("vocab", [1, 2, 63, 64, 65, 8193, 30522])
def test_parity_at_every_vocabulary(vocab):
    assert_parity(
        linear_cross_entropy, REFERENCE.linear_cross_entropy, arguments(3, vocab), torch.float32
    )


@pytest.mark.parametrize("rows", [0, 1, 17])
def test_parity_in_any_order(any_order, rows):
    assert_parity(
        linear_cross_entropy, REFERENCE.linear_cross_entropy, arguments(rows, 40), torch.float32
    )


def test_logits_far_apart():
    """exp(200) is no float32; 200 below the greatest, nothing is left of a probability."""
    hidden, weight, bias, labels = arguments(4, 70)
    assert_parity(
        linear_cross_entropy, REFERENCE.linear_cross_entropy,
        [hidden, weight * 10, bias + 200, labels], torch.float32,
    )  # fmt: skip


def test_a_likely_label_keeps_its_gradient():
    """Its probability, 0.9991, is 1 in bfloat16; a rounded softmax would leave it nothing."""
    hidden = torch.tensor([[1.0]], dtype=torch.bfloat16)
    weight = torch.tensor([[7.0], [0.0]], dtype=torch.bfloat16)
    bias, labels = torch.zeros(2), torch.tensor([0])
    dhidden, _, dbias = gradients(linear_cross_entropy, [hidden, weight, bias], labels)
    missing = 1 / (1 + torch.e**7)
    torch.testing.assert_close(dhidden.item(), -7 * missing, rtol=4e-3, atol=0)
    torch.testing.assert_close(dbias.tolist(), [-missing, missing], rtol=4e-3, atol=0)


def test_the_gradient_of_the_weight_is_not_rounded_between_chunks(monkeypatch):
    """Cut into chunks or not: the same but for roundings of float32."""
    hidden, weight, bias, labels = arguments(20, 20)
    inputs = [hidden.bfloat16(), weight.float(), bias.float()]
    monkeypatch.setattr("kernels.cross_entropy.chunk_rows", lambda *_: 3)
    chunked = gradients(linear_cross_entropy, inputs, labels)
    monkeypatch.setattr("kernels.cross_entropy.chunk_rows", lambda *_: 20)
    whole = gradients(linear_cross_entropy, inputs, labels)
    assert [g.dtype for g in chunked] == [torch.bfloat16, torch.float32, torch.float32]
    for name, got, want in zip(("hidden", "weight", "bias"), chunked, whole, strict=True):
        assert (got - want).abs().max() <= 1e-6 * want.abs().max(), name


def test_ignored_rows_count_nothing():
    hidden, weight, bias, labels = (
        t.float() if t.is_floating_point() else t for t in arguments(9, 37)
    )
    counted = labels != IGNORED
    dhidden, *others = gradients(linear_cross_entropy, [hidden, weight, bias], labels)
    alone = gradients(linear_cross_entropy, [hidden[counted], weight, bias], labels[counted])
    assert (dhidden[~counted] == 0).all()
    for got, want in zip([dhidden[counted], *others], alone, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    nothing = gradients(
        linear_cross_entropy, [hidden, weight, bias], torch.full_like(labels, IGNORED)
    )
    assert all((gradient == 0).all() for gradient in nothing)


@pytest.mark.parametrize("label", [-1, 37, 2**32])
def test_a_label_outside_the_vocabulary_is_seen(label):
    hidden, weight, bias, labels = arguments(2, 37)
    labels[1] = label
    assert linear_cross_entropy(hidden, weight, bias, labels).isnan()


def test_no_gradient_is_made_where_none_is_wanted(monkeypatch):
    monkeypatch.setattr("kernels.cross_entropy.add_product", None)
    *inputs, labels = arguments(5, 37)
    inputs = [x.float() for x in inputs]
    loss, *nothing = linear_cross_entropy_op(*inputs, labels, False)
    assert [gradient.numel() for gradient in nothing] == [0, 0, 0]
    leaves = [x.clone().requires_grad_() for x in inputs]
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy(*leaves, labels), loss)
    with pytest.raises(TypeError, match="not callable"):
        linear_cross_entropy(*leaves, labels)


def test_backward_twice_and_scaled():
    *inputs, labels = arguments(5, 37)
    inputs = [x.float().requires_grad_() for x in inputs]
    loss = linear_cross_entropy(*inputs, labels)
    once = torch.autograd.grad(loss, inputs, torch.tensor(1.0), retain_graph=True)
    scaled = torch.autograd.grad(loss, inputs, torch.tensor(-0.25))
    assert all(torch.equal(-0.25 * a, b) for a, b in zip(once, scaled, strict=True))


def test_autocast_leaves_it_alone():
    """In training hidden is in bfloat16 by autocast, and the weight is a float32 parameter."""
    *inputs, labels = arguments(5, 37)
    inputs = [inputs[0].bfloat16(), inputs[1].float(), inputs[2].float()]
    plain = gradients(linear_cross_entropy, inputs, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = gradients(linear_cross_entropy, inputs, labels)
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))


def test_strided_input():
    hidden, weight, bias, labels = arguments(6, 37)
    want = linear_cross_entropy(hidden, weight, bias, labels)
    strided = (torch.stack((x, x), -1)[..., 0] for x in (hidden, weight, bias, labels))
    assert torch.equal(linear_cross_entropy(*strided), want)


def test_gradients_in_float64():
    *inputs, labels = arguments(3, 5, 4)
    inputs = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(
        lambda *a: linear_cross_entropy(*a, labels), inputs, fast_mode=True
    )


@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value):RuntimeWarning")
def test_offsets_pass_32_bits():
    """Row 40,000 of 65,536 words begins past element 2³¹."""
    row, vocab = 40_000, 65536
    logits, bias = torch.empty(1, dtype=torch.bfloat16), torch.empty(vocab)
    labels, losses = torch.empty(1, dtype=torch.int64), torch.empty(1)
    with addresses(program=row) as seen:
        cross_entropy_kernel[(1,)](
            logits, bias, labels, losses, LOG2E=LOG2E, IGNORED=IGNORED, HAS_GRADIENT=True,
            VOCAB=vocab, PADDED=vocab, BLOCK=vocab,
        )  # fmt: skip
    reach = [
        logits.data_ptr() + 2 * row * vocab,
        logits.data_ptr() + 2 * (row * vocab + vocab - 1),
    ]
    assert seen["load"][:2] == [labels.data_ptr() + 8 * row] * 2
    assert seen["load"][6:8] == reach and seen["store"][-2:] == reach


@pytest.mark.gpu
def test_a_product_is_added_without_rounding():
    a, b = (normal(40, 24).bfloat16().cuda() for _ in range(2))
    total = torch.full((24, 24), 1e3, device="cuda")
    add_product(total, a.T, b)
    torch.testing.assert_close(total.cpu(), 1e3 + a.T.float().cpu() @ b.float().cpu())


def test_the_operator_keeps_pytorchs_contract():
    hidden, weight, bias, labels = (
        t.float() if t.is_floating_point() else t for t in arguments(2, 24)
    )
    for rows, has_gradient in ((2, True), (2, False), (0, True)):
        torch.library.opcheck(
            linear_cross_entropy_op, (hidden[:rows], weight, bias, labels[:rows], has_gradient)
        )


@pytest.mark.compile
def test_compiles_as_one_graph():
    *inputs, labels = arguments(6, 24)
    inputs = [x.float() for x in inputs]

    def call(hidden, weight, bias, labels):
        return linear_cross_entropy(hidden * 2, weight, bias, labels) / 3

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    got, want = (gradients(function, inputs, labels) for function in (compiled, call))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.errors
@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, torch.ones(8), r"^hidden: expected two axes \(masked, hidden\), got shape \(8,\)$"),
        (0, torch.ones(2, 8).int(), "^hidden: expected float16, bfloat16, float32 or float64, g"),
        (1, torch.ones(5, 7), r"^weight: expected shape \(5, 8\), got \(5, 7\)$"),
        (1, torch.ones(8), r"^weight: expected shape \(8, 8\), got \(8,\)$"),
        (2, torch.ones(6), r"^bias: expected shape \(5,\), got \(6,\)$"),
        (3, torch.ones(2), r"^labels: expected 2 of int64 on cpu, got \(2,\) torch.float32 on "),
        (3, torch.ones(3).long(), r"^labels: expected 2 of int64 on cpu, got \(3,\) torch.int64"),
    ],
)
def test_errors_name_the_argument(index, value, message):
    given = [torch.ones(2, 8), torch.ones(5, 8), torch.ones(5), torch.ones(2).long()]
    given[index] = value
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(*given)
