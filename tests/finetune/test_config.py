"""What a run is told, and what is left to guess."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bert.training.config import TrainingConfig
from finetune.config import CONFIG_DEFAULTS, FinetuneConfig
from finetune.predict import PredictConfig

BASE = FinetuneConfig(model="./m", train_file=Path("t.tsv"), out=Path("out"))


def test_the_commands_are_told_without_torch():
    code = (
        "import sys, finetune.config, finetune.predict;"
        "assert not {'torch', 'numpy', 'sklearn', 'tokenizers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("epochs", "accumulation", "steps"), [(None, 1, 30), (2.0, 1, 20), (1.25, 1, 13), (2.0, 4, 5)]
)
def test_epochs_become_steps(epochs, accumulation, steps):
    training = replace(CONFIG_DEFAULTS, accumulation=accumulation)
    resolved = replace(BASE, epochs=epochs, training=training).resolved(10)
    assert resolved.training.budget == str(steps)
    assert resolved.resolved(10) == resolved


def test_a_budget_stays():
    training = replace(CONFIG_DEFAULTS, budget="5min")
    assert replace(BASE, training=training).resolved(10).training.budget == "5min"


def test_the_validation_file_is_looked_at_each_epoch():
    assert BASE.resolved(10).training.evaluate_every is None
    with_file = replace(BASE, validation_file=Path("v.tsv"))
    assert with_file.resolved(10).training.evaluate_every == "10"
    often = replace(with_file, training=replace(CONFIG_DEFAULTS, evaluate_every="3"))
    assert often.resolved(10).training.evaluate_every == "3"


def test_one_seed_is_for_all():
    assert replace(BASE, seed=5).resolved(10).training.seed == 5


@pytest.mark.errors
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_length": 7}, "max_length: expected 8 tokens or more, got 7"),
        ({"batch_size": 0}, "batch_size: expected 1 or more, got 0"),
        ({"train_rows": 0}, "train_rows: expected 1 or more, got 0"),
        ({"redrawn_layers": -1}, "redrawn_layers: expected 0 or more, got -1"),
        (
            {"redrawn_layers": 1, "from_scratch": True},
            "redrawn_layers: expected 0, since all weights are drawn, got 1",
        ),
        ({"frozen_layers": -1}, "frozen_layers: expected 0 or more, all, or None, got -1"),
        ({"frozen_layers": "some"}, "frozen_layers: expected 0 or more, all, or None, got 'some'"),
        (
            {"frozen_layers": 0, "from_scratch": True},
            "frozen_layers: expected None, since all weights are drawn, got 0",
        ),
        (
            {"patience": 0, "validation_file": Path("v.tsv")},
            "patience: expected 1 or more, got 0",
        ),
        (
            {"patience": 1},
            "patience: expected None, since there is no validation_file to evaluate on, got 1",
        ),
        ({"seed": -1}, "seed: expected 0 or more, below 2**63, got -1"),
        ({"dropout": 1.0}, "dropout: expected a probability in [0, 1), got 1.0"),
        ({"epochs": 0.0}, "epochs: expected a positive number, got 0.0"),
        (
            {"epochs": 1.0, "training": TrainingConfig(budget="5")},
            "epochs: expected either epochs or training.budget, got both",
        ),
        (
            {"seed": 1, "training": TrainingConfig(seed=2)},
            "training.seed: expected none, since seed sets it, got 2",
        ),
        ({"class_names": ("a",)}, "class_names: expected 2 or more, got ('a',)"),
        (
            {"class_names": ("a", "a")},
            "class_names: expected names that differ and aren't empty, got ('a', 'a')",
        ),
        (
            {"model": "tiny"},
            "tokenizer: expected a directory, since tiny has none, got None",
        ),
    ],
)
def test_a_wrong_value_is_named(changes, message):
    with pytest.raises(ValueError) as error:
        replace(BASE, **changes)
    assert str(error.value) == message


@pytest.mark.errors
@pytest.mark.parametrize("name", ["max_length", "window", "batch_tokens"])
def test_predict_too(name):
    with pytest.raises(ValueError, match=f"{name}: expected . or more, got 0"):
        PredictConfig(Path("m"), **{name: 0})
