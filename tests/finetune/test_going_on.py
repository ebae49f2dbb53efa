"""The best weights, and runs that are stopped, go on, and begin anew."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from bert.checkpoint import load_pretrained
from bert.finetuning import BertForSequenceClassification
from bert.training.log import read_log
from bert.training.state import load_checkpoint
from finetune.best import BestWeights
from finetune.run import finetune as run_it
from finetune.sequences import SequenceObjective
from finetune.tasks.classification import Classification
from tests.finetune.conftest import same, weights


def summaries(run):
    return [record["results"] for record in read_log(run / "log.jsonl", "evaluation")]


# --- the best weights ------------------------------------------------------------------------


def test_the_best_evaluation_wins_not_the_last(make_config, monkeypatch):
    """The second of three evaluations is the best; then the weights go bad."""
    seen = []
    real = Classification.evaluate

    def evaluate(self, model, rows):
        scores = real(self, model, rows)
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        accuracy = [0.5, 0.9, 0.7, 0.1, 0.1][len(seen) - 1]
        return replace(scores, accuracy=accuracy)

    monkeypatch.setattr(Classification, "evaluate", evaluate)
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
    real, calls = SequenceObjective.forward, []

    def forward(self, batch, dropout_seed):
        calls.append(1)
        if len(calls) in (6, 11):  # in the midst of a window of two
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch, dropout_seed)

    monkeypatch.setattr(SequenceObjective, "forward", forward)
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
        ({"dropout": 0.3}, "model.attention_probs_dropout_prob"),
        ({"seed": 4}, "initial_weights"),
        ({"best_metric": "mcc"}, "best_metric"),
        ({"options": ("label_smoothing=0.1",)}, "label_smoothing"),
        ({"training": {"budget": "2", "layer_decay": 0.9}}, "layer_decay"),
    ],
)
def test_what_is_not_the_same_run_does_not_go_on(make_config, change, name):
    config = make_config({"budget": "2"})
    run_it(config)
    with pytest.raises(ValueError, match=rf"{name}: expected "):
        run_it(make_config(**{"training": {"budget": "2"}} | change))


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


def test_a_fresh_start_deletes_what_the_run_before_has_made(make_config):
    first = run_it(make_config({"budget": "2"}))
    (first.run_dir / "mine.txt").write_text("a user's own")
    made = {path.name for path in first.run_dir.iterdir()}
    assert {"test", "validation", "model", "report.txt", "best.safetensors"} <= made
    config = make_config(
        {"budget": "2"}, resume="none", overwrite=True, validation_file=None, test_file=None
    )
    run_it(config)
    left = {path.name for path in first.run_dir.iterdir()}
    assert not {"test", "validation", "best.safetensors"} & left
    assert {"model", "mine.txt"} <= left
    assert "test" not in json.loads((first.run_dir / "metrics.json").read_text())
