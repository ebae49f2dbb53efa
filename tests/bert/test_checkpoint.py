"""Every layout of weights that there is, in and out; what is missing, and what is too much."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import bert
from bert.checkpoint import load_pretrained, load_with_report, save_pretrained
from bert.weight_names import HEADS, TABLE, head_of, layer_of, modern, to_ours, to_theirs
from tests.bert.hugging_face import (
    assert_parity,
    batches,
    change_config,
    reloaded,
    saved,
    theirs,
    transformers,
)

CLASSES = {
    "BertModel": bert.Bert,
    "BertForPreTraining": bert.BertForPreTraining,
    "BertForMaskedLM": bert.BertForMaskedLM,
    "BertForSequenceClassification": bert.BertForSequenceClassification,
    "BertForTokenClassification": bert.BertForTokenClassification,
    "BertForMultipleChoice": bert.BertForMultipleChoice,
    "BertForQuestionAnswering": bert.BertForQuestionAnswering,
}


def rewrite(path, change):
    """Let `change` edit the weights of a directory, or return others."""
    weights = load_file(path / "model.safetensors")
    weights = change(weights) or weights
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def same_weights(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name])
        for name in one
    )


def assert_same_numbers(ours, path, architecture, **options):
    model = reloaded(path, architecture, **options)
    assert_parity(ours, model, batches(ours.config)["ragged"], gradients=False)


# The table of names.


@pytest.mark.parametrize("architecture", CLASSES)
def test_names_are_reversible(architecture):
    model, ours = theirs(architecture), {}
    tied = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias")
    names = [name for name in model.state_dict() if name not in tied]
    for name in names:
        assert modern(name) == (name if architecture != "BertModel" else f"bert.{name}")
        found = to_ours(name)
        assert found is not None, name
        assert to_theirs(found[0])[found[1]] == name
        ours.setdefault(found[0], set()).add(found[1])
    for name, parts in ours.items():
        assert parts == set(range(len(to_theirs(name))))
    config = bert.BertConfig.from_dict(model.config.to_dict())
    assert set(ours) == set(CLASSES[architecture](config).state_dict())


def test_table_has_no_name_twice():
    names = [name for row in TABLE.values() for name in row]
    assert len(names) == len(set(names))


def test_names_that_are_no_berts():
    assert to_ours("encoder.layer.x.output.dense.weight") is None
    assert to_ours("bert.encoder.layer.01.output.dense.weight") is None
    assert to_ours("bert.classifier.weights") is None
    assert layer_of("bert.encoder.layers.11.attention.norm.bias") == 11
    assert layer_of("bert.pooler.dense.bias") is None
    assert {head_of(name) for name in TABLE} == {None, *HEADS}


# Round trips.


@pytest.mark.parametrize("architecture", CLASSES)
def test_round_trip_through_ours_is_exact(tmp_path, architecture):
    labels = {"num_labels": 3} if "Classification" in architecture else {}
    path, model = saved(tmp_path / "theirs", architecture, **labels)
    ours, report = load_with_report(path)
    assert type(ours) is CLASSES[architecture]
    assert not report.lines() and not report.warnings
    assert not ours.training
    save_pretrained(ours, tmp_path / "ours")
    again = reloaded(tmp_path / "ours", architecture)
    assert same_weights(model, again)
    assert again.config.num_labels == model.config.num_labels
    assert same_weights(ours, load_pretrained(tmp_path / "ours"))
    assert_same_numbers(ours, tmp_path / "ours", architecture)
    stored = load_file(tmp_path / "ours" / "model.safetensors")
    assert "cls.predictions.decoder.weight" not in stored
    assert json.loads((tmp_path / "ours/config.json").read_text())["architectures"] == [
        architecture
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_round_trip_in_other_dtypes(tmp_path, dtype):
    ours = load_pretrained(saved(tmp_path / "theirs")[0], dtype=dtype)
    assert {p.dtype for p in ours.parameters()} == {dtype}
    save_pretrained(ours, tmp_path / "ours")
    assert same_weights(ours, load_pretrained(tmp_path / "ours", dtype=dtype))
    assert reloaded(tmp_path / "ours", "BertForPreTraining", "auto").dtype == dtype
    # Left to itself, loading keeps float64 and widens 16 bits, which loses nothing.
    wide = load_pretrained(tmp_path / "ours")
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    assert {p.dtype for p in wide.parameters()} == {kind}
    assert same_weights(ours, wide.to(dtype))


def test_weights_from_our_own_start(tmp_path):
    config = bert.BertConfig.preset("tiny", vocab_size=97, pad_token_id=None)
    ours = bert.BertForPreTraining(config).eval()
    save_pretrained(ours, tmp_path)
    assert same_weights(ours, load_pretrained(tmp_path))
    assert_same_numbers(ours, tmp_path, "BertForPreTraining")


def test_encoder_without_pooler_stays_without(tmp_path):
    ours = load_pretrained(saved(tmp_path / "theirs", "BertModel", pooler=False)[0])
    save_pretrained(ours, tmp_path / "ours")
    assert load_pretrained(tmp_path / "ours").pooler is None
    assert_same_numbers(ours, tmp_path / "ours", "BertModel", add_pooling_layer=False)


def test_configuration_can_be_changed_and_is_saved(tmp_path):
    path, _ = saved(tmp_path, "BertModel")
    labels = {0: "no", 1: "perhaps", 2: "yes"}
    ours = load_pretrained(
        path, bert.BertForSequenceClassification, hidden_dropout_prob=0.25, id2label=labels
    )
    assert ours.config.hidden_dropout_prob == 0.25 and ours.classifier.out_features == 3
    save_pretrained(ours, tmp_path / "ours")
    again = reloaded(tmp_path / "ours", "BertForSequenceClassification")
    assert again.config.id2label == labels and again.config.hidden_dropout_prob == 0.25
    with pytest.raises(ValueError, match="hiden_size: not a field.*did you mean hidden_size"):
        load_pretrained(path, hiden_size=3)


# Layouts.


def test_an_early_files_settings_for_writing_text(tmp_path):
    path, _ = saved(tmp_path)
    change_config(
        path, do_sample=False, num_beams=1, output_past=True, pruned_heads={}, top_k=50,
        temperature=1.0, use_bfloat16=False, is_decoder=False, finetuning_task=None,
    )  # fmt: skip
    load_pretrained(path)


def test_weights_without_prefix_in_a_sentence_transformers_directory(tmp_path):
    path, model = saved(tmp_path / "root", "BertModel")
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.Transformer"}]
    (path / "modules.json").write_text(json.dumps(modules))
    assert same_weights(load_pretrained(path), load_pretrained(path, bert.Bert))
    deep, _ = tmp_path / "deep", shutil.copytree(path, tmp_path / "deep" / "0_Transformer")
    modules[0]["path"] = "0_Transformer"
    (deep / "modules.json").write_text(json.dumps(modules))
    inner = load_pretrained(deep)
    assert_parity(inner, model, batches(inner.config)["ragged"], gradients=False)
    for outside in ("../root", "/etc", "..", 3, None):
        modules[0]["path"] = outside
        (deep / "modules.json").write_text(json.dumps(modules))
        with pytest.raises(ValueError, match=r"modules\.json: expected the path of a directory"):
            load_pretrained(deep)
    for broken in ("[]", "{}", "[3]"):
        (deep / "modules.json").write_text(broken)
        with pytest.raises(ValueError, match=r"modules\.json: expected the path of a directory"):
            load_pretrained(deep)


def test_gamma_beta_and_position_ids(tmp_path):
    path, _ = saved(tmp_path)
    expected = load_pretrained(path)

    def age(weights):
        old = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): value
            for name, value in weights.items()
        }
        return old | {"bert.embeddings.position_ids": torch.arange(40)[None]}

    rewrite(path, age)
    ours, report = load_with_report(path)
    assert same_weights(ours, expected)
    assert list(report.unexpected) == ["bert.embeddings.position_ids"]
    assert "buffer" in report.lines()[0] and not report.warnings
    rewrite(path, lambda w: w | {"bert.embeddings.LayerNorm.weight": torch.ones(32)})
    with pytest.raises(ValueError, match=r"embeddings\.LayerNorm.*: expected once"):
        load_pretrained(path)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards(tmp_path, kind):
    path, model = saved(tmp_path)
    expected = load_pretrained(path)
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    many = tmp_path / "many"
    index = json.loads((many / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    if kind == "bin":
        for file in many.glob("model-*.safetensors"):
            torch.save(load_file(file), file.with_suffix(".bin"))
            file.unlink()
        text = json.dumps(index).replace(".safetensors", ".bin")
        (many / "model.safetensors.index.json").unlink()
        (many / "pytorch_model.bin.index.json").write_text(text)
    assert same_weights(load_pretrained(many), expected)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_pytorch_model_bin(tmp_path, legacy):
    path, model = saved(tmp_path)
    expected = load_pretrained(path)
    (path / "model.safetensors").unlink()
    # With the tied matrix and bias, as transformers wrote it.
    torch.save(
        model.state_dict(),
        path / "pytorch_model.bin",
        _use_new_zipfile_serialization=not legacy,
    )
    ours, report = load_with_report(path)
    assert same_weights(ours, expected)
    assert "tied" in report.unexpected["cls.predictions.decoder.weight"]
    assert "held once" in report.unexpected["cls.predictions.decoder.bias"]


def test_safetensors_come_before_pickles(tmp_path):
    path, _ = saved(tmp_path)
    (path / "pytorch_model.bin").write_bytes(b"not looked at")
    load_pretrained(path)


def test_untied_decoder_is_kept_apart_with_a_warning(tmp_path):
    path, model = saved(tmp_path / "theirs")
    weight = torch.randn(61, 32)
    rewrite(path, lambda w: w | {"cls.predictions.decoder.weight": weight})
    with pytest.warns(UserWarning, match="decoder.weight: differs from the word embedding"):
        ours = load_pretrained(path)
    assert not ours.config.tie_word_embeddings
    assert torch.equal(ours.mlm_head.decoder.weight, weight)
    assert_same_numbers(ours, path, "BertForPreTraining")
    save_pretrained(ours, tmp_path / "ours")
    assert_same_numbers(ours, tmp_path / "ours", "BertForPreTraining")
    assert same_weights(load_pretrained(tmp_path / "ours"), ours)


def test_decoder_equal_to_the_embedding_is_tied(tmp_path):
    path, _ = saved(tmp_path)
    rewrite(
        path,
        lambda w: (
            w
            | {
                "cls.predictions.decoder.weight": w[
                    "bert.embeddings.word_embeddings.weight"
                ].clone()
            }
        ),
    )
    ours, report = load_with_report(path)
    assert ours.config.tie_word_embeddings and ours.mlm_head.decoder is None
    assert "tied" in report.unexpected["cls.predictions.decoder.weight"]


def test_untied_by_configuration_needs_its_matrix(tmp_path):
    path, _ = saved(tmp_path)
    change_config(path, tie_word_embeddings=False)
    with pytest.raises(ValueError, match="decoder.weight: expected in the checkpoint, got none"):
        load_pretrained(path)


def test_word_embedding_under_the_decoders_name(tmp_path):
    path, _ = saved(tmp_path)
    expected = load_pretrained(path)

    def move(weights):
        word = weights.pop("bert.embeddings.word_embeddings.weight")
        weights["cls.predictions.decoder.weight"] = word

    rewrite(path, move)
    ours, report = load_with_report(path)
    assert same_weights(ours, expected)
    assert "taken from" in report.missing["bert.embeddings.word_embeddings.weight"]
    assert_same_numbers(ours, path, "BertForPreTraining")


@pytest.mark.parametrize("both", [True, False])
def test_decoder_bias_is_the_one_that_is_added(tmp_path, both):
    path, _ = saved(tmp_path)
    bias = torch.randn(61)

    def change(weights):
        weights["cls.predictions.decoder.bias"] = bias
        if not both:
            del weights["cls.predictions.bias"]

    rewrite(path, change)
    ours, report = load_with_report(path)
    assert torch.equal(ours.mlm_head.bias, bias)
    assert_same_numbers(ours, path, "BertForPreTraining")
    assert len(report.warnings) == both
    save_pretrained(ours, tmp_path / "ours")
    assert_same_numbers(ours, tmp_path / "ours", "BertForPreTraining")


def test_a_head_without_a_class_of_ours_gives_the_encoder(tmp_path):
    path, model = saved(tmp_path, "BertForNextSentencePrediction")
    with pytest.warns(UserWarning, match="only the encoder of this BertForNextSentencePredict"):
        ours = load_pretrained(path)
    assert_parity(ours, model.bert, batches(ours.config)["ragged"], gradients=False)


def test_next_sentence_head_into_pretraining(tmp_path):
    path, model = saved(tmp_path, "BertForNextSentencePrediction")
    ours = load_pretrained(path, bert.BertForPreTraining, new=("mlm_head",))
    batch = batches(ours.config)["ragged"]
    got = ours(**batch.inputs).seq_relationship_logits
    assert torch.allclose(got, model(**batch.inputs).logits, atol=1e-5)


@pytest.mark.parametrize(
    "architecture", [a for a in CLASSES if "Classification" not in a and "Choice" not in a]
)
def test_class_is_told_by_the_weights_where_config_is_silent(tmp_path, architecture):
    path, _ = saved(tmp_path, architecture)
    change_config(path, architectures=...)
    assert type(load_pretrained(path)) is CLASSES[architecture]


def test_class_that_nothing_tells(tmp_path):
    path, _ = saved(tmp_path, "BertForTokenClassification")
    change_config(path, architectures=None)
    with pytest.raises(ValueError, match="architectures: expected one of .* model_class="):
        load_pretrained(path)
    load_pretrained(path, bert.BertForTokenClassification)
    for wrong in (["BertForSomething"], "BertModel", [3], ["BertModel", "BertForMaskedLM"]):
        change_config(path, architectures=wrong)
        with pytest.raises(ValueError, match=r"config\.json: architectures: expected one"):
            load_pretrained(path)


@pytest.mark.errors
def test_class_of_somebody_else(tmp_path):
    path, _ = saved(tmp_path)
    with pytest.raises(ValueError, match="model_class: expected one of bert's models"):
        load_pretrained(path, transformers.BertModel)  # type: ignore[arg-type]


# Heads that only one side has.


def test_encoder_into_a_classifier(tmp_path, recwarn):
    path, _ = saved(tmp_path)
    torch.manual_seed(3)
    ours, report = load_with_report(path, bert.BertForSequenceClassification)
    assert set(report.missing) == {"classifier.weight", "classifier.bias"}
    assert report.missing["classifier.bias"] == "classifier: drawn anew, the checkpoint has none"
    assert all("left out" in line for line in report.unexpected.values())
    assert {"cls.predictions.bias", "cls.seq_relationship.weight"} <= set(report.unexpected)
    assert not report.warnings and not report.mismatched and not recwarn.list
    # The head begins as its constructor would have made it.
    assert torch.equal(ours.classifier.bias, torch.zeros(2))
    assert 0.1 < ours.classifier.weight.std() < 0.3
    assert ours.classifier.weight.requires_grad
    torch.manual_seed(3)
    again = load_pretrained(path, bert.BertForSequenceClassification)
    assert same_weights(ours, again)


def test_pooler_that_is_new_is_warned_about(tmp_path):
    path, _ = saved(tmp_path, "BertForMaskedLM")
    with pytest.warns(UserWarning, match="pooler: drawn anew, since the checkpoint has none"):
        ours = load_pretrained(path, bert.BertForSequenceClassification)
    assert ours.bert.pooler.dense.weight.std() > 0.1
    assert torch.equal(ours.bert.pooler.dense.bias, torch.zeros(32))
    assert load_pretrained(path, bert.Bert).pooler is None
    assert load_pretrained(path, bert.Bert, new=("pooler",)).pooler is not None


def test_pretraining_heads_are_new_only_if_asked_for(tmp_path):
    path, _ = saved(tmp_path, "BertModel")
    with pytest.raises(
        ValueError, match=r": cls\.\S+: expected in the checkpoint, got none \(and"
    ):
        load_pretrained(path, bert.BertForPreTraining)
    ours = load_pretrained(path, bert.BertForPreTraining, new=("mlm_head", "nsp_head"))
    assert torch.equal(ours.mlm_head.norm.weight, torch.ones(32))
    for parameter in (ours.mlm_head.norm.bias, ours.mlm_head.dense_bias, ours.mlm_head.bias):
        assert torch.equal(parameter, torch.zeros_like(parameter))
    assert not any(p.is_meta for p in ours.parameters())


def test_a_new_head_replaces_the_stored_one(tmp_path):
    path, _ = saved(tmp_path, "BertForSequenceClassification")
    labels = {0: "a", 1: "b", 2: "c"}
    with pytest.raises(ValueError, match=r"classifier\.weight: expected shape \[3, 32\].*new=\("):
        load_pretrained(path, id2label=labels)
    ours, report = load_with_report(path, new=("classifier",), id2label=labels)
    assert ours.classifier.out_features == 3
    assert "as asked for" in report.unexpected["classifier.weight"]
    with pytest.raises(ValueError, match=r"new: expected a head of Bert \(pooler\), got 'clas"):
        load_pretrained(path, bert.Bert, new=("classifier",))


def test_the_classifier_of_another_task_is_not_taken(tmp_path):
    path, _ = saved(tmp_path, "BertForTokenClassification")
    with pytest.raises(ValueError, match="got that of BertForTokenClassification; new=."):
        load_pretrained(path, bert.BertForSequenceClassification)
    with pytest.warns(UserWarning, match="pooler"):
        load_pretrained(path, bert.BertForSequenceClassification, new=("classifier",))


def test_a_head_that_its_own_class_lacks_is_an_error(tmp_path):
    path, _ = saved(tmp_path, "BertForSequenceClassification")
    rewrite(path, lambda w: {k: v for k, v in w.items() if "classifier" not in k})
    with pytest.raises(ValueError, match="classifier.weight: expected in the checkpoint"):
        load_pretrained(path)


def test_half_a_head_is_an_error(tmp_path):
    path, _ = saved(tmp_path)
    rewrite(path, lambda w: {k: v for k, v in w.items() if k != "bert.pooler.dense.bias"})
    with pytest.raises(ValueError, match=r"pooler\.dense\.bias: expected in the checkpoint"):
        load_pretrained(path)


def test_a_missing_weight_of_the_encoder_is_an_error(tmp_path):
    path, _ = saved(tmp_path)
    key = "bert.encoder.layer.1.attention.self.key.bias"
    rewrite(path, lambda w: {k: v for k, v in w.items() if k != key})
    with pytest.raises(ValueError, match=f"{key}: expected in the checkpoint, got none$"):
        load_pretrained(path)


def test_an_unknown_weight_is_an_error_unless_ignored(tmp_path):
    path, _ = saved(tmp_path)
    rewrite(path, lambda w: w | {"crf.transitions": torch.zeros(3)})
    with pytest.raises(ValueError, match="crf.transitions: expected a weight of BERT"):
        load_pretrained(path)
    _, report = load_with_report(path, ignore=("crf.",))
    assert report.unexpected == {"crf.transitions": "left out, as asked for (ignore)"}


def test_layers_are_cut_only_if_asked_for(tmp_path):
    path, _ = saved(tmp_path)
    ours, report = load_with_report(path, num_hidden_layers=1)
    assert len(ours.bert.encoder.layers) == 1
    assert all("not asked for" in line for line in report.unexpected.values())
    change_config(path, num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"layer\.1\..*: expected fewer layers.*\(and 15 more\)"):
        load_pretrained(path)
    for number in (3, 2**31 - 1):
        change_config(path, num_hidden_layers=number)
        with pytest.raises(ValueError, match=f"expected the {number} layers of .*, got 2$"):
            load_pretrained(path)
