import json
from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bert import BertConfig, BertForPreTraining
from bert.config import PRESETS

GOOGLE = {  # layers, hidden: table 1 of Turc et al. 2019, and BERT-large of Devlin et al. 2018
    "tiny": (2, 128), "mini": (4, 256), "small": (4, 512), "medium": (8, 512),
    "base": (12, 768), "large": (24, 1024),
}  # fmt: skip


def test_presets_are_googles_sizes():
    assert {
        name: (config.num_hidden_layers, config.hidden_size) for name, config in PRESETS.items()
    } == GOOGLE
    for config in PRESETS.values():
        assert config.head_dim == 64 and config.intermediate_size == 4 * config.hidden_size
    assert round(BertConfig.preset("base").parameter_count(heads=False) / 1e6, 1) == 109.5
    assert round(BertConfig.preset("large").parameter_count(heads=False) / 1e6, 1) == 335.1
    assert BertConfig.preset("tiny", vocab_size=99).vocab_size == 99


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", PRESETS)
def test_parameter_count_is_the_models(name, tied):
    config = BertConfig.preset(name, vocab_size=500, tie_word_embeddings=tied)
    with torch.device("meta"):
        model = BertForPreTraining(config)
    assert config.parameter_count() == sum(p.numel() for p in model.parameters())
    assert config.parameter_count(heads=False) == sum(p.numel() for p in model.bert.parameters())


def test_round_trip_through_hugging_faces_json(tmp_path):
    config = BertConfig.preset(
        "mini", vocab_size=77, hidden_act="gelu_new", layer_norm_eps=1e-5, pad_token_id=None,
        classifier_dropout=0.2, tie_word_embeddings=False,
    ).with_labels(["bad", "good", "so so"], "single_label_classification")  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict("BertForSequenceClassification")))
    assert BertConfig.load(tmp_path) == BertConfig.load(path) == config
    assert config.num_labels == 3 and config.gelu_form == "tanh"
    assert json.loads(path.read_text())["label2id"] == {"bad": 0, "good": 1, "so so": 2}


def test_transformers_reads_ours_and_we_read_theirs():
    transformers = pytest.importorskip("transformers")
    config = BertConfig.preset(
        "tiny", vocab_size=77, type_vocab_size=1, finetuning_task="multi-label",
        task_specific_params={"multi-label": {"threshold": 0.25}},
    )  # fmt: skip
    theirs = transformers.BertConfig(**config.to_dict("BertForPreTraining"))
    for field in fields(BertConfig):
        if field.name != "problem_type":
            assert getattr(theirs, field.name) == getattr(config, field.name), field.name
    assert BertConfig.from_dict(theirs.to_dict()) == config
    default = BertConfig.from_dict(json.loads(transformers.BertConfig().to_json_string(False)))
    assert default == BertConfig()


@pytest.mark.errors
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"is_decoder": True}, "c.json: is_decoder: expected False, got True"),
        (
            {"position_embedding_type": "relative_key"},
            "c.json: position_embedding_type: expected 'absolute', got 'relative_key'",
        ),
        ({"model_type": "roberta"}, "c.json: model_type: expected 'bert', got 'roberta'"),
        ({"hidden_act": "relu"}, "c.json: hidden_act: expected one of gelu, gelu_python, "),
        (
            {"hiden_size": 8},
            "c.json: hiden_size: not a setting of BERT; did you mean hidden_size?",
        ),
        ({"rope_theta": 8}, "c.json: rope_theta: not a setting of BERT"),
        ({"hidden_size": 100}, "c.json: num_attention_heads: expected a divisor of hidden_size"),
        ({"hidden_size": "8"}, "c.json: hidden_size: expected a positive integer, got '8'"),
        ({"vocab_size": 0}, "c.json: vocab_size: expected a positive integer, got 0"),
        ({"vocab_size": True}, "c.json: vocab_size: expected a positive integer, got True"),
        ({"pad_token_id": 40000}, "c.json: pad_token_id: expected a token below vocab_size 30522"),
        ({"hidden_dropout_prob": 1}, "c.json: hidden_dropout_prob: expected a number from 0 to"),
        ({"hidden_dropout_prob": None}, "c.json: hidden_dropout_prob: expected a number from 0"),
        ({"layer_norm_eps": 0}, "c.json: layer_norm_eps: expected a positive number, got 0"),
        ({"id2label": {"0": "a", "2": "b"}}, "c.json: id2label: expected ids 0, 1, …, got [0, 2]"),
        (
            {"num_labels": 10**9},
            "c.json: num_labels: expected an integer from 1 to 100000, got 10",
        ),
        ({"num_labels": True}, "c.json: num_labels: expected an integer from 1 to 100000, got Tr"),
        ({"id2label": []}, "c.json: id2label: expected {id: label}, got []"),
        ({"problem_type": "x"}, "c.json: problem_type: expected one of ('regression', "),
        ([], "c.json: expected a JSON object, got list"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(values, message):
    with pytest.raises(ValueError) as error:
        BertConfig.from_dict(values, "c.json")
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.errors
def test_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json: no such file$"):
        BertConfig.load(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff{")
    with pytest.raises(ValueError, match=r"config\.json: expected JSON: "):
        BertConfig.load(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
names = st.sampled_from([f.name for f in fields(BertConfig)] + ["model_type", "num_labels"])


@pytest.mark.errors
@given(st.dictionaries(names, json_values))
def test_any_json_is_a_config_or_a_one_line_error(values):
    try:
        config = BertConfig.from_dict(values)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert config.head_dim * config.num_attention_heads == config.hidden_size
