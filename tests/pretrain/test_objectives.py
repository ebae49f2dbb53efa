"""Whole runs with each objective and with a mask rate that changes; what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from bert import BertConfig, load_pretrained
from bert.cli import main
from bert.training.config import TrainingConfig
from bert.training.log import read_log
from pretrain.config import CONFIG_DEFAULTS, PretrainConfig
from pretrain.objective import PretrainingObjective
from pretrain.report import add_losses
from pretrain.run import pretrain
from pretrain.start import build_model
from tests.bert.hugging_face import reloaded
from tests.pretrain.test_run import story


@pytest.fixture
def config(tmp_path):
    (tmp_path / "train.txt").write_text(story(20, 0))
    (tmp_path / "held_out.txt").write_text(story(6, 1))
    shape = BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32,
    )  # fmt: skip
    (tmp_path / "shape.json").write_text(json.dumps(shape.to_dict()))
    return PretrainConfig(
        files=(tmp_path / "train.txt",),
        validation_files=(tmp_path / "held_out.txt",),
        out=tmp_path / "run",
        model=str(tmp_path / "shape.json"),
        vocab_size=100,
        max_length=32,
        tokens_per_batch=256,
        training=TrainingConfig(budget="4", learning_rate=1e-2, evaluate_every="2"),
    )


def weights(run_dir):
    return safetensors.torch.load_file(run_dir / "model" / "model.safetensors")


@pytest.mark.parametrize(
    ("objective", "untouched", "card"),
    [
        ("mlm+nsp", (), "# BERT pretrained on masked words and next sentences"),
        ("mlm", ("nsp_head", "bert.pooler"), "The next-sentence head was not trained."),
        ("nsp", ("mlm_head",), "The masked-word head was not trained."),
        ("mlm+sop", (), "# BERT pretrained on masked words and sentence order"),
    ],
)
def test_a_run_trains_and_reports_what_it_was_told_and_nothing_else(
    config, objective, untouched, card
):
    result = pretrain(replace(config, objective=objective))
    tasks = set(objective.split("+"))
    log = result.run_dir / "log.jsonl"
    for line in read_log(log, "step"):
        assert set(line["losses"]) == tasks
    judged = [line["results"] for line in read_log(log, "evaluation")]
    assert len(judged) == 2
    for results in judged:
        assert {name[:3] for name in results} & {"mlm", "nsp", "sop"} == tasks
        assert ("unigram_loss" in results) == ("mlm" in tasks)

    model = load_pretrained(result.model)
    reloaded(result.model, "BertForPreTraining")  # transformers misses nothing in it
    drawn = dict(
        build_model(config.resolved(), model.config, model.bert.kernels).named_parameters()
    )
    same = {name for name, p in model.named_parameters() if torch.equal(p, drawn[name])}
    assert (
        same == {name for name in drawn if name.startswith(untouched)} if untouched else not same
    )
    text = (result.model / "README.md").read_text()
    assert card in text and text.count("was not trained.") == bool(untouched)
    assert ("pipeline_tag: fill-mask" in text) == ("mlm" in tasks)
    assert ("[MASK], another token, and the token itself" in text) == ("mlm" in tasks)


def test_the_picture_has_a_panel_for_each_loss(config):
    figures = pytest.importorskip("matplotlib.figure")
    for objective, titles in (("mlm", ["Masked words"]), ("nsp", ["Next sentences"])):
        out = config.out / objective
        result = pretrain(replace(config, objective=objective, out=out))
        figure = figures.Figure()
        add_losses(figure, result.run_dir / "log.jsonl")
        assert [axis.get_title() for axis in figure.axes] == titles
        labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        assert ("held out, [MASK]" in labels) == (objective == "mlm")
        assert (out / "loss.png").stat().st_size > 10_000


@pytest.mark.parametrize("change", [{"objective": "mlm"}, {"final_mask_rate": 0.3}])
def test_a_stopped_run_goes_on_to_the_same_end(config, tmp_path, change):
    """Where a head has no optimiser state, and where the rate hangs on the step."""
    training = replace(config.training, checkpoint_every="2", keep_checkpoints=9)
    whole = pretrain(replace(config, training=training, **change))
    middle = whole.run_dir / "checkpoints" / "step-00000002"
    other = replace(
        config, training=training, out=tmp_path / "other", resume=str(middle), **change
    )
    first, second = weights(whole.run_dir), weights(pretrain(other).run_dir)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_changing_rate_masks_more_from_step_to_step(config, monkeypatch):
    training = replace(config.training, budget="9")
    rising = replace(config, mask_rate=0.1, final_mask_rate=0.5, training=training)
    assert rising.largest_mask_rate == 0.5
    shares, counts = [], PretrainingObjective.counts

    def counted(self, batch):
        shares.append(len(batch.masked_labels) / len(batch.packed.input_ids))
        return counts(self, batch)

    monkeypatch.setattr(PretrainingObjective, "counts", counted)
    pretrain(rising)
    assert len(shares) == 9 and shares == sorted(shares)
    assert shares[0] == pytest.approx(0.1, abs=0.03) and shares[-1] == pytest.approx(0.5, abs=0.03)


def test_a_user_is_told_of_the_unigram_plateau(config, capsys):
    pretrain(replace(config, training=replace(config.training, learning_rate=1e-9)))
    assert capsys.readouterr().err.count("still on the unigram plateau: words under [MASK]") == 2


@pytest.mark.errors
def test_another_objective_is_another_run(config):
    pretrain(replace(config, objective="mlm"))
    with pytest.raises(ValueError, match="^objective: expected 'mlm', as step-00000004 was train"):
        pretrain(config)


@pytest.mark.errors
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--objective", "mlm+tlm"],
            "--objective: expected one of mlm+nsp, mlm, nsp, mlm+sop, got",
        ),
        (
            ["--objective", "nsp", "--mask-rate", "0.3"],
            "--mask-rate: expected none with the objective nsp, which masks nothing, got 0.3",
        ),
        (
            ["--objective", "nsp", "--whole-words"],
            "--whole-words: expected none with the objective nsp, which masks nothing, got True",
        ),
        (
            ["--final-mask-rate", "0.3"],
            "--training.budget: expected steps such as 10000, since the mask rate follows from "
            "the step (final_mask_rate), got '30min'",
        ),
        (
            ["--final-mask-rate", "1.3", "--training.budget", "9"],
            "--final-mask-rate: expected a share between 0 and 1, got 1.3",
        ),
        (
            ["--training.evaluate-every", "100"],
            "--training.evaluate-every: expected none without validation_files or data that holds "
            "some out, got '100'",
        ),
    ],
)
def test_a_users_mistake_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_text(story(3, 0))
    assert main(["pretrain", "t.txt", "--out", "o", *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("bert pretrain: error: ") and message in error


def test_a_run_that_cannot_be_evaluated_says_so(config, capsys):
    """Also where the interval was given that is the default, which can't be told from it."""
    for every in (None, CONFIG_DEFAULTS.evaluate_every):
        training = replace(config.training, budget="1", evaluate_every=every)
        out = config.out / f"{every}"
        result = pretrain(replace(config, out=out, validation_files=(), training=training))
        assert result.training.evaluation is None
        assert "no text is held out (--validation-files), so the run" in capsys.readouterr().err
        assert "None: no text was held out." in (result.model / "README.md").read_text()
