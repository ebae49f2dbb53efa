"""The recipes fit the configuration, the repository's books, and one another."""

from dataclasses import fields
from pathlib import Path

import pytest

from bert.config import BertConfig
from pretrain.config import PretrainConfig
from pretrain.recipes import RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_whole_configuration(name):
    config = PretrainConfig(out=Path("o"), **RECIPES[name])
    assert set(RECIPES[name]) <= {field.name for field in fields(PretrainConfig)}
    assert all(path.exists() for path in (*config.files, *config.validation_files))
    assert not set(config.files) & set(config.validation_files)
    total = config.training.total().seconds
    every = config.training.every("evaluate_every")
    assert total is not None and every is not None and every.seconds is not None
    assert total / every.seconds >= 10  # points enough for a curve


def test_tiny_and_mini_are_the_published_sizes():
    shapes = [BertConfig.preset(RECIPES[name]["model"]) for name in ("tiny-books", "mini-books")]
    assert [(s.num_hidden_layers, s.hidden_size) for s in shapes] == [(2, 128), (4, 256)]
