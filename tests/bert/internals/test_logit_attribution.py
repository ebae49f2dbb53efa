"""Direct logit attribution: it adds up, and each share is what a frozen forward pass gives it."""

import math

import pytest
import torch
from torch.testing import assert_close

from bert.internals.capture import edit, forward, run_captured, without_heads
from bert.internals.logit_attribution import attribute_logit
from kernels import REFERENCE, TORCH
from tests.bert.internals.tiny import batch_of, both, model_of

ROW, TOKEN, AGAINST = 13, 42, 7


@pytest.mark.parametrize("kernels", [TORCH, REFERENCE], ids=str)
@pytest.mark.parametrize("against", [None, AGAINST])
def test_the_shares_add_up_to_the_logit_within_rounding(kernels, against):
    model, batch = model_of(kernels), batch_of()
    with torch.no_grad():
        logits = forward(model, batch)[ROW]
    expected = logits[TOKEN] - (0 if against is None else logits[against])
    found = attribute_logit(model, batch, ROW, TOKEN, against)
    assert found.logit == expected.item() and abs(found.logit) > 0.1
    largest = max(abs(share) for _, share in found.ranked())
    assert abs(found.remainder) <= 64 * torch.finfo(torch.float64).eps * max(largest, 1)
    assert math.fsum(share for _, share in found.ranked()) == pytest.approx(found.total)
    assert len(found.ranked()) == len(dict(found.ranked())) == 3 + 1 + 3 * (4 + 4) + 1
    sizes = [abs(share) for _, share in found.ranked()]
    assert sizes == sorted(sizes, reverse=True)


def test_hugging_faces_logit_is_taken_apart():
    ours, theirs = both()
    batch = batch_of([9])
    with torch.no_grad():
        output = theirs(batch.input_ids[None], token_type_ids=batch.token_type_ids[None])
    found = attribute_logit(ours, batch, 4, TOKEN)
    assert found.total == pytest.approx(output.prediction_logits[0, 4, TOKEN].item(), abs=1e-9)


def test_in_float32_the_remainder_is_its_rounding():
    found = attribute_logit(model_of(dtype=torch.float32), batch_of(), ROW, TOKEN)
    assert 0 < abs(found.remainder) < 1e-4


def frozen_logit(model, cache, written):
    """Run one token up through the model with this run's statistics, given what each part writes.

    The other direction than the code's: forward, with plain formulas.
    """

    def norm(x, module, seen):
        divisor = (seen.var(correction=0) + module.eps).sqrt()
        bias = written.get(module, module.bias)
        return (x - x.mean()) / divisor * module.weight + bias

    def at(name):
        return cache[name][ROW]

    trunk, head = model.bert, model.mlm_head
    x = sum(written.get(("embeddings", n), at(f"embeddings.{n}"))
            for n in ("word", "position", "token_type"))  # fmt: skip
    x = norm(x, trunk.embeddings.norm, at("embeddings.residual"))
    for index, layer in enumerate(trunk.encoder.layers):
        name = f"layers.{index}"
        context = at(f"{name}.attention.context").clone()
        for number in range(4):
            if ("head", index, number) in written:
                context[number] = 0
        added = layer.attention.output.weight @ context.flatten()
        added = added + written.get(("attention bias", index), layer.attention.output_bias)
        x = norm(x + added, layer.attention.norm, at(f"{name}.attention.residual"))
        added = written.get(("feed-forward", index), at(f"{name}.feed_forward.output"))
        x = norm(x + added, layer.feed_forward.norm, at(f"{name}.feed_forward.residual"))
    before, after = at("mlm_head.pre_activation"), at("mlm_head.post_activation")
    x = (head.dense.weight @ x + written.get("dense bias", head.dense_bias)) * after / before
    x = norm(x, head.norm, after)
    bias = written.get("output bias", head.bias)[TOKEN]
    return (trunk.embeddings.word.weight[TOKEN] @ x + bias).item()


def test_each_share_is_what_the_frozen_model_loses_without_the_part():
    model, batch = model_of(), batch_of()
    cache = run_captured(model, batch)
    found = attribute_logit(model, batch, ROW, TOKEN)
    zeros, vocabulary = torch.zeros(32, dtype=torch.float64), torch.zeros(61, dtype=torch.float64)

    def share(*parts):
        nothing = {p: vocabulary if p == "output bias" else zeros for p in parts}
        with torch.no_grad():
            return frozen_logit(model, cache, {}) - frozen_logit(model, cache, nothing)

    def close(value, expected):
        assert float(value) == pytest.approx(expected, abs=1e-11)

    with torch.no_grad():
        close(found.logit, frozen_logit(model, cache, {}))
    trunk = model.bert
    for name, value in found.embeddings.items():
        close(value, share(("embeddings", name)))
    close(found.norm_bias[0], share(trunk.embeddings.norm))
    for index, layer in enumerate(trunk.encoder.layers):
        for head in range(4):
            close(found.heads[index, head], share(("head", index, head)))
        close(found.attention_bias[index], share(("attention bias", index)))
        close(found.feed_forward[index], share(("feed-forward", index)))
        close(found.norm_bias[1 + 2 * index], share(layer.attention.norm))
        close(found.norm_bias[2 + 2 * index], share(layer.feed_forward.norm))
    close(found.head_bias, share("dense bias", "output bias", model.mlm_head.norm))
    named = dict(found.ranked())
    assert named["layers.1.head.2"] == found.heads[1, 2].item()
    assert named["layers.2.attention.norm.bias"] == found.norm_bias[5].item()
    assert named["embeddings.norm.bias"] == found.norm_bias[0].item()


def test_a_part_that_writes_nothing_has_no_share():
    model, batch = model_of(), batch_of()
    off = {
        "layers.1.attention.context": without_heads([0, 3]),
        "layers.2.feed_forward.output": torch.zeros_like,
    }
    with edit(model, off):
        found = attribute_logit(model, batch, ROW, TOKEN)
    zeros = (found.heads == 0).nonzero().tolist()
    assert zeros == [[1, 0], [1, 3]] and (found.feed_forward == 0).nonzero().tolist() == [[2]]
    assert abs(found.remainder) < 1e-12


def test_a_head_of_its_own_matrix_and_a_difference_of_two():
    import dataclasses

    from bert import BertForMaskedLM
    from tests.bert.internals.tiny import CONFIG

    torch.manual_seed(2)
    untied = dataclasses.replace(CONFIG, tie_word_embeddings=False)
    model, batch = BertForMaskedLM(untied).double().eval(), batch_of()
    with torch.no_grad():
        model.mlm_head.bias.normal_()
    one, other, both_of_them = (
        attribute_logit(model, batch, ROW, *tokens)
        for tokens in ((TOKEN,), (AGAINST,), (TOKEN, AGAINST))
    )
    assert_close(both_of_them.heads, one.heads - other.heads)
    assert abs(one.remainder) < 1e-12 and abs(both_of_them.remainder) < 1e-12
    assert (attribute_logit(model, batch, ROW, TOKEN, TOKEN).heads == 0).all()


@pytest.mark.errors
def test_mistakes():
    model, batch = model_of(), batch_of()
    for arguments, error in (
        ((24, 0), "^row: expected 0 to 23, got 24$"),
        ((0, -1), "^token: expected 0 to 60, got -1$"),
        ((0, 0, 61), "^against: expected 0 to 60, got 61$"),
    ):
        with pytest.raises(ValueError, match=error):
            attribute_logit(model, batch, *arguments)
