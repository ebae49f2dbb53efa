"""Attributions: against slow sums of their own, and where a planted rule says the truth."""

import sys

import numpy as np
import pytest
import torch

from bert.config import BertConfig
from bert.finetuning import BertForSequenceClassification, BertForTokenClassification
from bert.internals.attribution import (
    ClassLogit,
    WordLogit,
    blank,
    gradient_times_input,
    integrated_gradients,
)
from bert.packing import PackedBatch
from bert.pretraining import BertForMaskedLM
from bert.tokenization import Tokenizer
from kernels import REFERENCE, TORCH

SHAPE = BertConfig(
    vocab_size=40, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=12, max_position_embeddings=12, initializer_range=0.4,
    id2label={0: "a", 1: "b", 2: "c"},
)  # fmt: skip
# Distinct, so that a row of the table is the vector of one token.
CLS, SEP, MASK = 2, 3, 4
TEXT, BASELINE = [CLS, 21, 22, 23, SEP], [CLS, 30, 31, 32, SEP]
TYPES = [0, 0, 1, 1, 1]


def packed(ids):
    return PackedBatch.from_lists([ids], [TYPES[: len(ids)]])


def drawn(model_class, kernels=TORCH):
    torch.manual_seed(5)
    return model_class(SHAPE, kernels).double().eval()


def class_logit(model, ids):
    """Class 1 of the text, through the padded door."""
    return model(torch.tensor([ids]), token_type_ids=torch.tensor([TYPES]))[0, 1]


def token_logit(model, ids):
    """Class 2 of the fourth token."""
    return model(torch.tensor([ids]), token_type_ids=torch.tensor([TYPES]))[0, 3, 2]


CASES = {
    "text": (BertForSequenceClassification, ClassLogit(1), class_logit),
    "token": (BertForTokenClassification, ClassLogit(2, position=3), token_logit),
}


def gradients(model, read, ids):
    """A logit's gradient for each token's row of the word table, by the table's own gradient."""
    word = model.bert.embeddings.word.weight
    (gradient,) = torch.autograd.grad(read(model, ids), word)
    return gradient[ids]


@pytest.mark.parametrize("kernels", [TORCH, REFERENCE], ids=lambda k: k.name)
@pytest.mark.parametrize("case", CASES)
def test_gradient_times_input_is_the_tables_gradient(case, kernels):
    model_class, target, read = CASES[case]
    model = drawn(model_class, kernels)
    found = gradient_times_input(model, packed(TEXT), target)
    word = model.bert.embeddings.word.weight
    expected = (gradients(model, read, TEXT) * word[TEXT]).sum(-1)
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-12)
    assert word.grad is None
    away = gradient_times_input(model, packed(TEXT), target, packed(BASELINE))
    expected = (gradients(model, read, TEXT) * (word[TEXT] - word[BASELINE])).sum(-1)
    torch.testing.assert_close(away, expected.detach(), rtol=0, atol=1e-12)


def test_the_gradient_is_across_the_whole_embedding_as_the_docstring_says():
    """So the word's share is that of position and segment with the other sign."""
    model = drawn(BertForSequenceClassification)
    tables = model.bert.embeddings
    gradient = gradients(model, class_logit, TEXT)
    word = tables.word.weight[TEXT]
    others = tables.position.weight[:5] + tables.token_type.weight[TYPES]
    assert (gradient * word).sum(-1).abs().min() > 1e-3
    whole = (gradient * (word + others)).sum(-1)
    assert whole.abs().max() < 1e-9  # all but for the LayerNorm's eps


@pytest.mark.parametrize("kernels", [TORCH, REFERENCE], ids=lambda k: k.name)
@pytest.mark.parametrize("case", CASES)
def test_integrated_gradients_are_a_slow_sum_of_the_tables_gradients(case, kernels):
    """60 points of the path, one after another, in a model whose table is moved along it."""
    pytest.importorskip("captum")
    model_class, target, read = CASES[case]
    model = drawn(model_class, kernels)
    found = integrated_gradients(model, packed(TEXT), packed(BASELINE), target, steps=60)
    word = model.bert.embeddings.word.weight
    text, baseline = word[TEXT].detach(), word[BASELINE].detach()
    total = torch.zeros_like(text)
    for node, weight in zip(*np.polynomial.legendre.leggauss(60), strict=True):
        with torch.no_grad():
            word[TEXT] = baseline + (node + 1) / 2 * (text - baseline)
        total += weight / 2 * gradients(model, read, TEXT)
    with torch.no_grad():
        word[TEXT] = text
    expected = (total * (text - baseline)).sum(-1)
    torch.testing.assert_close(found.scores, expected, rtol=0, atol=1e-7)
    with torch.no_grad():
        ends = [float(read(model, ids)) for ids in (TEXT, BASELINE)]
    assert [found.logit, found.baseline_logit] == pytest.approx(ends, abs=1e-12)
    assert found.delta == pytest.approx(
        float(found.scores.sum()) - found.logit + found.baseline_logit, abs=1e-12
    )
    assert abs(found.delta) < 1e-6 < abs(found.logit - found.baseline_logit)
    assert found.scores[0] == found.scores[-1] == 0  # [CLS] and [SEP] are the baseline's too


def test_few_steps_miss_and_the_delta_says_by_how_much():
    pytest.importorskip("captum")
    model = drawn(BertForSequenceClassification)
    coarse, fine = (
        integrated_gradients(model, packed(TEXT), packed(BASELINE), ClassLogit(1), steps)
        for steps in (2, 60)
    )
    assert abs(coarse.delta) > 1e3 * abs(fine.delta)
    assert coarse.delta == pytest.approx(float(coarse.scores.sum() - fine.scores.sum()), abs=1e-6)


# --- a planted rule ---------------------------------------------------------------------------

DECIDER, FILLERS = 20, (21, 22, 23)


def plant(model):
    """Let the first dimension alone be read, which only DECIDER's vector uses.

    Every vector has the mean 0, so that a LayerNorm leaves the first dimension of the others at 0,
    wherever on the way to another of them. Attention looks at all tokens alike and hands over the
    first dimension; nothing else is added to a token.
    """
    trunk = model.bert
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.zero_()
        for part in model.modules():
            if isinstance(part, torch.nn.LayerNorm):
                part.weight.fill_(1)
        word = trunk.embeddings.word.weight
        word[:, 2:5].normal_()
        word[:, 5:8] = -word[:, 2:5]
        word[DECIDER, 0], word[DECIDER, 1] = 3, -3
        attention = trunk.encoder.layers[0].attention
        attention.qkv.weight[2 * SHAPE.hidden_size, 0] = 1
        attention.output.weight[0, 0] = 4
    return model


def planted_classifier():
    model = plant(drawn(BertForSequenceClassification))
    with torch.no_grad():
        model.bert.pooler.dense.weight[0, 0] = 1
        model.classifier.weight.zero_()
        model.classifier.weight[1, 0] = 5
    return model, ClassLogit(1), CLS


def planted_word_model():
    """It says DECIDER at a [MASK] where DECIDER stands anywhere else."""
    model = plant(drawn(BertForMaskedLM))
    with torch.no_grad():
        model.mlm_head.dense.weight.zero_()
        model.mlm_head.dense.weight[0, 0] = 2
        model.mlm_head.dense_bias[2] = 2  # else its LayerNorm makes a step of the way from 0
    return model, WordLogit(0, DECIDER), MASK


PLANTED = {"class": planted_classifier, "word": planted_word_model}


@pytest.mark.parametrize("place", [1, 3])
@pytest.mark.parametrize("planted", PLANTED)
def test_the_deciding_word_of_a_planted_rule_gets_all(planted, place):
    pytest.importorskip("captum")
    model, target, first = PLANTED[planted]()
    text = [first, *FILLERS, SEP]
    text[place] = DECIDER
    baseline = [first, MASK, MASK, MASK, SEP]
    found = integrated_gradients(model, packed(text), packed(baseline), target, steps=100)
    truth = torch.zeros(5, dtype=torch.float64)
    truth[place] = found.logit - found.baseline_logit
    assert truth[place] > 1
    torch.testing.assert_close(found.scores, truth, rtol=0, atol=1e-6)

    slopes = gradient_times_input(model, packed(text), target, packed(baseline))
    assert abs(slopes[place]) > 0.01  # of a curve that has bent, it may be a slope downwards
    others = [at for at in range(5) if at != place]
    assert slopes[others].abs().max() < 1e-12
    # Nothing but word vectors is added here, and their lengths are not seen.
    assert gradient_times_input(model, packed(text), target).abs().max() < 1e-9


def test_without_the_deciding_word_nothing_gets_anything():
    pytest.importorskip("captum")
    model, target, first = planted_classifier()
    text, baseline = [first, *FILLERS, SEP], [first, MASK, MASK, MASK, SEP]
    found = integrated_gradients(model, packed(text), packed(baseline), target)
    assert found.scores.abs().max() < 1e-12 and abs(found.delta) < 1e-12


def test_a_long_path_is_walked_in_parts(monkeypatch):
    pytest.importorskip("captum")
    model = drawn(BertForMaskedLM)
    arguments = model, packed(TEXT), packed(BASELINE), WordLogit(1, 7), 7
    whole = integrated_gradients(*arguments)
    monkeypatch.setattr("bert.internals.attribution.TOKENS", 10)
    parts = integrated_gradients(*arguments)
    torch.testing.assert_close(parts.scores, whole.scores, rtol=0, atol=1e-12)


def test_blank_masks_all_but_the_special_tokens():
    tokenizer = Tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"])
    assert blank(tokenizer, [2, 5, 1, 6, 4, 3]) == [2, 4, 4, 4, 4, 3]


# --- what can't be ----------------------------------------------------------------------------


@pytest.mark.errors
@pytest.mark.parametrize(
    ("model_class", "target", "message"),
    [
        (BertForMaskedLM, ClassLogit(1), "target: expected a WordLogit of BertForMaskedLM"),
        (BertForSequenceClassification, WordLogit(1, 1), "target: expected a ClassLogit of "),
        (BertForSequenceClassification, ClassLogit(3), "label: expected 0 to 2, got 3"),
        (BertForSequenceClassification, ClassLogit(1, 1), "position: expected none, .*, got 1"),
        (BertForTokenClassification, ClassLogit(1), "position: expected a token's, got None"),
        (BertForMaskedLM, WordLogit(5, 1), "position: expected 0 to 4, got 5"),
        (BertForMaskedLM, WordLogit(1, 40), "token_id: expected 0 to 39, got 40"),
    ],
)
def test_a_target_that_is_not_there(model_class, target, message):
    with pytest.raises(ValueError, match=message):
        gradient_times_input(drawn(model_class), packed(TEXT), target)


@pytest.mark.errors
def test_texts_and_models_that_cannot_be_used():
    model, target = drawn(BertForMaskedLM), WordLogit(1, 7)
    two = PackedBatch.from_lists([TEXT, TEXT])
    with pytest.raises(ValueError, match=r"text: expected one sequence .*got lengths \[5, 5\]"):
        gradient_times_input(model, two, target)
    with pytest.raises(ValueError, match="input_ids: expected ids from 0 to 39"):
        gradient_times_input(model, packed([2, 99, 3]), target)
    with pytest.raises(ValueError, match="model: expected evaluation mode"):
        gradient_times_input(model.train(), packed(TEXT), target)


@pytest.mark.errors
def test_baselines_that_cannot_be_used():
    pytest.importorskip("captum")
    arguments = drawn(BertForMaskedLM), packed(TEXT)
    with pytest.raises(ValueError, match=r"baseline: expected one sequence of 5 .*got \[3\]"):
        integrated_gradients(*arguments, packed([CLS, 5, SEP]), WordLogit(1, 7))
    with pytest.raises(ValueError, match="steps: expected 1 or more, got 0"):
        integrated_gradients(*arguments, packed(BASELINE), WordLogit(1, 7), steps=0)


@pytest.mark.errors
def test_without_captum_it_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ModuleNotFoundError, match="captum is missing; install the extra internal"):
        integrated_gradients(
            drawn(BertForMaskedLM), packed(TEXT), packed(BASELINE), WordLogit(1, 7)
        )
