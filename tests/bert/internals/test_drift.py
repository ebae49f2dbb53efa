"""How far matrices have moved: names, and ratios that are known."""

import pytest
import safetensors.torch
import torch

from bert.config import BertConfig
from bert.internals.drift import drift, matrices
from bert.pretraining import BertForPreTraining
from bert.saving import save_pretrained

SHAPE = BertConfig(
    vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=12, max_position_embeddings=10,
)  # fmt: skip
KEY = "bert.encoder.layer.1.attention.self.key.weight"


def test_the_matrices_are_those_of_a_saved_model(tmp_path):
    """Under the names and with the values that Hugging Face reads."""
    model = BertForPreTraining(SHAPE)
    save_pretrained(model, tmp_path)
    saved = safetensors.torch.load_file(tmp_path / "model.safetensors")
    expected = {name: weight for name, weight in saved.items() if weight.ndim == 2}
    found = matrices(model)
    assert found.keys() == expected.keys() and KEY in found
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_the_ratio_of_one_matrix_is_its_own():
    model, start = BertForPreTraining(SHAPE), BertForPreTraining(SHAPE)
    start.load_state_dict(model.state_dict())
    assert set(drift(matrices(model), matrices(start)).values()) == {0.0}
    with torch.no_grad():
        model.bert.encoder.layers[1].attention.qkv.weight[8:16] *= -1.5  # the keys
        model.bert.embeddings.word.weight.zero_()
    moved = drift(matrices(model), matrices(start))
    assert moved.pop(KEY) == pytest.approx(2.5, rel=1e-6)
    assert moved.pop("bert.embeddings.word_embeddings.weight") == pytest.approx(1)
    assert set(moved.values()) == {0.0}
    back = drift(matrices(start), matrices(model))
    assert back[KEY] == pytest.approx(2.5 / 1.5, rel=1e-6)
    assert back["bert.embeddings.word_embeddings.weight"] is None  # from zeros
