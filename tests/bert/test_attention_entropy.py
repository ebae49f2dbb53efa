"""The entropy of attention, against Hugging Face's probabilities and by its bounds."""

import math

import pytest
import torch

from bert.attention_entropy import SEQUENCES, attention_entropy
from bert.config import BertConfig
from bert.model import Bert
from bert.packing import PackedBatch

SHAPE = BertConfig(
    vocab_size=50, hidden_size=24, num_hidden_layers=3, num_attention_heads=3,
    intermediate_size=40, max_position_embeddings=40, initializer_range=0.5,
)  # fmt: skip
LENGTHS = [5, 1, 17, 32]


def rows(lengths):
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(1, 50, (n,), generator=generator).tolist() for n in lengths]


def test_it_is_the_entropy_of_the_probabilities_that_the_model_gives():
    """Through the padded door, sequence by sequence, token by token."""
    model = Bert(SHAPE).eval().double()
    ids = rows(LENGTHS)
    found = attention_entropy(model, PackedBatch.from_lists(ids))
    sums, spread = torch.zeros(3, 3, dtype=torch.float64), 0.0
    for row in ids:
        output = model(torch.tensor([row]), output_attentions=True)
        for layer, probabilities in enumerate(output.attentions or []):
            for head in range(3):
                for looks in probabilities[0, head].tolist():
                    sums[layer, head] -= sum(p * math.log(p) for p in looks if p > 0)
        spread += len(row) * math.log(len(row))
    assert torch.tensor(found["attention_entropy"]).shape == (3, 3)
    torch.testing.assert_close(
        torch.tensor(found["attention_entropy"], dtype=torch.float64),
        sums / sum(LENGTHS),
        rtol=0,
        atol=1e-12,
    )
    assert found["log_length"] == pytest.approx(spread / sum(LENGTHS), abs=1e-12)


def test_it_lies_between_nothing_and_the_logarithm_of_the_length():
    found = attention_entropy(Bert(SHAPE).eval(), PackedBatch.from_lists(rows(LENGTHS)))
    for layer in found["attention_entropy"]:
        assert all(0 < head < found["log_length"] for head in layer)


def test_heads_that_look_at_all_alike_have_all_of_it():
    model = Bert(SHAPE).eval()
    with torch.no_grad():
        for layer in model.encoder.layers:
            layer.attention.qkv.weight.zero_()
    found = attention_entropy(model, PackedBatch.from_lists(rows(LENGTHS)))
    for layer in found["attention_entropy"]:
        assert layer == pytest.approx([found["log_length"]] * 3, rel=1e-6)


def test_only_the_first_sequences_are_looked_at_and_empty_ones_count_nothing():
    model = Bert(SHAPE).eval()
    ids = rows([4, 0, *[9] * (SEQUENCES - 2)])
    found = attention_entropy(model, PackedBatch.from_lists(ids))
    assert attention_entropy(model, PackedBatch.from_lists([*ids, *rows([30])])) == found
