"""Whole runs: a planted rule is learned, and all is left in its place."""

import json
import lzma
from dataclasses import replace

import pytest
import torch

from bert.checkpoint import load_pretrained
from bert.cli import parse
from bert.finetuning import BertForSequenceClassification
from bert.model import Bert
from bert.options import options_of
from bert.saving import save_pretrained
from bert.tokenization import Tokenizer
from bert.training.hardware import choose_hardware
from finetune.config import Columns, FinetuneConfig
from finetune.data import read_rows
from finetune.metrics import score
from finetune.prepare import prepare
from finetune.run import dry_run
from finetune.run import finetune as run_it
from finetune.sequences import predict_logits
from tests.finetune.conftest import TINY, planted_pairs, same, write_tsv

# --- what is learned -------------------------------------------------------------------------


def test_a_planted_rule_is_learned(learned):
    assert learned.scores["test"].accuracy > 0.95
    assert learned.training.exit_code == 0


def test_a_rule_about_the_second_of_two_texts_is_learned(make_config, tmp_path):
    header = ("sentence1", "sentence2", "label")
    train = write_tsv(tmp_path / "train.tsv", planted_pairs(400, 1), header)
    test = write_tsv(tmp_path / "test.tsv", planted_pairs(100, 2), header)
    config = make_config(
        {"budget": "150"}, train_file=train, test_file=test, validation_file=None, dropout=0.0
    )
    assert run_it(config).scores["test"].accuracy > 0.95


def test_a_slice_of_real_reviews_is_read_and_fitted(make_config, shared_data, tmp_path):
    lines = _head(shared_data("mr/train.tsv.xz"), 48)
    path = tmp_path / "mr.tsv"
    path.write_text("".join(lines))
    tokenizer = Tokenizer.train([line.partition("\t")[0] for line in lines[1:]], 400)
    tokenizer.save(tmp_path / "tokenizer")
    config = make_config(
        {"budget": "60"},
        train_file=path,
        test_file=path,
        validation_file=None,
        model=str(_config_file(tmp_path, tokenizer.vocab_size)),
        tokenizer=tmp_path / "tokenizer",
        dropout=0.0,
    )
    result = run_it(config)
    # Not learned but learned by heart: 48 rows.
    assert result.scores["test"].accuracy > 0.95


def _head(path, rows):
    with lzma.open(path, "rt", encoding="utf-8") as file:
        return [next(file) for _ in range(rows + 1)]


def _config_file(directory, vocab_size):
    path = directory / "config.json"
    path.write_text(json.dumps(replace(TINY, vocab_size=vocab_size).to_dict("BertModel")))
    return path


# --- what is left ----------------------------------------------------------------------------


def test_the_directory_of_a_run(learned, files):
    run = learned.run_dir
    names = {path.name for path in run.iterdir()}
    assert names == {
        "run.json", "log.jsonl", "checkpoints", "best.safetensors", "metrics.json", "report.txt",
        "validation", "test", "model", "lock",
    }  # fmt: skip
    described = json.loads((run / "run.json").read_text())
    assert described["finetune"]["training"]["budget"] == str(4 * 19)
    assert described["finetune"]["training"]["evaluate_every"] == "19"
    assert described["data"]["test"]["rows"] == 80
    assert described["machine"]["device"] == "cpu"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["test"]["accuracy"] == learned.scores["test"].accuracy
    assert metrics["training"]["steps"] == 76
    assert learned.scores["test"].text in (run / "report.txt").read_text()


def test_the_saved_model_gives_the_reported_numbers(learned, files):
    model = load_pretrained(learned.model, BertForSequenceClassification)
    rows = read_rows(files["test"], Columns(), Tokenizer.load(learned.model), 32, ("bad", "good"))
    scores = score(predict_logits(model.eval(), rows.tokens), rows.labels, rows.class_names)
    assert scores == learned.scores["test"]
    assert model.config.id2label == {0: "bad", 1: "good"}
    assert model.config.problem_type == "single_label_classification"


def test_the_card_says_what_it_is_and_its_command_makes_it_again(learned, files):
    card = (learned.model / "README.md").read_text()
    assert card.startswith("---\n") and learned.scores["test"].text.rstrip() in card
    assert str(files["train"]) in card and "drawn at random" in card
    described = json.loads((learned.run_dir / "run.json").read_text())
    assert described["command"] in card
    arguments = described["command"].split()[2:]
    again = parse(FinetuneConfig, options_of(FinetuneConfig), arguments)
    assert json.loads(json.dumps(vars(again) | {"columns": 0, "training": 0}, default=str)) == {
        **described["finetune"], "columns": 0, "training": 0
    }  # fmt: skip
    # Budget and intervals were resolved; nothing else may differ.
    assert again.training == prepare(again).config.training


# --- where the weights come from -------------------------------------------------------------


def test_a_pretrained_encoder_is_taken_and_its_head_is_new(make_config, tmp_path, tokenizer):
    torch.manual_seed(3)
    encoder = Bert(TINY)
    save_pretrained(encoder, tmp_path / "pretrained", tokenizer)
    config = make_config({"budget": "1"}, model=str(tmp_path / "pretrained"), from_scratch=False)
    prepared = prepare(config)
    model = prepared.build_model(choose_hardware(config.training))
    assert same(model.bert.state_dict(), encoder.state_dict())
    # The head follows from the seed, and not from what was drawn before.
    torch.rand(5)
    again = prepared.build_model(choose_hardware(config.training))
    assert same(model.state_dict(), again.state_dict()) and model.training
    scratch = replace(config, from_scratch=True)
    drawn = prepare(scratch).build_model(choose_hardware(config.training))
    assert not same(model.bert.state_dict(), drawn.bert.state_dict())


def test_the_head_of_an_earlier_task_is_not_taken(make_config, tmp_path, tokenizer):
    for names in (["x", "y", "z"], ["bad", "good"]):
        earlier = BertForSequenceClassification(TINY.with_labels(names))
        save_pretrained(earlier, tmp_path / "earlier", tokenizer)
        config = make_config(model=str(tmp_path / "earlier"), from_scratch=False)
        model = prepare(config).build_model(choose_hardware(config.training))
        assert same(model.bert.state_dict(), earlier.bert.state_dict())
        assert model.config.id2label == {0: "bad", 1: "good"}
        assert model.classifier.weight.shape == (2, TINY.hidden_size)
        assert not torch.equal(model.classifier.weight, earlier.classifier.weight[:2])


@pytest.mark.parametrize("count", [0, 1, 2])
def test_upper_layers_and_the_pooler_are_drawn_anew(make_config, tmp_path, tokenizer, count):
    torch.manual_seed(3)
    encoder = Bert(TINY)
    for parameter in encoder.parameters():
        parameter.data += 1  # LayerNorms and biases too are told from fresh ones
    save_pretrained(encoder, tmp_path / "pretrained", tokenizer)
    config = make_config(
        model=str(tmp_path / "pretrained"), from_scratch=False, redrawn_layers=count
    )
    model = prepare(config).build_model(choose_hardware(config.training))
    before = encoder.state_dict()
    for name, value in model.bert.state_dict().items():
        layer = int(name.split(".")[2]) if name.startswith("encoder") else None
        is_upper = name.startswith("pooler") if layer is None else layer >= 2 - count
        if not is_upper or count == 0:
            assert torch.equal(value, before[name]), name
        else:
            assert abs(value.mean() - float(name.endswith("norm.weight"))) < 0.1, name
    again = prepare(config).build_model(choose_hardware(config.training))
    assert same(model.state_dict(), again.state_dict())


@pytest.mark.errors
def test_no_more_layers_are_drawn_anew_than_there_are(make_config, tmp_path, tokenizer):
    save_pretrained(Bert(TINY), tmp_path / "pretrained", tokenizer)
    config = make_config(model=str(tmp_path / "pretrained"), from_scratch=False, redrawn_layers=3)
    with pytest.raises(ValueError, match="^redrawn_layers: expected at most the model's 2 layers"):
        prepare(config)


def test_the_first_rows_of_the_train_file_are_learned_from(make_config):
    prepared = prepare(make_config(train_rows=37))
    whole = prepare(make_config()).rows["train"]
    assert len(prepared.rows["train"]) == 37 and prepared.data["train"]["rows"] == 37
    assert (prepared.rows["train"].labels == whole.labels[:37]).all()
    assert len(prepared.rows["test"]) == 80


def test_a_preset_takes_the_tokenizers_vocabulary(make_config, scratch, tokenizer):
    config = make_config(model="tiny", tokenizer=scratch, from_scratch=False)
    assert prepare(config).encoder.vocab_size == tokenizer.vocab_size
    assert prepare(config).encoder.hidden_size == 128


def test_a_dry_run_writes_nothing_and_says_all(make_config):
    config = make_config(dry_run=True, epochs=2.0)
    text = dry_run(config)
    assert not config.out.exists()
    assert '"budget": "38"' in text and "kernels TORCH" in text and "float32" in text
    model = prepare(config).build_model(choose_hardware(config.training))
    assert f"parameters: {sum(p.numel() for p in model.parameters()):,}" in text
    assert "memory: about" in text and "time: 38 steps, about" in text
