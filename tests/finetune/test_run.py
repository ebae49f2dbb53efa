"""Whole runs: a planted rule is learned, a stopped run goes on, and all is left in its place."""

import json
import lzma
import os
import signal
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

import finetune.run
from bert.checkpoint import load_pretrained
from bert.cli import parse
from bert.finetuning import BertForSequenceClassification
from bert.model import Bert
from bert.options import options_of
from bert.saving import save_pretrained
from bert.tokenization import Tokenizer
from bert.training.hardware import choose_hardware
from bert.training.log import read_log
from bert.training.state import load_checkpoint
from finetune.best import BestWeights
from finetune.classification import ClassificationObjective, predict_logits
from finetune.config import Columns, FinetuneConfig
from finetune.data import read_rows
from finetune.metrics import score
from finetune.prepare import prepare
from finetune.run import dry_run
from finetune.run import finetune as run_it
from tests.finetune.conftest import TINY, planted_pairs, write_tsv


def weights(path):
    model = load_pretrained(path / "model", BertForSequenceClassification)
    return model.state_dict()


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def summaries(run):
    return [record["results"] for record in read_log(run / "log.jsonl", "evaluation")]


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
        "model", "lock",
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


# --- the best weights ------------------------------------------------------------------------


def test_the_best_evaluation_wins_not_the_last(make_config, monkeypatch):
    """The second of three evaluations is the best; then the weights go bad."""
    seen = []
    real = finetune.classification.Classification.evaluate

    def evaluate(self, model, rows):
        scores = real(self, model, rows)
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        accuracy = [0.5, 0.9, 0.7, 0.1, 0.1][len(seen) - 1]
        return replace(scores, accuracy=accuracy)

    monkeypatch.setattr(finetune.classification.Classification, "evaluate", evaluate)
    result = run_it(make_config({"budget": "6", "evaluate_every": "2"}, test_file=None))
    assert same(weights(result.run_dir), seen[1])
    assert not same(seen[1], seen[2])
    assert len(seen) == 4  # three in training, one of the result


def test_without_a_validation_file_the_last_weights_are_the_result(make_config):
    config = make_config({"budget": "3"}, validation_file=None, test_file=None)
    result = run_it(config)
    assert result.scores == {} and not (config.out / "best.safetensors").exists()
    assert result.training.checkpoint is not None
    last = load_checkpoint(result.training.checkpoint).parameters
    assert same(weights(config.out), {k.removeprefix("model."): v for k, v in last.items()})


def test_equal_values_leave_the_first(tmp_path):
    model = torch.nn.Linear(2, 2)
    best = BestWeights(tmp_path / "best.safetensors", "run")
    best.offer(model, 0.5)
    first = model.weight.clone()
    with torch.no_grad():
        model.weight.add_(1)
    best.offer(model, 0.5)
    best.restore(model)
    assert torch.equal(model.weight, first)
    # The same run finds its file again; another one, or a fresh start, doesn't.
    assert BestWeights(best.path, "run").value == 0.5
    assert BestWeights(best.path, "another").value is None
    assert BestWeights(best.path, "run", is_fresh=True).value is None


def test_damaged_best_weights_change_nothing(tmp_path):
    model = torch.nn.Linear(2, 2)
    best = BestWeights(tmp_path / "best.safetensors", "run")
    best.offer(model, 0.5)
    before = model.weight.clone()
    content = best.path.read_bytes()
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1
        best.path.write_bytes(flipped)
        for use in (lambda: best.restore(model), lambda: BestWeights(best.path, "run")):
            with pytest.raises(ValueError, match=r"best.safetensors: expected .* damaged file"):
                use()
        assert torch.equal(model.weight, before)
    best.path.write_bytes(content[:-4])
    with pytest.raises(ValueError, match="got a damaged file"):
        best.restore(model)


# --- once more -------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_run_and_another_another(make_config, tmp_path):
    short = {"budget": "5"}
    first, again, other = (
        make_config(short, seed=seed, out=tmp_path / name)
        for seed, name in ((1, "first"), (1, "again"), (2, "other"))
    )
    for config in (first, again, other):
        run_it(config)
    assert same(weights(first.out), weights(again.out))
    assert not same(weights(first.out), weights(other.out))


def test_a_run_that_is_stopped_and_goes_on_is_one_that_never_stopped(
    make_config, tmp_path, monkeypatch
):
    settings = {"budget": "9", "evaluate_every": "2", "accumulation": 2}
    whole = make_config(settings, out=tmp_path / "whole")
    run_it(whole)

    stopped = make_config(settings, out=tmp_path / "stopped")
    real, calls = ClassificationObjective.forward, []

    def forward(self, batch, dropout_seed):
        calls.append(1)
        if len(calls) in (6, 11):  # in the midst of a window of two
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch, dropout_seed)

    monkeypatch.setattr(ClassificationObjective, "forward", forward)
    result = run_it(stopped)
    assert result.training.exit_code == 143
    assert result.model is None and not (stopped.out / "model").exists()
    assert run_it(stopped).training.exit_code == 143
    result = run_it(stopped)
    assert result.training.step == 9
    assert same(weights(whole.out), weights(stopped.out))
    assert summaries(whole.out) == summaries(stopped.out)
    metrics = [json.loads((c.out / "metrics.json").read_text()) for c in (whole, stopped)]
    assert metrics[0]["test"] == metrics[1]["test"]


def test_a_finished_run_is_only_reported_again(make_config):
    config = make_config({"budget": "4"})
    first = run_it(config)
    before = weights(config.out)
    again = run_it(config)
    assert (again.training.step, again.scores) == (first.training.step, first.scores)
    assert same(weights(config.out), before)


@pytest.mark.errors
@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"batch_size": 8}, "batch_size"),
        ({"max_length": 9}, "train"),
        ({"dropout": 0.3}, "model"),
        ({"seed": 4}, "initial_weights"),
        ({"best_metric": "mcc"}, "best_metric"),
    ],
)
def test_what_is_not_the_same_run_does_not_go_on(make_config, change, name):
    config = make_config({"budget": "2"})
    run_it(config)
    with pytest.raises(ValueError, match=rf"{name}: expected "):
        run_it(replace(config, **change))


def test_a_fresh_start_takes_no_weights_from_before(make_config):
    """An old best value must not keep the new run's weights out."""
    config = make_config({"budget": "2"})
    run_it(config)
    path = config.out / "best.safetensors"
    model = load_pretrained(config.out / "model", BertForSequenceClassification)
    old = BestWeights(path, "")
    with safe_open(path, "pt") as file:
        old.run = file.metadata()["run"]
    old.offer(model, 1.0)
    run_it(replace(config, resume="none", overwrite=True))
    assert BestWeights(path, old.run).value < 1.0


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


# --- what can't be learned is told before the first step ----------------------------------------


@pytest.mark.errors
@pytest.mark.parametrize(
    ("changes", "rows", "message"),
    [
        ({}, {"train": [("a", "x")]}, "train.tsv: expected two classes or more, got only 'x'"),
        (
            {},
            {"test": [("a", "odd")]},
            "test.tsv, line 2, column 'label': expected a class that is trained (bad, good), or 0 "
            "to 1, got 'odd'",
        ),
        (
            {},
            {"train": [("a", 0), ("b", 1)], "validation": [("a", 1), ("b", 2)]},
            "validation.tsv, line 3, column 'label': expected a class that is trained (0, 1), "
            "got '2'",
        ),
        (
            {"class_names": ("bad", "good", "fair")},
            {},
            "train.tsv: no row has class 'fair'",
        ),
        (
            {},
            {"train": [("a", 0), ("b", 2)]},
            "train.tsv, line 3, column 'label': got class 2, but no row has class 1; number the "
            "classes without a gap, or call them by names",
        ),
        (
            {"max_length": 41},
            {},
            "max_length: expected at most 40, the longest that the model can take "
            "(max_position_embeddings), got 41",
        ),
    ],
)
def test_errors_come_before_the_first_step(make_config, tmp_path, changes, rows, message):
    written = {f"{k}_file": write_tsv(tmp_path / f"{k}.tsv", v) for k, v in rows.items()}
    config = make_config(**(written | changes))
    with pytest.raises(ValueError) as error:
        run_it(config)
    assert str(error.value).replace(f"{tmp_path}/", "").endswith(message)
    assert not config.out.exists()


@pytest.mark.errors
def test_files_and_model_must_agree_on_pairs(make_config, tmp_path):
    header = ("text_a", "text_b", "label")
    pairs = write_tsv(tmp_path / "pairs.tsv", [("a", "b", "bad"), ("a", "c", "good")], header)
    with pytest.raises(ValueError, match=r"pairs.tsv: expected single texts, like .*train.tsv"):
        run_it(make_config(test_file=pairs))
    model = tmp_path / "one_segment"
    model.mkdir()
    values = replace(TINY, type_vocab_size=1).to_dict("BertModel")
    (model / "config.json").write_text(json.dumps(values))
    config = make_config(
        model=str(model), tokenizer=make_config().model, train_file=pairs,
        validation_file=None, test_file=None,
    )  # fmt: skip
    with pytest.raises(ValueError, match="model: expected two segment types, for pairs of texts"):
        run_it(config)


@pytest.mark.errors
def test_the_tokenizer_must_fit_the_model(make_config, tmp_path, tokenizer):
    model = tmp_path / "small"
    tokenizer.save(model)
    size = tokenizer.vocab_size
    values = replace(TINY, vocab_size=size - 1).to_dict("BertModel")
    (model / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError) as error:
        run_it(make_config(model=str(model)))
    assert str(error.value) == (
        f"tokenizer: expected at most the model's {size - 1} tokens (vocab_size), got {size}"
    )


@pytest.mark.errors
def test_a_model_that_is_not_there_is_told(make_config):
    with pytest.raises(ValueError) as error:
        run_it(make_config(model="nowhere", from_scratch=False))
    assert str(error.value) == (
        "model: expected a directory, a config.json or a preset, got 'nowhere'"
    )
