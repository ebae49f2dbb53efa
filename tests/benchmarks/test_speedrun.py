"""The harness of the speedrun on made-up documents: what is judged, what the budget holds."""

import itertools
import json
import lzma
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import speedrun
from benchmarks.speedrun import Speedrun, configure, describe, judge, measure, open_text
from benchmarks.speedrun_recipes import BEST, PLAIN, RECIPES
from bert.checkpoint import load_pretrained
from bert.config import BertConfig
from bert.pretraining import BertForPreTraining
from bert.training.log import read_log
from pretrain.batches import held_out_batches
from pretrain.config import CONFIG_DEFAULTS
from pretrain.recipes import RECIPES as OF_THE_COMMAND
from tests.pretrain.texts import make_documents, write_text

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


@pytest.fixture
def books(tmp_path, monkeypatch):
    """Books of their own, a small recipe, and a clock that goes on by a twentieth at each look."""
    home = tmp_path / "books"
    home.mkdir()
    for name, documents, seed in (("train-00", 60, 0), ("validation", 12, 1)):
        text = write_text(tmp_path / "text", make_documents(documents, seed)).read_bytes()
        (home / f"{name}.txt.xz").write_bytes(lzma.compress(text))
    small = PLAIN.but(shape=SMALL, tokens_per_batch=512)
    vectors = small.but(word_vectors=True, phases=("64:256:0.75", "128:512:0.25"))
    monkeypatch.setattr(speedrun, "BOOKS", home)
    monkeypatch.setitem(RECIPES, "small", small)
    monkeypatch.setitem(RECIPES, "vectors", vectors)
    ticks = itertools.count()
    monkeypatch.setitem(speedrun.CLOCKS, "wall", lambda: 0.05 * next(ticks))
    return home


def settings(tmp_path, *recipes, **changes):
    asked = {"budget": "4s", "threads": 1, "vocab_size": 60, "tokens": 8192, **changes}
    return Speedrun(recipes, runs=tmp_path / "runs", out=tmp_path / "out.jsonl", **asked)


def test_a_recipe_is_trained_judged_and_saved(books, tmp_path):
    line = measure("small", settings(tmp_path, "small"))
    assert line is not None
    assert line["steps"] > 3 and 3.5 < line["seconds"] < 4.2
    assert line["mlm_loss"] < math.log(60)  # what an ignorant network has
    assert json.loads(json.dumps(line)) == line | {"shape": dict(line["shape"])}
    assert "small" in describe(line)

    # What was saved is what was judged.
    corpus, held_out, tokenizer = open_text(tmp_path / "runs", 60)
    (model_directory,) = (tmp_path / "runs").glob("small-*/model")
    model = load_pretrained(model_directory, BertForPreTraining)
    again = judge(model, corpus, held_out, tokenizer, 8192)
    assert again == {name: line[name] for name in again}


def test_what_is_done_before_the_first_step_is_in_the_budget(books, tmp_path, monkeypatch):
    counted = speedrun.start
    now, past = speedrun.CLOCKS["wall"], SimpleNamespace(seconds=0.0)

    def count(*given):
        past.seconds = 3.0
        counted(*given)

    monkeypatch.setitem(speedrun.CLOCKS, "wall", lambda: now() + past.seconds)
    monkeypatch.setattr(speedrun, "start", count)
    line = measure("vectors", settings(tmp_path, "vectors"))
    assert line is not None
    assert 3.0 <= line["seconds_before_training"] < 3.2
    assert 3.5 < line["seconds"] < 4.2  # a step, an evaluation, a look at the clock more


def test_an_ignorant_network_costs_the_logarithm_of_the_vocabulary(books, tmp_path):
    corpus, held_out, tokenizer = open_text(tmp_path / "runs", 60)
    size = tokenizer.vocab_size
    config = BertConfig(**SMALL, vocab_size=size, max_position_embeddings=128)
    model = BertForPreTraining(config)
    torch.nn.init.zeros_(model.bert.embeddings.word.weight)
    results = judge(model, corpus, held_out, tokenizer, 10**9)
    assert results["mlm_loss"] == pytest.approx(math.log(size), rel=1e-6)

    # A word has as many pieces as the text has on average where all of its words are masked alike.
    words = [t for t in tokenizer.vocab if not t.startswith("##")]
    is_word = np.isin(np.arange(size), [tokenizer.vocab.index(t) for t in words])
    pieces = len(held_out.tokens) / is_word[held_out.tokens].sum()
    assert results["nats_per_word"] / math.log(size) == pytest.approx(pieces, rel=0.1)
    assert results["words"] > 100


def test_recipes_are_judged_on_the_same_pairs(books, tmp_path, monkeypatch):
    seen = []

    def keep(*given, **named):
        seen.append(held_out_batches(*given, **named))
        return seen[-1]

    monkeypatch.setattr(speedrun, "held_out_batches", keep)
    asked = settings(tmp_path, "small", "vectors", seed=3)
    lines = [measure(name, asked) for name in asked.recipes]
    assert lines[0]["unigram_loss"] == lines[1]["unigram_loss"]
    assert lines[0]["words"] == lines[1]["words"]
    for one, other in zip(*seen, strict=True):
        assert torch.equal(one.packed.input_ids, other.packed.input_ids)
        assert torch.equal(one.masked_labels, other.masked_labels)


def test_a_batch_is_cut_for_several_processes_and_nothing_else_changes(books, tmp_path):
    whole = configure("vectors", settings(tmp_path, "vectors"))
    halves = configure("vectors", settings(tmp_path, "vectors", accumulation=2))
    assert (whole.tokens_per_batch, halves.tokens_per_batch) == (512, 256)
    assert [phase.tokens_per_batch for phase in halves.parsed_phases()] == [128, 256]
    assert halves.training.accumulation == 2
    same = {"tokens_per_batch": 512, "phases": (), "training": whole.training}
    assert replace(whole, **same) == replace(halves, **same)


def test_it_trains_as_the_recipe_says(books, tmp_path):
    assert measure("vectors", settings(tmp_path, "vectors"))
    log = tmp_path / "runs" / "vectors-60-4s-0" / "run" / "log.jsonl"
    start = next(read_log(log, "start"))
    assert start["config"]["learning_rate"] == PLAIN.training["learning_rate"]
    tokens = [line["tokens"] for line in read_log(log, "step")]
    steps = np.diff([0, *tokens])
    assert steps[0] <= 256 < steps[-1] <= 512


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_a_configuration_of_bert_pretrain(name, tmp_path):
    asked = Speedrun((name,), runs=tmp_path)
    config = configure(name, asked)
    shape = BertConfig.load(tmp_path / f"{name}-8192-30min-0" / "shape.json")
    assert shape.hidden_size % shape.num_attention_heads == 0
    assert config.training.budget == "30min"
    recipe = RECIPES[name]
    for field, value in {**recipe.pretraining, **recipe.training}.items():
        place = config if field in recipe.pretraining else config.training
        assert getattr(place, field) == value


@pytest.mark.errors
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipes": ("plane",)}, "recipes: expected any of plain"),
        ({"budget": "500"}, "budget: expected a time such as 30min, got '500'"),
        ({"accumulation": 0}, "accumulation: expected 1 or more, got 0"),
        ({"tokens": 0}, "tokens: expected 1 or more, got 0"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Speedrun(**{"recipes": ("plain",), **changes})


def test_the_command_has_a_recipe_that_is_the_best_one():
    recipe = OF_THE_COMMAND["speedrun-books"]
    shape = BertConfig.preset(recipe["model"])
    assert {name: getattr(shape, name) for name in BEST.shape} == BEST.shape
    assert {name: recipe[name] for name in BEST.pretraining} == BEST.pretraining
    best = replace(CONFIG_DEFAULTS, **BEST.training)
    for name in ("optimizer", "learning_rate", "warmup", "betas", "eps", "weight_decay"):
        assert getattr(recipe["training"], name) == getattr(best, name), name
