"""Numbers: learned as transformers learns them, and scored by the definitions."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from bert.finetuning import BertForSequenceClassification
from bert.saving import save_pretrained
from finetune.predictor import Predictor
from finetune.run import finetune as run_it
from finetune.tasks.regression import Regression, score_numbers
from tests.finetune.conftest import TINY, planted, planted_pairs, write_tsv

transformers = pytest.importorskip("transformers")
from tests.finetune.theirs import both_losses  # noqa: E402

STEPS = 20
TOLERANCE = 5e-6
"""Of a step's loss; the greatest difference seen in 20 steps was 4.0e-7."""


def rated(rows):
    """Good texts have high numbers."""
    rng = random.Random(9)
    return [(*texts, round(2 * (label == "good") + rng.random(), 3)) for *texts, label in rows]


@pytest.fixture
def config(make_config, tmp_path):
    def configure(rows, training=None, header=("text", "score"), **changes):
        fields = {
            "task": "regression",
            "train_file": write_tsv(tmp_path / "train.tsv", rows, header),
            "validation_file": None,
            "test_file": None,
        }
        made = make_config(training, **fields | changes)
        return replace(made, columns=replace(made.columns, label=header[-1]))

    return configure


def test_a_planted_number_is_learned(config, tmp_path):
    held_out = write_tsv(tmp_path / "test.tsv", rated(planted(80, 2)), ("text", "score"))
    result = run_it(config(rated(planted(300, 0)), {"budget": "80"}, test_file=held_out))
    scores = result.scores["test"]
    assert scores.pearson > 0.8 and scores.mse < 0.5
    assert "Spearman" in (result.run_dir / "report.txt").read_text()
    assert "to rate texts with a number" in (result.model / "README.md").read_text()

    texts = [text for text, _ in planted(12, 3)]
    ours = [a["score"] for a in Predictor.load(result.model).answer([(t, None) for t in texts])]
    pipeline = transformers.pipeline("text-classification", str(result.model), device="cpu")
    assert pipeline.model.config.problem_type == "regression"
    np.testing.assert_allclose(ours, [p["score"] for p in pipeline(texts)], rtol=0, atol=1e-5)
    assert max(ours) - min(ours) > 0.5


def test_the_losses_of_a_run_are_those_of_transformers(config, tmp_path):
    rows = rated(planted_pairs(50, 1))
    run = config(
        rows, {"budget": str(STEPS), "learning_rate": 1e-3}, ("text_a", "text_b", "score"),
        dropout=0.0, max_length=16, batch_size=12,
    )  # fmt: skip
    labels = torch.tensor([row[-1] for row in rows])

    def make_feed(tokenizer):
        def feed(chosen):
            texts = [[rows[i][column] for i in chosen] for column in (0, 1)]
            padded = tokenizer(
                *texts, padding=True, truncation=True, max_length=16, return_tensors="pt"
            )
            return {**padded, "labels": labels[chosen]}

        return feed

    auto_class = transformers.AutoModelForSequenceClassification
    steps, theirs = both_losses(run, tmp_path / "initial", auto_class, make_feed)
    ours = [step["loss"] for step in steps]
    assert len(ours) == STEPS and abs(ours[0] - ours[-1]) > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


def test_scores_are_what_their_definitions_say():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, 200).astype(np.float32)  # with many ties
    found = (labels + rng.normal(0, 2, 200)).astype(np.float32)
    scores = score_numbers(found, labels)

    def correlation(a, b):
        a, b = a - a.mean(), b - b.mean()
        return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())

    def ranks(values):  # of equal ones the mean
        return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])

    a, b = found.astype(np.float64), labels.astype(np.float64)
    assert scores.pearson == pytest.approx(correlation(a, b), abs=1e-12)
    assert scores.spearman == pytest.approx(correlation(ranks(a), ranks(b)), abs=1e-12)
    assert scores.mse == pytest.approx(((a - b) ** 2).mean(), abs=1e-12)
    assert scores.mean_error == pytest.approx(abs(a - b).mean(), abs=1e-12)


def test_a_constant_guess_has_a_correlation_of_zero():
    scores = score_numbers(np.full(4, 2.0), np.array([1.0, 2.0, 3.0, 4.0]))
    assert (scores.pearson, scores.spearman, scores.mse) == (0.0, 0.0, 1.5)


@pytest.mark.errors
@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([("a", 1), ("b", "x")], {}, "line 3, column 'score': expected a number, got \"x\""),
        ([("a", 1), ("b", "")], {}, "line 3, column 'score': expected a number, got \"\""),
        ([("a", "nan")], {}, "line 2, column 'score': expected a number, got \"nan\""),
        ([("a", "1e39")], {}, "line 2, column 'score': expected a number, got \"1e39\""),
        ([("a", 2), ("b", 2)], {}, "train.tsv: expected labels that differ, got only 2"),
        (
            [("a", 1), ("b", 2)],
            {"class_names": ("x", "y")},
            "class_names: expected none in regression, got ('x', 'y')",
        ),
    ],
)
def test_what_is_no_number_is_told_with_its_place(config, rows, changes, message):
    with pytest.raises(ValueError) as error:
        run_it(config(rows, **changes))
    assert str(error.value).endswith(message)


@pytest.mark.errors
def test_a_classifier_is_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="^model: expected one output, got 2"):
        Predictor(Regression(), BertForSequenceClassification(TINY), tokenizer)


def test_a_model_of_transformers_is_known_by_its_head(tokenizer, tmp_path):
    model = BertForSequenceClassification(TINY.with_labels(["LABEL_0"]))  # names no task
    save_pretrained(model, tmp_path, tokenizer)
    (answer,) = Predictor.load(tmp_path).answer([("ban", None)])
    assert list(answer) == ["score"]
