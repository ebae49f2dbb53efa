"""Beside transformers: the losses of a fine-tuning run, and the predictions of what it saved."""

import itertools
import json
import math
import random

import numpy as np
import pytest
import torch

from bert.tokenization import Tokenizer
from bert.training.hardware import choose_hardware
from finetune.batches import TokenRows
from finetune.predictor import Predictor
from finetune.prepare import prepare
from finetune.run import finetune as run_it
from finetune.sequences import predict_logits
from tests.finetune.conftest import WORDS, planted, planted_pairs, write_tsv

transformers = pytest.importorskip("transformers")
from tests.finetune.theirs import both_losses  # noqa: E402

STEPS = 12


@pytest.mark.parametrize("kind", ["single", "pair"])
def test_the_losses_of_a_run_are_those_of_transformers(make_config, tmp_path, kind):
    # 50 rows in micro-batches of 12: the last of an epoch is ragged, and windows cross epochs.
    rows = planted(50, 1) if kind == "single" else planted_pairs(50, 1)
    header = ("text", "label") if kind == "single" else ("text_a", "text_b", "label")
    config = make_config(
        {"budget": str(STEPS), "learning_rate": 2e-3, "accumulation": 2, "max_grad_norm": 0.5},
        train_file=write_tsv(tmp_path / "train.tsv", rows, header),
        validation_file=None,
        test_file=None,
        dropout=0.0,
        max_length=16,  # some rows are cut
        batch_size=12,
    )
    labels = torch.tensor([["bad", "good"].index(row[-1]) for row in rows])
    columns = list(zip(*rows, strict=True))[:-1]

    def make_feed(tokenizer):
        def feed(chosen):
            texts = [[column[i] for i in chosen] for column in columns]
            padded = tokenizer(
                *texts, padding=True, truncation=True, max_length=16, return_tensors="pt"
            )
            return {**padded, "labels": labels[chosen]}

        return feed

    auto_class = transformers.AutoModelForSequenceClassification
    steps, theirs = both_losses(config, tmp_path / "initial", auto_class, make_feed)
    ours = [step["loss"] for step in steps]
    assert len(ours) == STEPS
    assert max(step["grad_norm"] for step in steps) > 0.5  # so that clipping is seen
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    assert abs(ours[0] - ours[-1]) > 0.01  # so that the steps are seen


def texts(count, seed):
    rng = random.Random(seed)
    return [" ".join(rng.choices([*WORDS, "yes", "no", "odd", "YES"], k=rng.randint(0, 60)))
            for _ in range(count)]  # fmt: skip


def test_transformers_pipeline_predicts_the_same_from_the_saved_directory(learned):
    pipeline = transformers.pipeline("text-classification", str(learned.model), device="cpu")
    singles = texts(20, 1)
    theirs = [pipeline(text, top_k=None, truncation=True) for text in singles]
    ours = Predictor.load(learned.model, device="cpu").answer([(text, None) for text in singles])
    labels = set()
    for our, their in zip(ours, theirs, strict=True):
        expected = {answer["label"]: answer["score"] for answer in their}
        assert our["probabilities"] == pytest.approx(expected, abs=2e-6)
        assert our["label"] == their[0]["label"]
        labels.add(our["label"])
    assert labels == {"bad", "good"}


def test_logits_do_not_depend_on_the_batches(make_config):
    prepared = prepare(make_config())
    model = prepared.build_model(choose_hardware(prepared.config.training)).double().eval()
    rows = prepared.rows["test"].tokens
    ids, types = rows.input_ids, rows.token_type_ids
    alone = np.concatenate(
        [
            predict_logits(model, TokenRows(ids[a:b], types[a:b], np.array([0, b - a])))
            for a, b in itertools.pairwise(rows.offsets)
        ]
    )  # fmt: skip
    for budget in (1, 50, 10_000):
        together = predict_logits(model, rows, budget)
        assert together.dtype == np.float64
        np.testing.assert_allclose(together, alone, rtol=0, atol=1e-12)


def test_the_saved_tokenizer_tells_transformers_where_to_cut(make_config):
    result = run_it(make_config({"budget": "1"}, dropout=0.0))
    loaded = transformers.AutoTokenizer.from_pretrained(result.model)
    assert loaded.model_max_length == 40
    assert Tokenizer.load(result.model) == Tokenizer.load(make_config().model)
    config = json.loads((result.model / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good"}
    assert math.isfinite(result.training.loss)
