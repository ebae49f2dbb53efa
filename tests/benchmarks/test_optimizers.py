"""What the benchmark of optimisers compares, its arithmetic, and two runs by a false clock."""

import itertools
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks import optimizers
from benchmarks.optimizers import (
    Candidate,
    OptimizerBenchmark,
    configure,
    measure,
    parse_candidate,
    prepare_books,
    render,
    run,
    summarise,
)
from bert.config import BertConfig
from demo import recipe
from tests.pretrain.texts import make_documents, write_text


def test_a_candidate_is_an_optimiser_and_a_rate():
    assert parse_candidate("bert_adam:5e-4") == Candidate("bert_adam:5e-4", "bert_adam", 5e-4)
    for text in OptimizerBenchmark().candidates:
        parse_candidate(text)


@pytest.mark.errors
@pytest.mark.parametrize("text", ["adamw", "adamw:", "adamw:x", "adamw:0", "adamw:inf", "sgd:1"])
def test_what_is_none_is_named(text):
    with pytest.raises(ValueError, match=f"^candidates: expected one of adamw, .*got '{text}'$"):
        run(OptimizerBenchmark(candidates=(text,)))


@pytest.mark.errors
def test_one_seed_has_no_spread():
    with pytest.raises(ValueError, match="^seeds: expected 2 or more, got 1"):
        run(OptimizerBenchmark(seeds=1))


def test_runs_differ_in_optimiser_rate_and_seed_alone(tmp_path):
    benchmark = OptimizerBenchmark(runs=tmp_path)
    configs = [
        configure(benchmark, tmp_path, parse_candidate(text), seed)
        for text, seed in itertools.product(benchmark.candidates, range(2))
    ]
    assert len({config.out for config in configs}) == 24
    same = {
        str(asdict(replace(
            config, out=Path(), seed=0,
            training=replace(config.training, optimizer="adamw", learning_rate=1.0),
        )))
        for config in configs
    }  # fmt: skip
    assert len(same) == 1
    assert configs[0].training.threads == 1
    assert configs[0].validation_files[0].name == "validation.txt.xz"
    assert not configs[0].domain_files and configs[0].word_vectors


def scores(loss, steps=10):
    return {"steps": steps, "tokens": 9, "mlm_loss": loss, "masked_loss": loss + 1,
            "mlm_accuracy": 0.5, "nsp_loss": 0.7}  # fmt: skip


def test_means_and_the_best_first():
    table = summarise(
        {"adamw:1": [scores(5.0, 10), scores(6.0, 12)], "muon:1": [scores(4.0), scores(4.5)]}
    )
    assert list(table) == ["muon:1", "adamw:1"]
    row = table["adamw:1"]
    assert (row["steps"], row["mlm_loss_mean"], row["masked_loss_mean"]) == (11, 5.5, 6.5)
    assert row["mlm_loss_sd"] == pytest.approx(0.7071, abs=1e-4) and row["nsp_loss_sd"] == 0
    head, first, second = render(table).splitlines()
    assert head.split() == ["steps", *optimizers.SHOWN]
    assert first.startswith("muon:1") and "4.250 ± 0.354" in first and "5.500 ± 0.707" in second


def test_a_run_takes_its_budget_of_the_clock_and_is_not_taken_twice(tmp_path, monkeypatch):
    shape = BertConfig(
        vocab_size=90, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64,
    )  # fmt: skip
    books = tuple(
        write_text(tmp_path / f"{name}.txt", make_documents(40, seed))
        for seed, name in enumerate(("train", "validation"))
    )
    monkeypatch.setattr(recipe, "SHAPE", shape)
    monkeypatch.setattr(optimizers, "books", lambda: books[:1])
    benchmark = OptimizerBenchmark(budget="20s", runs=tmp_path / "runs")
    data = prepare_books(benchmark.runs)
    assert prepare_books(benchmark.runs) == data
    steps = {}
    for text, pace in (("adamw:2e-3", 0.25), ("muon:4e-3", 0.5)):
        config = configure(benchmark, data, parse_candidate(text), 1)
        config = replace(config, validation_files=books[1:])
        looks = itertools.count()
        result = measure(config, lambda looks=looks, pace=pace: pace * next(looks))
        steps[text] = result["steps"]
        assert 0 < result["mlm_loss"] < 6 and result["tokens"] > 100
        assert measure(config, lambda: pytest.fail("it was run again")) == result
    # A clock that runs twice as fast leaves half of the steps, more or less.
    assert 1 < steps["adamw:2e-3"] / steps["muon:4e-3"] < 3
