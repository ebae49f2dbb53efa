"""Beside transformers: the losses of a fine-tuning run, and the predictions of what it saved."""

import itertools
import json
import math
import random

import numpy as np
import pytest
import torch

from bert.saving import save_pretrained
from bert.tokenization import Tokenizer
from bert.training.hardware import choose_hardware
from bert.training.log import read_log
from finetune.classification import predict_logits
from finetune.data import TokenRows
from finetune.predictor import Predictor
from finetune.prepare import prepare
from finetune.run import finetune as run_it
from tests.finetune.conftest import WORDS, planted, planted_pairs, write_tsv

transformers = pytest.importorskip("transformers")

STEPS = 12


def theirs_padded(tokenizer, rows, max_length):
    """A padded batch, tokenized by transformers."""
    texts = [row[0] for row in rows]
    pairs = [row[1] for row in rows] if len(rows[0]) == 3 else None
    return tokenizer(
        texts, pairs, padding=True, truncation=True, max_length=max_length, return_tensors="pt"
    )


def their_losses(directory, rows, config, batches, rates):
    """Fine-tune transformers' model from the same weights, in the same order; a loss a step."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(directory).train()
    decayed = [p for n, p in model.named_parameters() if n.endswith("weight") and p.ndim == 2]
    others = [p for n, p in model.named_parameters() if not (n.endswith("weight") and p.ndim == 2)]
    training = config.training
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": training.weight_decay},
         {"params": others, "weight_decay": 0.0}],
        betas=training.betas, eps=training.eps,
    )  # fmt: skip
    classes = sorted({row[-1] for row in rows})
    losses = []
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        window = range(step * training.accumulation, (step + 1) * training.accumulation)
        chosen = [rows[i] for index in window for i in batches.chosen(index)]
        labels = torch.tensor([classes.index(row[-1]) for row in chosen])
        loss = model(**theirs_padded(tokenizer, chosen, config.max_length), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses


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
    prepared = prepare(config)
    model = prepared.build_model(choose_hardware(config.training))
    save_pretrained(model, tmp_path / "initial", prepared.tokenizer)

    run_it(config)
    steps = list(read_log(config.out / "log.jsonl", "step"))
    ours = [step["loss"] for step in steps]
    theirs = their_losses(
        tmp_path / "initial", rows, config, prepared.batches, [s["learning_rate"] for s in steps]
    )
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
    pairs = list(zip(texts(12, 2), texts(12, 3), strict=True))
    theirs = [pipeline(text, top_k=None, truncation=True) for text in singles]
    theirs += [
        pipeline({"text": a, "text_pair": b}, top_k=None, truncation=True) for a, b in pairs
    ]

    ours = Predictor.load(learned.model, device="cpu").classify(
        [(text, None) for text in singles] + pairs
    )
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
