"""A run that ends since nothing better is found, and what it is when it goes on."""

import math
import signal

import pytest
import torch

from bert.training.early_stopping import EarlyStopping
from bert.training.log import read_log
from bert.training.state import load_checkpoint
from tests.bert.training.toy import ToyObjective, run, send

# The best is the third; the sixth is as good, which isn't better.
VALUES = (0.1, 0.2, 0.7, 0.4, math.nan, 0.7, 0.3, 0.8, 0.1)


def followed(run_dir, objective, patience, values=VALUES, before=None, **options):
    """Run with an evaluation a step, each with the value that its step has."""

    def evaluate():
        step = sum(1 for _ in read_log(run_dir / "log.jsonl", "step"))
        if before is not None:
            before(step)
        return {"value": values[step - 1]}

    return run(
        run_dir, objective, **{"budget": "9", "evaluate_every": "1"} | options, evaluate=evaluate,
        early_stopping=EarlyStopping("value", patience),
    )  # fmt: skip


def since_best(run_dir):
    return [line["since_best"] for line in read_log(run_dir / "log.jsonl", "evaluation")]


@pytest.mark.parametrize(("patience", "last"), [(1, 4), (2, 5), (3, 6), (4, 7), (5, 9), (None, 9)])
def test_it_ends_after_so_many_evaluations_without_a_better_one(tmp_path, capsys, patience, last):
    result = followed(tmp_path, ToyObjective(), patience)
    assert result.step == last and (result.stopped_early is not None) == (last < 9)
    assert since_best(tmp_path) == [0, 0, 0, 1, 2, 3, 4, 0, 1][:last]
    assert (result.best_value, result.best_step) == ((0.7, 3) if last < 9 else (0.8, 8))
    assert result.exit_code == 0 and load_checkpoint(result.checkpoint).state.step == last
    told = f"stopping early: {patience} evaluation{'s' if patience != 1 else ''} without a better "
    assert (f"{told}value than 0.7000 at step 3" in capsys.readouterr().err) == (last < 9)


def test_what_the_budget_ends_is_not_called_early(tmp_path, capsys):
    result = followed(tmp_path, ToyObjective(), 3, budget="6")
    assert (result.step, result.stopped_early) == (6, None)
    assert "early" not in capsys.readouterr().err


def test_values_that_are_none_are_waited_for_too(tmp_path):
    result = followed(tmp_path, ToyObjective(), 2, values=(math.nan,) * 9)
    assert (result.step, result.best_value) == (2, None)
    assert result.stopped_early == "2 evaluations without a better value"


def test_more_patience_goes_on_to_what_it_would_have_been(tmp_path, capsys):
    whole, stopped = ToyObjective(), ToyObjective()
    followed(tmp_path / "whole", whole, 4)
    assert followed(tmp_path / "run", stopped, 1).step == 4
    capsys.readouterr()
    assert followed(tmp_path / "run", ToyObjective(), 1).step == 4  # nothing is left
    assert "step 4 is the last: 1 evaluation without" in capsys.readouterr().err
    again = ToyObjective()
    assert followed(tmp_path / "run", again, 4).step == 7
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert since_best(tmp_path / "run") == since_best(tmp_path / "whole")


@pytest.mark.parametrize("stops", [{4}, {5}, {6}, {3, 5, 6}])
def test_a_signal_in_an_evaluation_changes_nothing(tmp_path, stops):
    """The evaluation that it ends is done again, and counted once."""
    whole = ToyObjective()
    followed(tmp_path / "whole", whole, 3)
    sent = set()

    def before(step):
        if step in stops - sent:
            sent.add(step)
            send(signal.SIGTERM)

    for _ in stops:
        assert followed(tmp_path / "run", ToyObjective(), 3, before=before).exit_code == 143
    objective = ToyObjective()
    result = followed(tmp_path / "run", objective, 3, before=before)
    assert (result.step, result.best_step) == (6, 3)
    assert result.stopped_early == "3 evaluations without a better value than 0.7000 at step 3"
    assert since_best(tmp_path / "run") == since_best(tmp_path / "whole")
    for name, value in whole.state_dict().items():
        assert torch.equal(objective.state_dict()[name], value)


def test_a_run_that_lost_its_last_checkpoint_counts_again(tmp_path):
    """It must not take the later evaluations, which are in no checkpoint, for its own past."""
    followed(tmp_path, ToyObjective(), 3, checkpoint_every="2", keep_checkpoints=9)
    for path in (tmp_path / "checkpoints").glob("step-*[456]"):
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    result = followed(tmp_path, ToyObjective(), 3, checkpoint_every="2", keep_checkpoints=9)
    assert (result.step, result.best_step) == (6, 3)
    assert since_best(tmp_path) == [0, 0, 0, 1, 2, 3]


def test_without_it_nothing_is_followed(tmp_path):
    result = run(tmp_path, evaluate=lambda: {"value": 0.5})
    assert (result.best_value, result.stopped_early) == (None, None)
    assert "since_best" not in next(read_log(tmp_path / "log.jsonl", "evaluation"))


@pytest.mark.errors
@pytest.mark.parametrize("settings", [{"metric": "f1", "patience": 0}, {"patience": 1}])
def test_a_wrong_patience_is_refused(settings):
    with pytest.raises(ValueError, match="^patience: expected 1 or more, and a metric, got"):
        EarlyStopping(**settings)
