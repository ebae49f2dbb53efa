"""Neighbours in the word embeddings, against cosines that are worked out one by one."""

import math

import pytest
import torch

from bert.config import BertConfig
from bert.internals.neighbours import nearest_rows, nearest_tokens
from bert.model import Bert
from bert.pretraining import BertForMaskedLM
from bert.tokenization import Tokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "king", "queen", "tree", "##s"]


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / (math.hypot(*a) * math.hypot(*b) or 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_they_are_those_of_the_greatest_cosine(dtype):
    matrix = torch.randn(30, 7).to(dtype)
    matrix[4] = 0
    vector = 3 * torch.randn(7).to(dtype)
    found = nearest_rows(matrix, vector, 30, left_out={2, 5})
    expected = {row: cosine(matrix[row].tolist(), vector.tolist()) for row in range(30)}
    del expected[2], expected[5]
    assert [row for row, _ in found] == sorted(expected, key=lambda row: -expected[row])
    assert dict(found) == pytest.approx(expected, abs=1e-6)
    assert nearest_rows(matrix, vector, 3, {2, 5}) == found[:3]


@pytest.mark.parametrize("model_class", [Bert, BertForMaskedLM])
def test_the_tokens_of_a_model(model_class):
    """Neither the token itself, nor special ones, nor rows that no token has."""
    shape = BertConfig(
        vocab_size=12, hidden_size=4, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=4, max_position_embeddings=8,
    )  # fmt: skip
    model = model_class(shape)
    word = (model if model_class is Bert else model.bert).embeddings.word.weight
    with torch.no_grad():
        word[:] = word[5]  # the same way as "king"
        word[6:9] = torch.tensor([[1.0, 1, 0, 0], [1, 0, 0, 0], [-1, 0, 0, 0]])
        word[5] = torch.tensor([2.0, 0, 0, 0])
    found = nearest_tokens(model, Tokenizer(WORDS), "king")
    assert [(n.token, n.id) for n in found] == [("tree", 7), ("queen", 6), ("##s", 8)]
    assert [n.cosine for n in found] == pytest.approx([1, math.sqrt(0.5), -1], abs=1e-6)


@pytest.mark.errors
def test_what_is_not_there():
    model = Bert(BertConfig(vocab_size=9, hidden_size=4, num_attention_heads=1))
    with pytest.raises(ValueError, match="token: expected one of the vocabulary, got 'bush'"):
        nearest_tokens(model, Tokenizer(WORDS), "bush")
    with pytest.raises(ValueError, match="count: expected 1 or more, got 0"):
        nearest_tokens(model, Tokenizer(WORDS), "king", 0)
