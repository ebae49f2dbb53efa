"""What the first weights know of neighbours, held against the definition in words."""

import math
from dataclasses import replace

import pytest
import torch

from bert.config import BertConfig
from bert.packing import PackedBatch
from bert.pretraining import BertForPreTraining
from kernels import REFERENCE, PackedSequences
from pretrain.local_start import start_locally

SHAPE = BertConfig(
    vocab_size=50,
    hidden_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=128,
    initializer_range=0.05,
)


def started(shape=SHAPE):
    model = BertForPreTraining(shape, REFERENCE)
    start_locally(model)
    return model


def batch(length, seed=0):
    ids = torch.randint(1, 50, (length,), generator=torch.Generator().manual_seed(seed))
    is_second = (torch.arange(length) >= length // 2).long()
    return PackedBatch(
        ids, is_second, torch.arange(length), PackedSequences.from_lengths([length])
    )


@pytest.mark.parametrize("length", [40, 128])
@torch.no_grad()
def test_each_head_looks_at_its_own_place_wherever_it_stands(length):
    model, words = started(), batch(length)
    layer = model.bert.encoder.layers[0].attention
    embedded = model.bert.embeddings(words, None)
    (heads,) = layer.probabilities(embedded, words.sequences)
    for head, shift in zip(heads, (-1, 1, -2, 2), strict=True):
        inside = torch.arange(6, length - 6)
        beside = head[inside[:, None], inside[:, None] + torch.arange(-6, 7)]
        assert beside.mean(0).argmax() - 6 == shift
        # Each token, whatever word it is, gives most of its attention to places about there.
        assert beside[:, shift + 3 : shift + 10].sum(1).min() > 0.8


@torch.no_grad()
def test_the_layer_adds_what_the_neighbours_words_are():
    model, words = started(replace(SHAPE, num_attention_heads=2)), batch(60)
    embedded = model.bert.embeddings(words, None)
    layer = model.bert.encoder.layers[0].attention
    query, key, value = layer.split_heads(embedded)
    context = REFERENCE.attention(query, key, value, words.sequences, None)
    added = layer.output(context.flatten(1))[:, :64]
    (heads,) = layer.probabilities(embedded, words.sequences)
    expected = 2.0 * (heads.sum(0) @ embedded[:, :64])
    similar = torch.nn.functional.cosine_similarity(added, expected)
    assert similar.min() > 0.9


@torch.no_grad()
def test_the_head_passes_a_vector_on():
    x = torch.nn.functional.layer_norm(torch.randn(30, 128), (128,))
    similar = torch.nn.functional.cosine_similarity(started().mlm_head.transform(x), x)
    assert similar.min() > 0.95  # GELU(x) has a square in it too


@torch.no_grad()
def test_words_leave_the_last_dimensions_to_positions_and_keep_their_size():
    torch.manual_seed(0)
    drawn = BertForPreTraining(SHAPE)
    torch.manual_seed(0)
    model = started()
    word, before = (m.bert.embeddings.word.weight for m in (model, drawn))
    assert (word[:, 96:] == 0).all()
    assert word.square().mean() == pytest.approx(before.square().mean().item(), rel=1e-4)
    factor = word[1:, :96] / before[1:, :96]
    assert factor.std() < 1e-5 * factor.mean()
    # All positions have one norm, that of a word's vector.
    norms = model.bert.embeddings.position.weight[:, 96:].norm(dim=1)
    torch.testing.assert_close(norms, torch.full((128,), 0.05 * math.sqrt(128)))


def test_the_second_layer_and_the_feed_forward_stay_as_drawn():
    torch.manual_seed(0)
    drawn = dict(BertForPreTraining(SHAPE).named_parameters())
    torch.manual_seed(0)
    model = started()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, drawn[n])}
    assert changed == {
        "bert.embeddings.word.weight",
        "bert.embeddings.position.weight",
        "bert.embeddings.token_type.weight",
        "bert.encoder.layers.0.attention.qkv.weight",
        "bert.encoder.layers.0.attention.output.weight",
        "mlm_head.dense.weight",
    }


@pytest.mark.parametrize(("hidden", "heads"), [(4, 1), (4, 2), (6, 3), (36, 3), (256, 4)])
def test_any_width_that_has_room_gets_finite_weights(hidden, heads):
    shape = replace(SHAPE, hidden_size=hidden, num_attention_heads=heads)
    assert all(p.isfinite().all() for p in started(shape).parameters())


@pytest.mark.errors
@pytest.mark.parametrize(("hidden", "heads"), [(2, 1), (8, 8)])
def test_a_model_without_room_for_waves_is_refused(hidden, heads):
    shape = replace(SHAPE, hidden_size=hidden, num_attention_heads=heads)
    with pytest.raises(ValueError, match="^model: expected 4 dimensions or more, .* for local_st"):
        started(shape)
