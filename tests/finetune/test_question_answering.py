"""Question answering: a planted rule, transformers' losses and answers, and what is refused."""

import io
import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bert.checkpoint import load_pretrained
from bert.finetuning import BertForQuestionAnswering
from bert.saving import save_pretrained
from bert.tokenization import Tokenizer
from finetune import tasks
from finetune.predict import PredictConfig, predict
from finetune.predictor import Predictor
from finetune.prepare import prepare
from finetune.questions.squad import Question
from finetune.questions.windows import cut_windows
from finetune.run import finetune as run_it
from finetune.tasks.question_answering import QuestionAnswering, SpanObjective
from finetune.token_logits import predict_token_logits
from tests.finetune.conftest import TINY, WORDS, sentence, write_squad, write_tsv

STEPS = 20


def squad(rows):
    """SQuAD's document of rows: question, context, answer and where it is, or None."""
    paragraphs = [
        {"context": context, "qas": [{
            "id": str(number), "question": question, "is_impossible": answer is None,
            "answers": [] if answer is None else [{"text": answer[0], "answer_start": answer[1]}],
        }]}
        for number, (question, context, answer) in enumerate(rows)
    ]  # fmt: skip
    return {"version": "v2.0", "data": [{"title": "planted", "paragraphs": paragraphs}]}


def planted_questions(count, seed, words=12, impossible=0.0):
    """The answer to "yes" is the word "yes" and the word after it; to "no" likewise, or none."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        parts = [rng.choice(WORDS) for _ in range(rng.randint(6, words))]
        question, other = rng.sample(("yes", "no"), 2)
        places = rng.sample(range(0, len(parts) - 1, 2), 2)
        parts[places[0]] = other
        if rng.random() >= impossible:
            parts[places[1]] = question
            start = len(" ".join(parts[: places[1]])) + (places[1] > 0)
            answer = (f"{question} {parts[places[1] + 1]}", start)
        else:
            answer = None
        rows.append((question, " ".join(parts), answer))
    return rows


@pytest.fixture
def make_qa(make_config, tmp_path):
    """A configuration for question answering on some rows."""

    def make(training=None, rows=None, tests=None, **changes):
        train = write_squad(tmp_path / "train.json", squad(rows or planted_questions(40, 1)))
        test = tests and write_squad(tmp_path / "test.json", squad(tests))
        fields = {"train_file": train, "validation_file": None, "test_file": test}
        return make_config(training, task="question-answering", **fields | changes)

    return make


@pytest.fixture(scope="module")
def answering(configured, tmp_path_factory):
    """One run on the planted rule, with questions that have no answer."""
    path = tmp_path_factory.mktemp("answering")
    train = write_squad(path / "a.json", squad(planted_questions(300, 1, impossible=0.3)))
    tests = write_squad(path / "b.json", squad(planted_questions(60, 2, impossible=0.3)))
    return run_it(configured(
        {"learning_rate": 5e-3}, out=path / "run", task="question-answering",
        options=("null_threshold=0", "longest_answer=5"), epochs=9.0, dropout=0.0,
        train_file=train, validation_file=tests, test_file=tests, max_length=32,
    ))  # fmt: skip


# --- what is learned -------------------------------------------------------------------------


def test_a_planted_rule_is_learned_and_silence_too(answering):
    scores = answering.scores["test"]
    assert scores.exact > 0.9 and scores.f1 >= scores.exact
    assert scores.by_kind["NoAns"]["exact"] > 0.8
    assert scores.best_threshold["f1"] >= scores.f1
    metrics = json.loads((answering.run_dir / "metrics.json").read_text())
    assert metrics["test"]["HasAns"]["questions"] + metrics["test"]["NoAns"]["questions"] == 60


def test_answers_are_found_in_windows_of_a_long_context(answering):
    predictor = Predictor.load(answering.model, device="cpu", max_length=16)
    for question, context, answer in planted_questions(40, 3, words=40):
        (found,) = predictor.answer([Question("", question, context)])
        windows = cut_windows([Question("", question, context)], predictor.tokenizer, 16, 5)
        assert len(windows) > 1 or len(context.split()) <= 12
        if found["answer"]:
            assert found["answer"] == context[found["start"] : found["end"]]
        hits = found["answer"] == answer[0]
        assert hits or len(windows) > 1


def test_what_a_run_leaves(answering):
    config = json.loads((answering.model / "config.json").read_text())
    assert config["architectures"] == ["BertForQuestionAnswering"]
    assert config["id2label"] == {"0": "start", "1": "end"}
    assert tasks.of_model(answering.model) == QuestionAnswering(
        longest_answer=5, null_threshold=0.0
    )
    card = (answering.model / "README.md").read_text()
    assert "pipeline_tag: question-answering" in card
    assert "A context is read in windows of 32 tokens. A literal" in card
    assert "to find the answer to a question in a text, or to say that there is none." in card
    data = json.loads((answering.run_dir / "run.json").read_text())["data"]
    assert data["train"]["rows"] == 300 and data["train"]["windows"] == 300
    assert 50 < data["train"]["without_answer"] < 130


def test_the_saved_model_gives_the_reported_numbers(answering):
    model = load_pretrained(answering.model)
    assert type(model) is BertForQuestionAnswering
    task = tasks.of_model(answering.model)
    described = json.loads((answering.run_dir / "run.json").read_text())["finetune"]
    prepared_rows = task.read(
        Path(described["test_file"]),
        replace_paths(described),
        Tokenizer.load(answering.model),
        train="given",  # type: ignore[arg-type]  # only whether it is one matters
    )
    assert task.evaluate(model.eval(), prepared_rows) == answering.scores["test"]


def replace_paths(described):
    """As much of a FinetuneConfig as reading a file takes."""
    from finetune.config import FinetuneConfig

    return FinetuneConfig(
        model=described["model"],
        train_file=Path(described["train_file"]),
        out=Path(described["out"]),
        max_length=described["max_length"],
    )


# --- beside transformers ---------------------------------------------------------------------


def test_the_losses_of_a_run_are_those_of_transformers(make_qa, tmp_path):
    transformers = pytest.importorskip("transformers")
    from tests.finetune.theirs import both_losses

    # Contexts of up to 40 words in windows of 24 tokens: some do not hold the answer.
    rows = planted_questions(30, 1, words=40, impossible=0.2)
    config = make_qa(
        {"budget": str(STEPS), "learning_rate": 2e-3, "accumulation": 2, "max_grad_norm": 0.5},
        rows, options=("null_threshold=0", "stride=6"), dropout=0.0, max_length=24, batch_size=5,
    )  # fmt: skip

    def make_feed(tokenizer):
        features = list(itertools.chain(*(their_features(tokenizer, row, 24, 6) for row in rows)))
        assert any(f["start_positions"] == 0 for f in features)

        def feed(chosen):
            return {"windows": [features[i] for i in chosen]}

        return feed

    class Unpadded(torch.nn.Module):
        """Their model and loss, a window at a time: their softmax takes in the padding."""

        def __init__(self, model):
            super().__init__()
            self.model = model

        @staticmethod
        def from_pretrained(path):
            kind = transformers.AutoModelForQuestionAnswering
            return Unpadded(kind.from_pretrained(path))

        def forward(self, windows):
            losses = [
                self.model(**{name: torch.tensor([value]) for name, value in w.items()}).loss
                for w in windows
            ]
            output = type("Output", (), {})()
            output.loss = torch.stack(losses).mean()
            return output

    steps, theirs = both_losses(config, tmp_path / "initial", Unpadded, make_feed)
    ours = [step["loss"] for step in steps]
    assert len(ours) == STEPS
    assert max(step["grad_norm"] for step in steps) > 0.5  # so that clipping is seen
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    assert abs(ours[0] - ours[-1]) > 0.01  # so that the steps are seen


def their_features(tokenizer, row, max_length, stride):
    """The windows of a question by their tokenizer, with targets found character by character."""
    question, context, answer = row
    encoded = tokenizer(
        question, context, truncation="only_second", max_length=max_length, stride=stride,
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    for i, offsets in enumerate(encoded["offset_mapping"]):
        types = encoded["token_type_ids"][i]
        start = end = 0
        if answer is not None:
            first, last = answer[1], answer[1] + len(answer[0]) - 1
            starts = [t for t, (a, b) in enumerate(offsets) if types[t] and a <= first < b]
            ends = [t for t, (a, b) in enumerate(offsets) if types[t] and a <= last < b]
            if starts and ends:
                start, end = starts[0], ends[0]
        yield {
            "input_ids": encoded["input_ids"][i],
            "token_type_ids": types,
            "start_positions": start,
            "end_positions": end,
        }


def test_gradients_of_the_loss_are_those_of_transformers(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    ours = BertForQuestionAnswering(TINY).double().train()
    ours = load_without_dropout(ours, tmp_path, tokenizer)
    theirs = transformers.BertForQuestionAnswering.from_pretrained(tmp_path, dtype=torch.float64)
    lengths, targets = [9, 9, 9], [[3, 5], [0, 0], [7, 7]]
    ids = torch.randint(5, 35, (3, 9))
    types = (torch.arange(9) >= 4).long().expand(3, -1)
    loss = theirs(
        input_ids=ids, token_type_ids=types, start_positions=torch.tensor(targets)[:, 0],
        end_positions=torch.tensor(targets)[:, 1],
    ).loss  # fmt: skip
    loss.backward()

    from bert.packing import PackedBatch
    from finetune.questions.windows import SpanBatch

    packed = PackedBatch.from_lists(ids.tolist(), types.tolist())
    batch = SpanBatch(packed, torch.tensor(targets))
    objective = SpanObjective(ours)
    found = objective(batch, torch.tensor(0))["span"] / objective.counts(batch)["span"]
    found.backward()
    assert found.item() == pytest.approx(loss.item(), abs=1e-12)
    assert len(lengths) == objective.counts(batch)["span"]
    for name in ("qa_outputs.weight", "bert.embeddings.word_embeddings.weight"):
        our_name = name.replace("word_embeddings", "word")
        torch.testing.assert_close(
            ours.get_parameter(our_name).grad, theirs.get_parameter(name).grad,
            rtol=0, atol=1e-12,
        )  # fmt: skip


def load_without_dropout(model, path, tokenizer):
    save_pretrained(model, path, tokenizer)
    return load_pretrained(
        path, BertForQuestionAnswering, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    ).train()


def test_transformers_answers_the_same_from_the_saved_directory(answering):
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(answering.model).eval()
    assert type(model) is transformers.BertForQuestionAnswering
    tokenizer = transformers.AutoTokenizer.from_pretrained(answering.model)
    predictor = Predictor.load(answering.model, device="cpu", max_length=24)
    rows = planted_questions(25, 4, words=40, impossible=0.3)
    answers = predictor.answer([Question("", question, context) for question, context, _ in rows])
    silent = 0
    for (question, context, _), ours in zip(rows, answers, strict=True):
        best, null = their_best(model, tokenizer, question, context)
        (score, start, end) = best
        assert ours["null_odds"] == pytest.approx(null - score, abs=1e-4)
        if null > score:
            assert (ours["answer"], ours["start"], ours["end"]) == ("", None, None)
            silent += 1
        else:
            assert (ours["start"], ours["end"]) == (start, end)
            assert ours["answer"] == context[start:end]
    assert 2 < silent < 23


def their_best(model, tokenizer, question, context):
    """The best span of all windows by their logits and offsets, and the least null score."""
    encoded = tokenizer(
        question, context, truncation="only_second", max_length=24, stride=8,
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    best, null = (-np.inf, 0, 0), np.inf
    for i, offsets in enumerate(encoded["offset_mapping"]):
        inputs = {n: torch.tensor([encoded[n][i]]) for n in ("input_ids", "token_type_ids")}
        with torch.no_grad():
            output = model(**inputs)
        starts, ends = output.start_logits[0].tolist(), output.end_logits[0].tolist()
        null = min(null, starts[0] + ends[0])
        inside = [t for t, k in enumerate(encoded["token_type_ids"][i]) if k][:-1]
        for first, last in itertools.combinations_with_replacement(inside, 2):
            if last - first < 5 and starts[first] + ends[last] > best[0]:
                best = (starts[first] + ends[last], offsets[first][0], offsets[last][1])
    return best, null


# --- in use ----------------------------------------------------------------------------------


def test_the_stream_answers_and_tells_bad_rows(answering):
    predictor = Predictor.load(answering.model, device="cpu")
    lines = [
        json.dumps({"question": "yes", "context": "ban bar yes dor fis no gut"}),
        json.dumps({"question": "yes"}), json.dumps({"question": 3, "context": "ban"}),
        json.dumps({"question": "no", "context": ""}),
        json.dumps({"question": "yes", "context": "ban \ud800 yes"}),
    ]  # fmt: skip
    sink, messages = io.StringIO(), io.StringIO()
    config = PredictConfig(answering.model, format="jsonl")
    predict(predictor, io.BytesIO("\n".join(lines).encode()), sink, config, messages)
    first, second, third, nothing, odd = map(json.loads, sink.getvalue().splitlines())
    assert (first["answer"], first["start"], first["end"]) == ("yes dor", 8, 15)
    assert 0.5 < first["score"] <= 1 and first["null_odds"] < 0
    assert second == {"row": 2, "error": "context: expected a text, got None"}
    assert third == {"row": 3, "error": "question: expected a text, got 3"}
    assert (nothing["answer"], nothing["start"], nothing["null_odds"]) == ("", None, None)
    assert "error" not in odd
    sink.getvalue().encode()  # a lone surrogate could not be written

    sink = io.StringIO()
    text = b"yes\tban bar yes dor fis no gut\nyes\n"
    predict(predictor, io.BytesIO(text), sink, PredictConfig(answering.model), messages)
    one, two = map(json.loads, sink.getvalue().splitlines())
    assert one["answer"] == "yes dor"
    assert two["error"] == "expected a question and a context, with a TAB between, got 1"


def test_without_a_threshold_there_is_always_an_answer(tokenizer):
    model = BertForQuestionAnswering(TINY)
    with torch.no_grad():
        model.qa_outputs.bias.fill_(0)
    task = QuestionAnswering()
    (answer,) = Predictor(task, model, tokenizer).answer([Question("", "yes", "ban bar")])
    assert answer["answer"] and "null_odds" not in answer
    with torch.no_grad():
        model.qa_outputs.weight.fill_(float("nan"))
    assert Predictor(task, model, tokenizer).answer([Question("", "yes", "ban bar")]) == [
        Predictor.NOT_FINITE
    ]


def test_logits_do_not_depend_on_the_batches(tokenizer):
    model = BertForQuestionAnswering(TINY).double().eval()
    asked = [Question("", q, c) for q, c, _ in planted_questions(6, 1, words=30)]
    rows = cut_windows(asked, tokenizer, 20, 4).tokens
    together = predict_token_logits(model, rows, 10_000)
    assert together.shape == (rows.offsets[-1], 2) and together.dtype == np.float64
    np.testing.assert_allclose(predict_token_logits(model, rows, 1), together, rtol=0, atol=1e-12)


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.errors
@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        (
            planted_questions(9, 1, impossible=0.9),
            {},
            "options: null_threshold: expected a number, such as 0, since 8 questions of "
            "train.json have no answer, got None",
        ),
        (
            [("yes", "ban", None)],
            {"options": ("null_threshold=0",)},
            "train.json: expected an answer that is where it is said to be, got none",
        ),
        (
            [("yes", "ban yes", ("yes", 3))],
            {},
            "train.json: expected an answer that is where it is said to be, got none",
        ),
        (None, {"train_rows": 41}, "train_rows: expected at most 40, all of train.json, got 41"),
        (
            None,
            {"class_names": ("a", "b")},
            "class_names: expected none for question-answering, got ('a', 'b')",
        ),
        (
            None,
            {"options": ("stride=19",)},
            "stride: expected at most 18, for windows of 32 tokens, got 19",
        ),
        (None, {"options": ("stride=-1",)}, "options: stride: expected 0 or more, got -1"),
        (
            None,
            {"options": ("null_threshold=nan",)},
            "options: null-threshold: expected a finite number, got nan",
        ),
        (None, {"options": ("n_best=0",)}, "options: n-best: expected 1 or more, got 0"),
    ],
)
def test_errors_come_before_the_first_step(make_qa, tmp_path, rows, changes, message):
    config = make_qa(rows=rows, **changes)
    with pytest.raises(ValueError) as error:
        run_it(config)
    assert str(error.value).replace(f"{tmp_path}/", "") == message
    assert not config.out.exists()


@pytest.mark.errors
def test_a_file_of_another_kind_is_refused(make_qa, tmp_path):
    table = write_tsv(tmp_path / "rows.tsv", [("ban", "good")])
    with pytest.raises(ValueError, match=f"^{table}: expected JSON: "):
        run_it(make_qa(train_file=table))
    model = BertForQuestionAnswering(replace(TINY, type_vocab_size=1))
    with pytest.raises(ValueError, match="^model: expected two segment types, for a question and"):
        Predictor(QuestionAnswering(), model, Tokenizer.load(make_qa().model))


def test_misplaced_answers_are_passed_over_in_training_and_counted(make_qa):
    rows = [*planted_questions(5, 1), ("yes", f"ban {sentence(random.Random(1))}", ("ban", 1))]
    prepared = prepare(make_qa(rows=rows, tests=rows))
    assert [len(prepared.rows[name].questions) for name in ("train", "test")] == [5, 6]
    assert prepared.data["train"]["misplaced_answers"] == 1
    assert prepared.data["train"]["left_out_questions"] == 1
    assert prepared.data["test"]["left_out_questions"] == 0
    assert "; 1 misplaced answers; 1 left out questions" in str(prepared.rows["train"])
    # In evaluation its text counts.
    assert prepared.rows["test"].questions[-1].answers[0].text == "ban"


def test_the_hash_sees_what_training_sees(make_qa):
    rows = planted_questions(5, 1)
    hashes = {prepare(make_qa(rows=rows)).rows["train"].sha256()}
    other = [*rows[:4], (rows[4][0], rows[4][1], (rows[4][1][:3], 0))]
    hashes.add(prepare(make_qa(rows=other)).rows["train"].sha256())
    assert len(hashes) == 2


def test_real_questions_are_read_and_learned_by_heart(make_qa, shared_data, tmp_path):
    import lzma

    with lzma.open(shared_data("policyqa/train.json.xz"), "rt", encoding="utf-8") as file:
        values = json.load(file)
    article = values["data"][0] | {"paragraphs": values["data"][0]["paragraphs"][:4]}
    path = write_squad(tmp_path / "slice.json", {"data": [article]})
    texts = [text for p in article["paragraphs"] for text in (
        p["context"], *(qa["question"] for qa in p["qas"])
    )]  # fmt: skip
    tokenizer = Tokenizer.train(texts, 400)
    tokenizer.save(tmp_path / "tokenizer")
    config_file = tmp_path / "config.json"
    config_file.write_text(json.dumps(
        replace(TINY, vocab_size=tokenizer.vocab_size, max_position_embeddings=128).to_dict()
    ))  # fmt: skip
    result = run_it(make_qa(
        {"budget": "80", "learning_rate": 5e-3}, model=str(config_file),
        tokenizer=tmp_path / "tokenizer", train_file=path, test_file=path, max_length=96,
        dropout=0.0,
    ))  # fmt: skip
    assert result.scores["test"].f1 > 0.8
