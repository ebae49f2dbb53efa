"""Linear CKA: against its definition by Gram matrices, and by what leaves it as it is."""

import pytest
import torch

from bert.config import BertConfig
from bert.internals.similarity import draw_similarity, layer_similarity, layer_states, linear_cka
from bert.model import Bert
from bert.packing import PackedBatch
from bert.pretraining import BertForMaskedLM

SHAPE = BertConfig(
    vocab_size=50, hidden_size=12, num_hidden_layers=3, num_attention_heads=3,
    intermediate_size=20, max_position_embeddings=20, initializer_range=0.5,
)  # fmt: skip


def rows(lengths):
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(1, 50, (n,), generator=generator).tolist() for n in lengths]


def by_gram_matrices(x, y):
    """HSIC(XXᵀ, YYᵀ) / √(HSIC(XXᵀ, XXᵀ) HSIC(YYᵀ, YYᵀ)), token by token."""
    n = len(x)
    centring = torch.eye(n, dtype=torch.float64) - 1 / n

    def hsic(a, b):
        return torch.trace(a @ centring @ b @ centring) / (n - 1) ** 2

    a, b = x @ x.T, y @ y.T
    return float(hsic(a, b) / (hsic(a, a) * hsic(b, b)).sqrt())


def draws(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def test_it_is_that_of_the_gram_matrices():
    x = draws(40, 6) + 3
    for y in (draws(40, 9), x[:, :4] + 0.5 * draws(40, 4)):
        assert linear_cka(x, y) == pytest.approx(by_gram_matrices(x, y), abs=1e-12)
        assert 0 < linear_cka(x, y) < 1


def test_a_rotation_a_factor_and_a_shift_change_nothing_and_another_map_does():
    x, y = draws(50, 6), draws(50, 4)
    rotation = torch.linalg.qr(draws(6, 6))[0]
    assert linear_cka(x @ rotation * 7 - 2, y) == pytest.approx(linear_cka(x, y), abs=1e-12)
    assert linear_cka(x, x @ rotation * 7 - 2) == pytest.approx(1, abs=1e-12)
    assert linear_cka(x, x @ draws(6, 6)) < 0.99


def test_random_states_are_as_alike_as_the_docstring_says():
    assert linear_cka(draws(4000, 20), draws(4000, 20)) == pytest.approx(20 / 4000, rel=0.3)


@pytest.mark.parametrize("model_class", [Bert, BertForMaskedLM])
def test_the_states_of_a_model_are_those_of_each_text_alone(model_class):
    model = model_class(SHAPE).double().eval()
    trunk = model if model_class is Bert else model.bert
    ids = rows([5, 1, 17, 9])
    batches = [PackedBatch.from_lists(ids[:3]), PackedBatch.from_lists(ids[3:])]
    found = layer_states(model, batches)
    alone = [trunk(torch.tensor([row]), output_hidden_states=True).hidden_states for row in ids]
    assert len(found) == 4
    for layer, states in enumerate(found):
        expected = torch.cat([states[layer][0] for states in alone]).detach()
        torch.testing.assert_close(states, expected, rtol=0, atol=1e-12)


def test_layers_within_a_model_and_between_two(tmp_path):
    batches = [PackedBatch.from_lists(rows([20] * 20))]
    first, second = (layer_states(Bert(SHAPE).eval(), batches) for _ in range(2))
    within = layer_similarity(first, first)
    torch.testing.assert_close(within, within.T)
    torch.testing.assert_close(within.diag(), torch.ones(4, dtype=torch.float64))
    assert within[0, 1] > within[0, 3]  # each layer leads away
    between = layer_similarity(first, second)
    assert between.shape == (4, 4) and between.max() < within[0, 1]
    for layer, other in ((0, 3), (2, 1)):
        expected = by_gram_matrices(first[layer], second[other])
        assert between[layer, other] == pytest.approx(expected, abs=1e-12)
    pytest.importorskip("matplotlib")
    draw_similarity(between, tmp_path / "cka.png", ("a seed", "another"))
    assert (tmp_path / "cka.png").stat().st_size > 5_000


@pytest.mark.errors
def test_what_cannot_be_compared():
    with pytest.raises(ValueError, match=r"states: expected those of the same .* got \[5, 6\]"):
        linear_cka(draws(5, 3), draws(6, 3))
    with pytest.raises(ValueError, match=r"states: .* two or more, got \[1\] rows"):
        linear_cka(draws(1, 3), draws(1, 3))
    model = Bert(SHAPE)
    with pytest.raises(ValueError, match="model: expected evaluation mode"):
        layer_states(model, [PackedBatch.from_lists(rows([5]))])
    for nothing in ([], [PackedBatch.from_lists([[]])]):
        with pytest.raises(ValueError, match="batches: expected a token or more, got none"):
            layer_states(model.eval(), nothing)
