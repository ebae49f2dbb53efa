import subprocess
import sys
from dataclasses import fields

import pytest

from bert.training.config import CHANGEABLE, TrainingConfig
from bert.training.span import Span


@pytest.mark.errors
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("budget", "soon"),
        ("budget", "0"),
        ("evaluate_every", "6m"),
        ("checkpoint_every", "-1"),
        ("optimizer", "sgd"),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("warmup", 1.0),
        ("warmup", -0.1),
        ("schedule", "square"),
        ("cooldown", 0.2),
        ("betas", (0.9, 1.0)),
        ("betas", (0.9,)),
        ("eps", 0.0),
        ("weight_decay", -1.0),
        ("layer_decay", 0.0),
        ("layer_decay", 1.0),
        ("max_grad_norm", 0.0),
        ("accumulation", 0),
        ("precision", "float8"),
        ("keep_checkpoints", 0),
        ("loader_workers", -1),
        ("max_bad_steps", 0),
        ("statistics_every", 0),
        ("trackers", ("tensorbord",)),
        ("trackers", ("wandb", "wandb")),
        ("seed", -1),
        ("seed", 2**63),
        ("threads", 0),
        ("threads", 10**6),
        ("sharding", "half"),
        ("timeout", "500"),
        ("timeout", "soon"),
    ],
)
def test_a_wrong_value_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name}: expected .*, got ") as error:
        TrainingConfig(**{name: value})
    assert "\n" not in str(error.value)


@pytest.mark.errors
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("warmup", {"schedule": "inverse_sqrt", "warmup": 0.0}),
        ("cooldown", {"schedule": "cosine", "cooldown": 0.2}),
        ("cooldown", {"schedule": "wsd", "cooldown": 0.0}),
        ("cooldown", {"schedule": "wsd", "cooldown": 0.6, "warmup": 0.5}),
        ("cooldown", {"schedule": "wsd", "warmup": 0.9}),
    ],
)
def test_shares_that_do_not_fit_are_refused(name, settings):
    with pytest.raises(ValueError, match=f"^{name}: expected .*, got {settings.get(name)}$"):
        TrainingConfig(**settings)


@pytest.mark.errors
def test_an_optimizer_that_needs_whole_tensors_is_refused_with_parts():
    TrainingConfig(optimizer="muon", sharding="full")
    with pytest.raises(ValueError, match="^optimizer: expected adamw, .* full, .* got 'lamb'$"):
        TrainingConfig(optimizer="lamb", sharding="full")


def test_what_a_run_needs_is_a_budget():
    assert TrainingConfig(budget="6min").total() == Span(seconds=360.0)
    with pytest.raises(ValueError, match="^budget: expected .*, got None"):
        TrainingConfig().total()


def test_every_field_is_explained_below_it():
    source = open(sys.modules[TrainingConfig.__module__].__file__).read()
    lines = source.splitlines()
    for field in fields(TrainingConfig):
        (at,) = [i for i, line in enumerate(lines) if line.startswith(f"    {field.name}: ")]
        assert lines[at + 1].startswith('    """') and lines[at + 1].endswith('."""'), field.name


def test_the_identity_is_all_that_makes_the_numbers():
    assert TrainingConfig().identity().keys() == {
        "optimizer", "learning_rate", "warmup", "schedule", "cooldown", "betas", "eps",
        "weight_decay", "layer_decay", "max_grad_norm", "accumulation", "precision", "seed",
    }  # fmt: skip
    names = {field.name for field in fields(TrainingConfig)}
    assert names - TrainingConfig().identity().keys() == CHANGEABLE


def test_importing_it_brings_no_torch():
    code = "import sys, bert.training.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
