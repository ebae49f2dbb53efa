"""Statistics of a step against their definition; and that looking changes nothing."""

import math

import pytest
import torch

from bert.training import pictures
from bert.training.log import read_log
from bert.training.optimizer import build_optimizer
from bert.training.state import load_checkpoint
from bert.training.statistics import watch_step
from tests.bert.training.test_loop import BadBatches
from tests.bert.training.toy import ToyObjective, config, run


def lines(run_dir):
    return list(read_log(run_dir / "log.jsonl", "statistics"))


@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
def test_with_and_without_the_numbers_are_the_same_bit_by_bit(tmp_path, optimizer):
    finals = [
        load_checkpoint(
            run(tmp_path / str(every), statistics_every=every, optimizer=optimizer).checkpoint
        )
        for every in (None, 1)
    ]
    for without, with_statistics in (
        (finals[0].parameters, finals[1].parameters),
        (finals[0].optimizer, finals[1].optimizer),
    ):
        assert without.keys() == with_statistics.keys()
        assert all(torch.equal(without[name], with_statistics[name]) for name in without)
    assert not lines(tmp_path / "None") and len(lines(tmp_path / "1")) == 6


def test_they_are_what_their_definition_says(tmp_path):
    """From the checkpoints before and after the step, in float64."""
    options = {"checkpoint_every": "1", "keep_checkpoints": 9}
    run(tmp_path, statistics_every=2, **options)
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6]
    for line in lines(tmp_path):
        before, after = (
            load_checkpoint(tmp_path / "checkpoints" / f"step-{step:08d}").parameters
            for step in (line["step"] - 1, line["step"])
        )
        assert line["update_ratio"].keys() == dict(ToyObjective().named_parameters()).keys()
        for name, ratio in line["update_ratio"].items():
            length = before[name].double().norm().item()
            change = (after[name].double() - before[name].double()).norm().item()
            assert line["parameter_norm"][name] == pytest.approx(length, rel=1e-6)
            assert ratio == (pytest.approx(change / length, rel=1e-4) if length else None)


@pytest.mark.parametrize("limit", [None, 0.1])
def test_the_gradients_norms_are_those_that_the_optimiser_gets(tmp_path, limit):
    run(tmp_path, statistics_every=1, max_grad_norm=limit)
    steps = read_log(tmp_path / "log.jsonl", "step")
    for step, line in zip(steps, lines(tmp_path), strict=True):
        whole = math.sqrt(sum(norm**2 for norm in line["gradient_norm"].values()))
        assert whole == pytest.approx(min(step["grad_norm"], limit or math.inf), rel=1e-4)


def test_a_tensor_that_is_zero_has_no_ratio_and_a_step_not_taken_no_statistics():
    objective = ToyObjective()
    torch.nn.init.zeros_(objective.output.bias)
    optimizer = build_optimizer(objective, config())
    with watch_step(objective, optimizer) as statistics:
        pass
    assert statistics == {}
    for parameter in objective.parameters():
        parameter.grad = torch.ones_like(parameter)
    with watch_step(objective, optimizer) as statistics:
        optimizer.step()
    assert statistics["update_ratio"]["output.bias"] is None
    before = dict(statistics)
    optimizer.step()  # the hooks are gone
    assert statistics == before


class Nested(torch.optim.AdamW):
    """A step that does something first and then the one that it stands on, as Muon's does."""

    def step(self, closure=None):
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter += 1.0
        return super().step()


def test_a_step_that_stands_on_another_is_seen_whole():
    objective = ToyObjective()
    torch.optim.AdamW(objective.parameters()).step()  # torch puts the hooks around its step, too
    optimizer = Nested(objective.parameters(), lr=1e-6, weight_decay=0.0)
    for parameter in objective.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = objective.hidden.weight.detach().clone()
    with watch_step(objective, optimizer) as statistics:
        optimizer.step()
    assert statistics["parameter_norm"]["hidden.weight"] == pytest.approx(before.norm().item())
    ratio = math.sqrt(before.numel()) / before.norm().item()
    assert statistics["update_ratio"]["hidden.weight"] == pytest.approx(ratio, rel=1e-4)


def test_a_bad_step_has_none(tmp_path):
    run(tmp_path, batches=BadBatches(4), statistics_every=1)
    assert [line["step"] for line in lines(tmp_path)] == [1, 3, 4, 5, 6]


class Studied(ToyObjective):
    """Tells which batch it was shown, and in which mode."""

    def study(self, batch):
        return {"ids": list(batch.ids), "training": self.training, "grad": torch.is_grad_enabled()}


def test_the_objective_shows_of_itself_what_it_likes(tmp_path):
    objective = Studied()
    run(tmp_path, objective, statistics_every=3)
    shown = [(line["ids"], line["training"], line["grad"]) for line in lines(tmp_path)]
    assert shown == [(shown[0][0], False, False)] * 2 and objective.training


def test_they_are_drawn_by_layer():
    norms = {
        "model.bert.embeddings.word.weight": 3.0,
        "model.bert.embeddings.norm.bias": 4.0,
        "model.bert.encoder.layers.11.attention.qkv.weight": 2.0,
        "model.mlm_head.bias": "inf",
    }
    assert pictures.by_layer(norms) == {-1: 5.0, 11: 2.0, 1_000_000: math.inf}
    line = {
        "update_ratio": {"layers.0.a": 0.1, "layers.0.b": 0.2, "layers.0.c": None},
        "parameter_norm": {"layers.0.a": 3.0, "layers.0.b": 4.0, "layers.0.c": 0.0},
    }
    assert pictures.update_ratios(line) == {0: pytest.approx(math.hypot(0.3, 0.8) / 5)}


def test_the_picture_is_drawn_where_there_are_statistics(tmp_path):
    pytest.importorskip("matplotlib")
    run(tmp_path / "a", statistics_every=1)
    run(tmp_path / "b")
    for name in ("a", "b"):
        pictures.draw_statistics(tmp_path / name / "log.jsonl", tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").stat().st_size > 20_000 and not (tmp_path / "b.png").exists()


def test_without_matplotlib_it_says_so(tmp_path, monkeypatch, capsys):
    import sys

    run(tmp_path, statistics_every=1)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    pictures.draw_statistics(tmp_path / "log.jsonl", tmp_path / "a.png")
    assert "install the extra report" in capsys.readouterr().err
