"""Multiple choice: a planted rule, transformers' losses and choices, and what is refused."""

import io
import json
import lzma
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from bert.checkpoint import load_pretrained
from bert.finetuning import BertForMultipleChoice
from bert.packing import PackedBatch
from bert.saving import save_pretrained
from bert.tokenization import Tokenizer
from finetune import tasks
from finetune.choices.files import Choices
from finetune.choices.rows import ChoiceBatch
from finetune.predict import PredictConfig, predict
from finetune.predictor import Predictor
from finetune.prepare import prepare
from finetune.run import finetune as run_it
from finetune.segments import segment_cross_entropy
from finetune.tasks.multiple_choice import ChoiceObjective, MultipleChoice
from tests.finetune.conftest import TINY, WORDS, sentence, write_tsv

STEPS = 20


def planted_choices(count, seed, fewest=2, most=4):
    """The right choice is the one with the key word "yes"; the others have "no"."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        size = rng.randint(fewest, most)
        label = rng.randrange(size)
        choices = [sentence(rng, "yes" if i == label else "no") for i in range(size)]
        rows.append({"context": sentence(rng), "choices": choices, "label": label})
    return rows


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def make_choice(make_config, tmp_path):
    """A configuration for multiple choice on some rows."""

    def make(training=None, rows=None, tests=None, **changes):
        train = write_rows(tmp_path / "train.jsonl", rows or planted_choices(40, 1))
        test = tests and write_rows(tmp_path / "test.jsonl", tests)
        fields = {"train_file": train, "validation_file": None, "test_file": test}
        return make_config(training, task="multiple-choice", **fields | changes)

    return make


@pytest.fixture(scope="module")
def choosing(configured, tmp_path_factory):
    """One run on the planted rule, with questions of two to four choices."""
    path = tmp_path_factory.mktemp("choosing")
    files = {
        f"{name}_file": write_rows(path / f"{name}.jsonl", planted_choices(count, seed))
        for name, count, seed in (("train", 200, 1), ("validation", 40, 2), ("test", 60, 3))
    }
    return run_it(configured(
        {"budget": "60"}, out=path / "run", task="multiple-choice", dropout=0.0, **files
    ))  # fmt: skip


# --- what is learned -------------------------------------------------------------------------


def test_a_planted_rule_is_learned(choosing):
    scores = choosing.scores["test"]
    assert scores.accuracy > 0.95
    assert scores.questions == 60 and 1 / 4 < scores.chance < 1 / 2
    assert scores.loss < 0.3
    assert "accuracy" in scores.text and f"{scores.chance:.4f}" in scores.text


def test_what_a_run_leaves(choosing):
    config = json.loads((choosing.model / "config.json").read_text())
    assert config["architectures"] == ["BertForMultipleChoice"]
    assert type(tasks.of_model(choosing.model)) is MultipleChoice
    assert (
        "to choose the right one of several texts." in (choosing.model / "README.md").read_text()
    )
    described = json.loads((choosing.run_dir / "run.json").read_text())
    assert described["data"]["train"] | {"sha256": 0, "tokens": 0, "longest": 0} == {
        "file": described["finetune"]["train_file"],
        "sha256": 0,
        "columns": {
            "premise": "context", "question": None, "choices": ["choices"], "label": "label"
        },
        "unused_columns": [],
        "rows": 200,
        "fewest_choices": 2,
        "most_choices": 4,
        "tokens": 0,
        "longest": 0,
        "full_choices": 0,
    }  # fmt: skip
    assert described["identity"]["model"]["architectures"] == ["BertForMultipleChoice"]


def test_transformers_chooses_the_same_from_the_saved_directory(choosing):
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForMultipleChoice.from_pretrained(choosing.model).eval()
    assert type(model) is transformers.BertForMultipleChoice
    tokenizer = transformers.AutoTokenizer.from_pretrained(choosing.model)
    rows = planted_choices(25, 5)
    ours = Predictor.load(choosing.model, device="cpu").answer(
        [Choices.of(row["context"], None, row["choices"]) for row in rows]
    )
    for row, our in zip(rows, ours, strict=True):
        with torch.no_grad():
            logits = model(**their_inputs(tokenizer, row, 40)).logits[0]
        assert our["choice"] == int(logits.argmax())
        assert our["text"] == row["choices"][our["choice"]]
        assert our["probabilities"] == pytest.approx(logits.softmax(-1).tolist(), abs=2e-6)
    assert len({our["choice"] for our in ours}) > 2


def their_inputs(tokenizer, row, max_length):
    encoded = tokenizer(
        [row["context"]] * len(row["choices"]), row["choices"], padding=True, truncation=True,
        max_length=max_length, return_tensors="pt",
    )  # fmt: skip
    return {name: value[None] for name, value in encoded.items()}


def test_the_losses_of_a_run_are_those_of_transformers(make_choice, tmp_path):
    transformers = pytest.importorskip("transformers")
    from tests.finetune.theirs import both_losses

    rows = planted_choices(34, 1, fewest=3, most=3)  # theirs takes the same number of all
    config = make_choice(
        {"budget": str(STEPS), "learning_rate": 2e-3, "accumulation": 2, "max_grad_norm": 0.5},
        rows, dropout=0.0, max_length=16, batch_size=5,
    )  # fmt: skip

    def make_feed(tokenizer):
        def feed(chosen):
            flat = tokenizer(
                [rows[i]["context"] for i in chosen for _ in range(3)],
                [choice for i in chosen for choice in rows[i]["choices"]],
                padding=True, truncation=True, max_length=16, return_tensors="pt",
            )  # fmt: skip
            inputs = {name: value.view(len(chosen), 3, -1) for name, value in flat.items()}
            return {**inputs, "labels": torch.tensor([rows[i]["label"] for i in chosen])}

        return feed

    auto_class = transformers.AutoModelForMultipleChoice
    steps, theirs = both_losses(config, tmp_path / "initial", auto_class, make_feed)
    ours = [step["loss"] for step in steps]
    assert len(ours) == STEPS
    assert max(step["grad_norm"] for step in steps) > 0.5  # so that clipping is seen
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    assert abs(ours[0] - ours[-1]) > 0.01  # so that the steps are seen


def test_gradients_of_the_loss_are_those_of_transformers(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    save_pretrained(BertForMultipleChoice(TINY).double(), tmp_path, tokenizer)
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    ours = load_pretrained(tmp_path, BertForMultipleChoice, **no_dropout).train()
    theirs = transformers.BertForMultipleChoice.from_pretrained(tmp_path, dtype=torch.float64)
    ids, labels = torch.randint(5, 35, (4, 3, 9)), torch.tensor([2, 0, 1, 1])
    theirs.eval()
    loss = theirs(input_ids=ids, labels=labels).loss
    loss.backward()
    packed = PackedBatch.from_lists(ids.flatten(0, 1).tolist())
    batch = ChoiceBatch(packed, (3, 3, 3, 3), labels)
    objective = ChoiceObjective(ours)
    found = objective(batch, torch.tensor(0))["cross_entropy"] / 4
    found.backward()
    assert objective.counts(batch) == {"cross_entropy": 4}
    assert found.item() == pytest.approx(loss.item(), abs=1e-12)
    for name in ("classifier.weight", "bert.embeddings.word_embeddings.weight"):
        torch.testing.assert_close(
            ours.get_parameter(name.replace("word_embeddings", "word")).grad,
            theirs.get_parameter(name).grad, rtol=0, atol=1e-12,
        )  # fmt: skip


# --- questions of different sizes ------------------------------------------------------------


def test_a_segments_softmax_is_its_own():
    logits = torch.randn(10, dtype=torch.float64, requires_grad=True)
    sizes, targets = (3, 1, 6), torch.tensor([2, 0, 4])
    loss = segment_cross_entropy(logits, sizes, targets)
    (gradient,) = torch.autograd.grad(loss, logits)
    expected, at = torch.zeros_like(logits), 0
    total = 0.0
    for size, target in zip(sizes, targets.tolist(), strict=True):
        shares = logits[at : at + size].softmax(0)
        total -= shares[target].log().item()
        expected[at : at + size] = shares
        expected[at + target] -= 1
        at += size
    assert loss.item() == pytest.approx(total, abs=1e-12)
    torch.testing.assert_close(gradient, expected.detach(), rtol=0, atol=1e-12)


def test_a_batch_of_mixed_sizes_is_the_sum_of_its_questions(make_choice):
    prepared = prepare(make_choice(rows=planted_choices(7, 1, most=5), dropout=0.0))
    rows = prepared.rows["train"]
    assert len(set(rows.sizes.tolist())) > 2
    assert rows.lengths.sum() == rows.tokens.lengths.sum()
    torch.manual_seed(2)
    model = BertForMultipleChoice(prepared.encoder).double().train()
    objective, seed = ChoiceObjective(model), torch.tensor(0)
    chosen = [4, 0, 6]
    together = objective(rows.batch(chosen), seed)["cross_entropy"]
    apart = [objective(rows.batch([i]), seed)["cross_entropy"] for i in chosen]
    assert together.item() == pytest.approx(sum(part.item() for part in apart), abs=1e-12)
    batch = rows.batch(chosen)
    assert batch.sizes == tuple(rows.sizes[chosen].tolist())
    assert batch.labels.tolist() == rows.labels[chosen].tolist()
    assert objective.operations(batch) > 0


def test_the_scores_are_those_of_a_plain_count(make_choice):
    prepared = prepare(make_choice(rows=planted_choices(30, 1)))
    rows = prepared.rows["train"]
    torch.manual_seed(3)
    model = BertForMultipleChoice(prepared.encoder).eval()
    with torch.no_grad():
        model.classifier.weight.mul_(20)
    hits, losses = 0, []
    for i in range(len(rows)):
        with torch.no_grad():
            log_shares = model.logits(rows.batch([i]).packed)[:, 0].log_softmax(0)
        hits += int(log_shares.argmax()) == rows.labels[i]
        losses.append(-log_shares[rows.labels[i]].item())
    scores = MultipleChoice().evaluate(model, rows)
    assert scores.accuracy == pytest.approx(hits / 30) and 0 < hits < 30
    assert scores.loss == pytest.approx(np.mean(losses), abs=1e-5)
    assert scores.chance == pytest.approx(np.mean([1 / n for n in rows.sizes]))


# --- in use ----------------------------------------------------------------------------------


def test_the_stream_chooses_and_tells_bad_rows(choosing):
    predictor = Predictor.load(choosing.model, device="cpu")
    lines = [
        json.dumps({"premise": "ban", "choices": ["bar no", "bas yes", "\ud800"]}),
        json.dumps({"premise": "ban"}), json.dumps({"premise": "ban", "choices": ["one"]}),
        json.dumps({"context": "ban", "question": "dor", "choice1": "no", "choice2": "yes"}),
    ]  # fmt: skip
    sink, messages = io.StringIO(), io.StringIO()
    config = PredictConfig(choosing.model, format="jsonl")
    predict(predictor, io.BytesIO("\n".join(lines).encode()), sink, config, messages)
    first, second, third, fourth = map(json.loads, sink.getvalue().splitlines())
    assert (first["choice"], first["text"], len(first["probabilities"])) == (1, "bas yes", 3)
    assert sum(first["probabilities"]) == pytest.approx(1, abs=2e-6)
    assert second["error"].startswith("keys: options: choices: expected a column named choices")
    assert third["error"] == (
        "row, column 'choices': expected two choices or more, none empty, got [\"one\"]"
    )
    assert fourth["choice"] == 1
    sink = io.StringIO()
    text = b"ban\tbar yes\tbar no\nban\tbar\n"
    predict(predictor, io.BytesIO(text), sink, PredictConfig(choosing.model), messages)
    one, two = map(json.loads, sink.getvalue().splitlines())
    assert one["choice"] == 0
    assert two["error"] == "expected a premise and two choices or more, with TABs between"


def test_numbers_that_are_not_finite_are_an_error_and_cut_rows_are_counted(tokenizer):
    model = BertForMultipleChoice(TINY)
    rows = [Choices.of("ban", None, ["bar", "bar " * 50]), Choices.of("ban", None, ["a", "b"])]
    predictor = Predictor(MultipleChoice(), model, tokenizer)
    assert [answer["choice"] in (0, 1) for answer in predictor.answer(rows)] == [True, True]
    assert predictor.full == 1
    with torch.no_grad():
        model.classifier.weight.fill_(float("nan"))
    assert predictor.answer(rows) == [Predictor.NOT_FINITE] * 2


# --- what is refused, and real data ----------------------------------------------------------


@pytest.mark.errors
def test_errors_come_before_the_first_step(make_choice, tmp_path):
    for changes, message in [
        ({"train_rows": 41}, "train_rows: expected at most 40, all of train.jsonl, got 41"),
        (
            {"class_names": ("a", "b")},
            "class_names: expected none in multiple choice, got ('a', 'b')",
        ),
        (
            {"options": ("choices=endings",)},
            "train.jsonl: options: choices: expected one of context, choices, label, got "
            "'endings'",
        ),
    ]:
        config = make_choice(**changes)
        with pytest.raises(ValueError) as error:
            run_it(config)
        assert str(error.value).replace(f"{tmp_path}/", "") == message
        assert not config.out.exists()
    bad = write_tsv(tmp_path / "b.tsv", [("ban", "a", "b", 2)],
                    ("context", "choice1", "choice2", "label"))  # fmt: skip
    with pytest.raises(ValueError, match=f"^{bad}, line 2, column 'label': expected a choice"):
        run_it(make_choice(test_file=bad))
    model = BertForMultipleChoice(replace(TINY, type_vocab_size=1))
    with pytest.raises(ValueError, match="^model: expected two segment types, for a premise and"):
        Predictor(MultipleChoice(), model, Tokenizer([*TINY_VOCAB]))


TINY_VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


def test_real_questions_are_read(make_choice, shared_data, tmp_path):
    with lzma.open(shared_data("copa_balanced/train.jsonl.xz"), "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    prepared = prepare(make_choice(train_file=shared_data("copa_balanced/train.jsonl.xz")))
    found = prepared.rows["train"]
    assert len(found) == len(rows) == 800 and (found.sizes == 2).all()
    assert found.labels.tolist() == [row["label"] for row in rows]
    assert found.columns.used == ("context", "question", "choices", "label")
    assert found.unused == ("id",)
