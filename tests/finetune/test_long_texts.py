"""Texts in windows: the cutting, the pooling, the weights, a run with its files and answers."""

import itertools
import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from bert.finetuning import BertForSequenceClassification
from finetune import tasks
from finetune.batches import TokenRows
from finetune.config import Columns
from finetune.evaluation.config import EvaluateConfig
from finetune.evaluation.evaluate import evaluate
from finetune.evaluation.predictions import read_predictions
from finetune.long_texts import cut_windows, pool
from finetune.predictor import Predictor
from finetune.run import finetune as run_it
from finetune.sequences import predict_logits
from finetune.tasks.classification import Classification
from tests.finetune.conftest import (
    TINY,
    WORDS,
    planted_pairs,
    same,
    sentence,
    weights,
    write_tsv,
)

WINDOW, STRIDE = 16, 4
OPTIONS = (f"window={WINDOW}", f"stride={STRIDE}")
TASK = tasks.configured("classification", OPTIONS)
assert isinstance(TASK, Classification)


def late(rows, seed):
    """The key word comes after the first window: nothing before it tells anything."""
    rng = random.Random(seed)
    labels = [rng.choice(("bad", "good")) for _ in range(rows)]
    before = [rng.randint(WINDOW - 2, 2 * WINDOW) for _ in labels]
    return [
        (f"{' '.join(rng.choices(WORDS, k=k))} {'yes' if label == 'good' else 'no'} "
         f"{sentence(rng)}", label)
        for k, label in zip(before, labels, strict=True)
    ]  # fmt: skip


def some_texts(count, seed=0, longest=70):
    rng = random.Random(seed)
    return [" ".join(rng.choices([*WORDS, "yes", "no"], k=rng.randint(0, longest)))
            for _ in range(count)]  # fmt: skip


def ids(rows):
    return [rows.input_ids[a:b].tolist() for a, b in itertools.pairwise(rows.offsets)]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    found = BertForSequenceClassification(TINY.with_labels(["bad", "fair", "good"]))
    with torch.no_grad():
        found.classifier.weight.mul_(5)  # so that windows differ in what they say
    return found.eval()


@pytest.mark.parametrize("window, stride", [(8, 0), (8, 5), (16, 4), (40, 39 - 2)])
def test_windows_are_those_of_transformers(tokenizer, tmp_path, window, stride):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = some_texts(40, seed=window)
    whole = TokenRows.from_encodings(tokenizer.encode_batch(texts))
    cut, edges = cut_windows(whole, window, stride)
    assert edges[0] == 0 and edges[-1] == len(cut) and len(edges) == len(texts) + 1
    assert not cut.token_type_ids.any() and cut.lengths.max() == window
    for text, first, end in zip(texts, edges, edges[1:], strict=False):
        expected = theirs(
            text, truncation=True, max_length=window, stride=stride,
            return_overflowing_tokens=True,
        )["input_ids"]  # fmt: skip
        assert ids(cut)[first:end] == expected


def test_no_text_makes_no_window():
    cut, edges = cut_windows(TokenRows.from_encodings([]), 8, 2)
    assert len(cut) == 0 and edges.tolist() == [0]


def test_the_pooled_answer_is_a_mean_of_probabilities_or_their_greatest():
    logits = np.random.default_rng(0).normal(0, 3, (6, 3))
    logits[3] *= 300  # whose probabilities are 0 and 1
    edges = np.array([0, 1, 4, 6])
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    for pooling, function in (("mean", np.mean), ("max", np.max)):
        found = pool(logits, edges, pooling)
        assert np.array_equal(found[0], logits[0])
        for row, (first, end) in enumerate([(1, 4), (4, 6)], start=1):
            expected = function(shares[first:end], axis=0)
            np.testing.assert_allclose(np.exp(found[row]), expected, rtol=1e-12, atol=1e-300)
        assert np.isfinite(found).all() and pool(logits.astype("f4"), edges, pooling).dtype == "f4"
    logits[5, 1] = np.inf
    found = pool(logits, edges, "mean")
    assert np.isfinite(found[:2]).all() and not np.isfinite(found[2]).all()


@pytest.mark.parametrize("weighing", [TASK, replace(TASK, class_weights="bad:2.5,good:0.5")])
def test_a_text_counts_the_same_however_many_windows_it_has(tokenizer, model, tmp_path, weighing):
    texts = [(text, "good" if i % 3 else "bad") for i, text in enumerate(some_texts(20, 3))]
    path = write_tsv(tmp_path / "a.tsv", texts)
    rows = TASK._read(path, Columns(), tokenizer, WINDOW, ("bad", "fair", "good"))
    sizes = rows.describe()["windows"], len(rows), len(rows.lengths)
    assert sizes[0] == sizes[2] > sizes[1] == 20 and "windows in all" in str(rows)
    assert rows.describe()["long_texts"] == sum(
        len(text.split()) > WINDOW - 2 for text, _ in texts
    )

    # An epoch's sums over windows, in any batches, are those of the texts' mean losses.
    objective = weighing.objective(model, rows)
    order = np.random.default_rng(0).permutation(len(rows.lengths))
    batches = [rows.batch(order[i : i + 7]) for i in range(0, len(order), 7)]
    with torch.no_grad():
        found = sum(objective(b, torch.tensor(0))["cross_entropy"].item() for b in batches)
    terms = sum(objective.counts(b)["cross_entropy"] for b in batches)
    logits = torch.from_numpy(predict_logits(model, rows.tokens))
    expected, counted = 0.0, 0.0
    for label, first, end in zip(rows.labels, rows.edges, rows.edges[1:], strict=False):
        weight = 1.0 if weighing is TASK else [2.5, 1.0, 0.5][label]
        expected -= weight * logits[first:end].log_softmax(-1)[:, label].mean().item()
        counted += weight
    assert found == pytest.approx(expected, rel=1e-5)
    assert terms == pytest.approx(counted, rel=1e-12)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_texts_are_answered_together_as_alone(tokenizer, model, pooling):
    predictor = Predictor(replace(TASK, pooling=pooling), model, tokenizer, batch_tokens=60)
    texts = [(text, None) for text in some_texts(30, 5)]
    together = predictor.answer(texts)
    alone = [predictor.answer([text])[0] for text in texts]
    plain = Predictor(Classification(), model, tokenizer).answer(texts)
    assert predictor.full == 0
    differ = 0
    for text, one, other, cut in zip(texts, together, alone, plain, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=2e-6)
        if len(text[0].split()) <= WINDOW - 2:
            assert one["probabilities"] == pytest.approx(cut["probabilities"], abs=2e-6)
        else:
            differ += abs(one["probabilities"]["good"] - cut["probabilities"]["good"]) > 1e-3
    assert differ > 10


def test_where_every_text_fits_a_run_is_the_same_to_the_bit(make_config, tmp_path):
    no_reports = {"validation_file": None, "test_file": None}
    for name, options in (("plain", ()), ("windows", ("window=32",))):
        out = tmp_path / name
        run_it(make_config({"budget": "8"}, out=out, options=options, **no_reports))
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "windows"))


@pytest.fixture(scope="module")
def planted_late(configured, tmp_path_factory):
    """A configuration of texts whose key word is beyond what fits."""
    path = tmp_path_factory.mktemp("late")
    files = {
        f"{name}_file": write_tsv(path / f"{name}.tsv", late(count, seed))
        for seed, (name, count) in enumerate({"train": 150, "validation": 40, "test": 60}.items())
    }

    def configure(**changes):
        fields = {"max_length": WINDOW, "out": path / "run", **files}
        return configured({"budget": "130"}, **fields | changes)

    return configure


@pytest.fixture(scope="module")
def long_run(planted_late):
    return run_it(planted_late(options=OPTIONS))


@pytest.mark.slow
def test_a_word_beyond_the_first_window_is_learned_with_windows_only(
    long_run, planted_late, tmp_path
):
    assert long_run.scores["test"].accuracy > 0.9
    blind = run_it(planted_late(out=tmp_path / "blind"))
    assert blind.scores["test"].accuracy < 0.75


def test_reports_predictions_and_the_saved_model_agree(long_run, planted_late, tmp_path):
    assert tasks.of_model(long_run.model) == TASK
    card = (long_run.model / "README.md").read_text()
    assert "A text of more than 16 tokens is read in windows that share 4, and the mean" in card
    described = json.loads((long_run.run_dir / "run.json").read_text())["data"]["test"]
    assert described["rows"] == 60 and described["long_texts"] == 60 < described["windows"]

    file = planted_late().test_file
    written = read_predictions(long_run.run_dir / "test" / "predictions.jsonl")
    assert (written.predicted == written.labels).mean() == long_run.scores["test"].accuracy
    config = EvaluateConfig(
        long_run.model, file, tmp_path / "out", device="cpu", threads=1, noise=("words",),
        noise_rates=(1.0,),
    )  # fmt: skip
    evaluate(config)
    again = read_predictions(tmp_path / "out" / "predictions.jsonl")
    np.testing.assert_allclose(again.logits, written.logits, rtol=0, atol=1e-5)
    about = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert about["max_length"] == WINDOW
    texts = [line.split("\t")[0] for line in file.read_text().splitlines()[1:]]
    answers = Predictor.load(long_run.model, device="cpu").answer([(t, None) for t in texts])
    for row, answer in enumerate(answers):
        expected = np.exp(written.log_probabilities[row])
        found = [answer["probabilities"][name] for name in written.class_names]
        assert found == pytest.approx(expected, abs=2e-5)


# --- mistakes --------------------------------------------------------------------------------


@pytest.mark.errors
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["window=7"], "window: expected 8 tokens or more, got 7"),
        (["stride=4"], "stride: expected none without window, got 4"),
        (["pooling=max"], "pooling: expected mean without window, got 'max'"),
        (["window=16", "stride=14"], "stride: expected 0 to 13, for windows of 16 tokens, got 14"),
        (["window=16", "stride=-1"], "stride: expected 0 to 13, for windows of 16 tokens, got -1"),
        (["window=16", "resample=true"], "resample: expected false with window, got True"),
        (["window=16", "pooling=sum"], "pooling: expected one of mean, max, got 'sum'"),
    ],
)
def test_a_wrong_option_is_told(given, message):
    with pytest.raises(ValueError) as error:
        tasks.configured("classification", given)
    assert str(error.value) == f"options: {message}"
    with pytest.raises(ValueError, match="^pooling: expected mean or max, got 'sum'$"):
        Classification(window=16, pooling="sum")


@pytest.mark.errors
def test_a_window_of_another_length_is_refused(make_config):
    with pytest.raises(ValueError, match="^options: window: expected 32, as max_length, got 16$"):
        run_it(make_config(options=("window=16",)))


@pytest.mark.errors
def test_a_model_is_not_asked_for_less_than_its_windows(tokenizer, model):
    predictor = Predictor(TASK, model, tokenizer, max_length=12)
    with pytest.raises(ValueError, match="^max_length: expected at least 16, the window that"):
        predictor.answer([("yes", None)])


@pytest.mark.errors
def test_pairs_are_refused(make_config, tokenizer, model, tmp_path):
    header = ("text_a", "text_b", "label")
    pairs = write_tsv(tmp_path / "pairs.tsv", planted_pairs(9, 0), header)
    with pytest.raises(ValueError, match="pairs.tsv: expected single texts, since long ones are"):
        run_it(make_config(train_file=pairs, options=("window=32",)))
    answers = Predictor(TASK, model, tokenizer).answer([("yes", "no"), ("yes", None)])
    assert answers[0] == "expected a single text: long ones are read in windows"
    assert isinstance(answers[1], dict)
