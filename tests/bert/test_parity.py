"""Our numbers against Hugging Face's: every intermediate and every gradient, on tiny models."""

import subprocess
import sys

import pytest
import torch

from bert.checkpoint import load_pretrained
from bert.parity import Parity, compare, run
from bert.parity_table import Row, table, worst_of_each_kind
from kernels import REFERENCE, TORCH
from tests.bert.hugging_face import (
    assert_parity,
    batches,
    load_both,
    reloaded,
    saved,
    theirs,
)

CONFIGS = {
    "plain": {},
    "312 wide, 12 heads": {
        "hidden_size": 312, "num_attention_heads": 12, "intermediate_size": 600,
        "initializer_range": 0.05,
    },
    "tanh GELU": {"hidden_act": "gelu_new"},
    "eps 1e-5": {"layer_norm_eps": 1e-5},
    "one segment type": {"type_vocab_size": 1},
    "five segment types": {"type_vocab_size": 5},
    "one layer": {"num_hidden_layers": 1},
    "long positions": {"max_position_embeddings": 700},
    "padding token 7": {"pad_token_id": 7},
    "no padding token": {"pad_token_id": None},
    "heads of one": {"hidden_size": 7, "num_attention_heads": 7, "intermediate_size": 5},
    "untied": {"tie_word_embeddings": False},
}  # fmt: skip
BATCHES = ("unpadded", "ragged", "left-padded", "with holes")
DTYPES = (torch.float32, torch.float64)
CLASSES = (
    "BertModel",
    "BertForMaskedLM",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForMultipleChoice",
    "BertForQuestionAnswering",
)


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """One saved model for each configuration."""
    made = {}

    def directory(name):
        if name not in made:
            torch.manual_seed(len(made))
            made[name] = saved(tmp_path_factory.mktemp("model"), **CONFIGS[name])[0]
        return made[name]

    return directory


@pytest.mark.filterwarnings("ignore:.*differs from cls.predictions.bias")
@pytest.mark.parametrize("kernels", [TORCH, REFERENCE], ids=lambda k: k.name)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_intermediate_and_every_gradient(directories, name, dtype, kernels):
    ours, model = load_both(directories(name), "BertForPreTraining", dtype, kernels)
    length = 300 if name == "long positions" else 17
    for kind, batch in batches(ours.config, length).items():
        names = {row.name for row in assert_parity(ours, model, batch)}
        expected = {"cls.predictions", "encoder.layer.0.attention.probabilities"}
        assert names >= expected | (set() if kind == "left-padded" else {"loss", "pooler"})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("architecture", CLASSES)
def test_every_class(tmp_path, architecture, dtype):
    settings = {"num_labels": 3} if "Classification" in architecture else {}
    path, _ = saved(tmp_path, architecture, **settings)
    ours, model = load_both(path, architecture, dtype)
    assert type(ours).__name__ == architecture.replace("BertModel", "Bert")
    for batch in batches(ours.config).values():
        assert_parity(ours, model, batch)


def test_left_padding_pools_the_first_token(tmp_path):
    path, model = saved(tmp_path)
    ours = load_pretrained(path)
    batch = batches(ours.config)["left-padded"]
    hidden = model.bert(**batch.inputs).last_hidden_state
    first = hidden[torch.arange(4), batch.attention_mask.argmax(1)]
    expected = model.bert.pooler(first[:, None])
    assert torch.allclose(ours.bert(**batch.inputs).pooler_output, expected, atol=1e-5)


def test_encoder_without_a_pooler(tmp_path):
    path, _ = saved(tmp_path, "BertModel", pooler=False)
    ours = load_pretrained(path)
    assert ours.pooler is None
    model = reloaded(path, "BertModel", add_pooling_layer=False)
    assert_parity(ours, model, batches(ours.config)["ragged"])


@pytest.mark.parametrize("mistake", ["eps", "query and key", "a bias", "pad gradient"])
def test_a_mistake_is_seen(tmp_path, mistake):
    path, _ = saved(tmp_path)
    changes = {"layer_norm_eps": 1e-3} if mistake == "eps" else {}
    if mistake == "pad gradient":
        changes["pad_token_id"] = None
    ours, model = load_pretrained(path, **changes), reloaded(path, "BertForPreTraining")
    batch = batches(ours.config)["unpadded"]
    batch.input_ids[0, 3] = 0
    with torch.no_grad():
        if mistake == "query and key":
            weight = ours.bert.encoder.layers[1].attention.qkv.weight
            query, key, value = weight.clone().chunk(3)
            weight.copy_(torch.cat([key, query, value]))
        if mistake == "a bias":
            ours.bert.encoder.layers[0].feed_forward.down_bias[3] += 1e-3
    with pytest.raises(AssertionError, match="Row"):
        assert_parity(ours, model, batch)


def test_compare_takes_a_directory_or_a_preset(tmp_path):
    path, _ = saved(tmp_path, "BertModel")
    names = [row.name for row in compare(str(path), gradients=True, length=9)]
    assert "pooler" in names and "grad encoder.layer.1.attention.self.key.weight" in names
    assert "loss" not in names
    with pytest.raises(ValueError, match="model: expected a directory or one of tiny, mini"):
        compare(str(tmp_path / "nothing"))


def test_command_says_ok_and_fail(tmp_path, capsys, monkeypatch):
    path, _ = saved(tmp_path)
    assert run(Parity(str(path), gradients=True)) == 0
    out = capsys.readouterr().out
    assert "FAIL" not in out and out.splitlines()[-1].endswith("0 over tolerance")
    # Another epsilon in one of the two is a difference like any other.
    monkeypatch.setattr("bert.comparison.load_theirs", lambda *_: theirs())
    assert run(Parity(str(path), dtype="float64", kernels="reference")) == 1
    out = capsys.readouterr().out
    assert "FAIL" in out and "0 over tolerance" not in out


def test_command_refuses_by_name():
    with pytest.raises(ValueError, match="length: expected at least 2, got 1"):
        Parity("tiny", length=1)


def test_absent_transformers_is_one_line(tmp_path, monkeypatch):
    path, _ = saved(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match="install the extra parity: pip install -e"):
        compare(str(path))


def test_module_of_the_command_imports_no_torch():
    code = "import sys, bert.parity; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_table_and_its_summary():
    def row(layer, difference, tolerance=1e-5):
        return Row(f"encoder.layer.{layer}.output", (3, 4), difference, 1.0, tolerance)

    rows = [row(0, 2e-6), row(1, 9e-6), row(2, float("nan")), Row("loss", (), 0.0, 1.0, 0.0)]
    assert [r.ok for r in rows] == [True, True, False, True]
    assert worst_of_each_kind(rows) == [rows[2], rows[3]]
    assert worst_of_each_kind(rows[:2]) == [rows[1]]
    lines = table(rows).splitlines()
    assert len(lines) == 5 and lines[3].endswith("FAIL") and "3×4" in lines[1]
    assert "scalar" in lines[4] and lines[4].endswith("ok")
