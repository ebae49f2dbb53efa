"""Sets of classes: learned as transformers learns them, and scored by the definitions."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from bert.finetuning import BertForSequenceClassification
from finetune.predictor import Predictor
from finetune.run import finetune as run_it
from finetune.tasks.multi_label import MultiLabel, score_sets
from tests.finetune.conftest import TINY, sentence, write_tsv

transformers = pytest.importorskip("transformers")
from tests.finetune.theirs import both_losses  # noqa: E402

STEPS = 20
TOLERANCE = 5e-6
"""Of a step's loss; the greatest difference seen in 20 steps was 1.6e-7."""


def tagged(rows, seed):
    """A text with "yes" in it is agreeing, one with "no" is denying, some are both or neither."""
    rng = random.Random(seed)
    found = []
    for _ in range(rows):
        keys = {"yes": rng.random() < 0.5, "no": rng.random() < 0.5}
        text = " ".join([sentence(rng), *(key for key, there in keys.items() if there)])
        labels = [n for n, key in (("agrees", "yes"), ("denies", "no")) if keys[key]]
        found.append((text, "|".join(labels)))
    return found


@pytest.fixture
def config(make_config, tmp_path):
    def configure(rows, training=None, **changes):
        fields = {
            "task": "multi-label",
            "options": ("separator=|",),
            "train_file": write_tsv(tmp_path / "train.tsv", rows, ("text", "labels")),
            "validation_file": None,
            "test_file": None,
        }
        return make_config(training, **fields | changes)

    return configure


def test_planted_classes_are_learned(config, tmp_path):
    held_out = tmp_path / "test.jsonl"
    rows = [(text, labels.split("|") if labels else []) for text, labels in tagged(80, 2)]
    held_out.write_text("\n".join(json.dumps({"text": t, "labels": s}) for t, s in rows))
    options = ("separator=|", "threshold=0.4")
    run = config(tagged(300, 0), {"budget": "80"}, test_file=held_out, options=options)
    result = run_it(run)
    assert result.scores["test"].micro_f1 > 0.85
    assert "probability of 0.4 on" in (result.run_dir / "report.txt").read_text()

    predictor = Predictor.load(result.model)
    assert predictor.task == MultiLabel(threshold=0.4, separator="|")
    answers = predictor.answer([(text, None) for text, _ in rows])
    right = [sorted(a["labels"]) == sorted(s) for a, (_, s) in zip(answers, rows, strict=True)]
    assert np.mean(right) == pytest.approx(result.scores["test"].subset_accuracy)
    assert {len(answer["labels"]) for answer in answers} >= {0, 1, 2}
    pipeline = transformers.pipeline("text-classification", str(result.model), device="cpu")
    assert pipeline.model.config.problem_type == "multi_label_classification"
    theirs = pipeline([text for text, _ in rows[:12]], top_k=None)
    for our, their in zip(answers, theirs, strict=False):
        expected = {answer["label"]: answer["score"] for answer in their}
        assert our["probabilities"] == pytest.approx(expected, abs=2e-6)


def test_the_losses_of_a_run_are_those_of_transformers(config, tmp_path):
    rows = tagged(50, 1)
    training = {"budget": str(STEPS), "learning_rate": 1e-3}
    run = config(rows, training, dropout=0.0, max_length=16, batch_size=12)
    names = ("agrees", "denies")
    labels = torch.tensor([[float(n in row[1].split("|")) for n in names] for row in rows])

    def make_feed(tokenizer):
        def feed(chosen):
            texts = [rows[i][0] for i in chosen]
            padded = tokenizer(
                texts, padding=True, truncation=True, max_length=16, return_tensors="pt"
            )
            return {**padded, "labels": labels[chosen]}

        return feed

    auto_class = transformers.AutoModelForSequenceClassification
    steps, theirs = both_losses(run, tmp_path / "initial", auto_class, make_feed)
    ours = [step["loss"] for step in steps]
    assert len(ours) == STEPS and abs(ours[0] - ours[-1]) > 0.01
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


def test_scores_are_what_their_definitions_say():
    rng = np.random.default_rng(0)
    true = (rng.random((50, 3)) < [0.5, 0.1, 0.0]).astype(np.float32)  # one class is never met
    logits = rng.normal(0, 2, (50, 3)).astype(np.float32)
    scores = score_sets(logits, true, ("a", "b", "c"), 0.25)
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    found = probability >= 0.25

    def f1(true, found):
        both = (true * found).sum()
        return 2 * both / (true.sum() + found.sum()) if both else 0.0

    assert scores.micro_f1 == pytest.approx(f1(true, found), abs=1e-12)
    each = [f1(true[:, i], found[:, i]) for i in range(3)]
    assert scores.macro_f1 == pytest.approx(np.mean(each), abs=1e-12)
    assert scores.subset_accuracy == np.mean((true == found).all(1))
    right = np.where(true == 1, probability, 1 - probability)
    assert scores.loss == pytest.approx(-np.log(right).mean(), abs=1e-9)
    assert scores.per_class["c"]["support"] == 0
    # Logits that a float32 sigmoid would round to 0 or 1 have a finite loss.
    assert np.isfinite(score_sets(np.array([[99.0, -999]]), true[:1, :2], ("a", "b"), 0.5).loss)


@pytest.mark.errors
@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        (
            [("a", "x|y"), ("b", "x|x")],
            {},
            "line 3, column 'labels': expected each label once, got 'x' twice",
        ),
        ([("a", "x||y")], {}, "line 2, column 'labels': expected a label, got nothing"),
        ([("a", "x"), ("b", "")], {}, "expected two classes or more, got only 'x'"),
        ([("a", ""), ("b", "")], {}, "expected two classes or more, got none"),
        (
            [("a", "x|y")],
            {"class_names": ("x", "z")},
            "line 2, column 'labels': expected a class that is trained (x, z), or 0 to 1, got 'y'",
        ),
        (
            [("a", "x|y")],
            {"options": ("threshold=1",)},
            "options: threshold: expected a probability in (0, 1), got 1.0",
        ),
        (
            [("a", "x|y")],
            {"options": ("separator= ",)},
            "options: separator: expected a text of something else than spaces, got ' '",
        ),
    ],
)
def test_what_can_not_be_learned_is_told_with_its_place(config, rows, changes, message):
    with pytest.raises(ValueError) as error:
        run_it(config(rows, **changes))
    assert str(error.value).endswith(message)


@pytest.mark.errors
def test_a_list_must_be_one(config, tmp_path):
    path = tmp_path / "odd.jsonl"
    path.write_text('{"text": "a", "label": ["x", "y"]}\n{"text": "b", "label": 3}\n')
    with pytest.raises(ValueError) as error:
        run_it(config([("a", "x")], train_file=path))
    assert str(error.value) == f"{path}, line 2, column 'label': expected a list of labels, got 3"


@pytest.mark.errors
def test_a_model_of_another_problem_is_refused(tokenizer):
    with pytest.raises(ValueError, match="problem_type multi_label_classification, got None"):
        Predictor(MultiLabel(), BertForSequenceClassification(replace(TINY)), tokenizer)
