"""What a search varies, read from the command line."""

from dataclasses import replace
from pathlib import Path

import pytest

from finetune.config import FinetuneConfig
from finetune.studies.space import (
    DEFAULT_SPACE,
    Choice,
    Range,
    corners,
    parse_space,
    with_values,
)

CONFIG = FinetuneConfig("model", Path("train"), Path("out"), options=("stride=3", "n_best=2"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learning-rate=1e-5..1e-3:log", Range("training.learning_rate", 1e-5, 1e-3, True, False)),
        ("training.warmup=0.0..0.2", Range("training.warmup", 0.0, 0.2, False, False)),
        ("batch_size=8..64", Range("batch_size", 8, 64, False, True)),
        ("epochs=1..4", Range("epochs", 1.0, 4.0, False, False)),
        ("batch-size=16,32", Choice("batch_size", (16, 32))),
        ("dropout=none,0.1", Choice("dropout", (None, 0.1))),
        ("from_scratch=true,false", Choice("from_scratch", (True, False))),
        ("optimizer=adamw,muon", Choice("training.optimizer", ("adamw", "muon"))),
        ("model=../a,../b", Choice("model", ("../a", "../b"))),
        ("options.stride=2,4", Choice("options.stride", (2, 4))),
        ("options.threshold=0.1..0.9", Range("options.threshold", 0.1, 0.9, False, False)),
    ],
)
def test_a_parameter_is_read_as_the_options_type(text, expected):
    assert parse_space([text]) == (expected,)


def test_values_go_where_the_option_is():
    values = {"dropout": 0.2, "training.warmup": 0.05, "options.stride": 5, "batch_size": 8}
    found = with_values(CONFIG, values)
    assert (found.dropout, found.batch_size, found.training.warmup) == (0.2, 8, 0.05)
    assert found.options == ("n_best=2", "stride=5")
    same = {"dropout": None, "batch_size": 32, "options": CONFIG.options}
    assert replace(found, **same, training=CONFIG.training) == CONFIG


def test_the_corners_meet_each_end_and_each_choice():
    parameters = parse_space(DEFAULT_SPACE)
    found = corners(parameters)
    for parameter in parameters:
        assert {corner[parameter.name] for corner in found} == set(parameter.ends)


@pytest.mark.errors
@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "space: expected something to vary, such as learning_rate=1e-5..1e-3:log, got ()"),
        (["dropout"], "space: expected NAME=LOW..HIGH, NAME=LOW..HIGH:log or NAME=A,B,C, got "),
        (["dropuot=0,1"], "space: expected an option of a run that can vary, got 'dropuot'; did"),
        (["seed=0,1"], "space: expected an option of a run that can vary, got 'seed'"),
        (["batch_size=a,b"], "space: batch_size: expected int, got 'a'"),
        (["batch_size=1,1"], "space: batch_size: expected each value once, got 1,1"),
        (["dropout=0.3..0.1"], "space: dropout: expected two numbers, the lower first, then"),
        (["dropout=0.1..0.3:lin"], "space: dropout: expected two numbers, the lower first, then"),
        (["dropout=0..0.3:log"], "space: dropout: expected numbers above 0 for :log, got 0..0.3"),
        (["dropout=nan..1"], "space: dropout: expected float or none, got 'nan'"),
        (["dropout=0,1", "dropout=0,2"], "space: expected each name once, got dropout twice"),
    ],
)
def test_what_is_no_space_is_told(texts, message):
    with pytest.raises(ValueError) as error:
        parse_space(texts)
    assert str(error.value).startswith(message)
