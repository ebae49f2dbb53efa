"""The stream: a line out for a line in, in order, whatever the lines hold."""

import io
import json
import os
import random
import select
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import finetune.predict
from bert.cli import main
from bert.finetuning import BertForSequenceClassification
from bert.pretraining import BertForPreTraining
from bert.saving import save_pretrained
from finetune import tasks
from finetune.predict import PredictConfig, predict
from finetune.predictor import Predictor
from finetune.tasks.classification import Classification
from kernels import REFERENCE
from tests.finetune.conftest import TINY, WORDS

ROOT = Path(__file__).resolve().parents[2]
CONFIG = PredictConfig(Path("unused"))
TASK = Classification()


@pytest.fixture(scope="module")
def predictor(tokenizer):
    torch.manual_seed(1)
    model = BertForSequenceClassification(TINY.with_labels(["bad", "fair", "good"]))
    with torch.no_grad():
        model.classifier.weight.mul_(5)  # so that texts differ in their answers
    return Predictor(TASK, model, tokenizer)


@pytest.fixture
def stream(predictor):
    """Run a stream over bytes; give the records, the messages and the counts."""

    def run(content, **changes):
        sink, messages = io.StringIO(), io.StringIO()
        counts = predict(
            predictor, io.BytesIO(content), sink, replace(CONFIG, **changes), messages
        )
        records = [json.loads(line) for line in sink.getvalue().splitlines()]
        return records, messages.getvalue().splitlines(), counts

    return run


def some_texts(count):
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 50))) for _ in range(count)]


@pytest.mark.parametrize("window", [1, 7, 1000])
def test_answers_come_in_the_order_of_the_lines(stream, predictor, window):
    texts = some_texts(40)
    records, _, counts = stream("\n".join(texts).encode(), window=window)
    assert [record["row"] for record in records] == list(range(1, 41))
    for text, record in zip(texts, records, strict=True):
        (alone,) = predictor.answer([(text, None)])
        assert record["label"] == alone["label"]
        assert record["probabilities"] == pytest.approx(alone["probabilities"], abs=2e-6)
    # Answers differ from row to row, so that one could not stand for another.
    assert len({round(record["probabilities"]["fair"], 5) for record in records}) > 30
    assert (counts.rows, counts.errors) == (40, 0)


def test_probabilities_add_up_and_the_label_has_the_greatest(stream):
    for record in stream("\n".join(some_texts(20)).encode())[0]:
        values = record["probabilities"]
        assert list(values) == ["bad", "fair", "good"]
        assert sum(values.values()) == pytest.approx(1, abs=2e-6)
        assert values[record["label"]] == max(values.values())


def test_an_empty_line_is_a_row_and_the_last_needs_no_end(stream, predictor):
    records, _, _ = stream(b"ban\n\n\r\nbar")
    assert [record["row"] for record in records] == [1, 2, 3, 4]
    (nothing,) = predictor.answer([("", None)])
    assert records[1]["probabilities"] == records[2]["probabilities"] == nothing["probabilities"]
    assert stream(b"")[0] == []


def test_a_tab_makes_a_pair(stream, predictor):
    records, messages, _ = stream(b"ban\tbar\nban bar\nban\t\na\tb\tc\n")
    pair, single, half = predictor.answer([("ban", "bar"), ("ban bar", None), ("ban", "")])
    (alone,) = predictor.answer([("ban", None)])
    answers = [answer["probabilities"]["fair"] for answer in (pair, single, half, alone)]
    assert len(set(answers)) == 4
    for record, expected in zip(records, (pair, single, half), strict=False):
        assert record["probabilities"] == pytest.approx(expected["probabilities"], abs=2e-6)
    error = "expected a text, or two with a TAB between, got 3"
    assert records[3] == {"row": 4, "error": error}
    assert messages[0] == f"row 4: {error}"


def test_bad_rows_are_told_and_touch_no_other(stream):
    lines = [
        '{"text": "ban bar"}', "{", '{"text": "bas", "n": 1}', "[1]", '{"x": "y"}', "",
        '{"premise": "ban", "hypothesis": "bar"}', '{"text": 3}', '{"text": "a", "sentence": "b"}',
        '{"text": "\\ud800"}', "[" * 99_999,
    ]  # fmt: skip
    records, messages, counts = stream("\n".join(lines).encode(), format="jsonl")
    assert [record["row"] for record in records] == list(range(1, 12))
    bad = [record["row"] for record in records if "error" in record]
    assert bad == [2, 4, 5, 6, 8, 9, 11]
    assert [message.partition(":")[0] for message in messages[:-1]] == [f"row {i}" for i in bad]
    assert messages[-1] == "11 rows; 7 with errors"
    assert (counts.rows, counts.errors) == (11, 7)
    alone = stream("\n".join([lines[0], lines[2]]).encode(), format="jsonl")[0]
    for together, by_itself in zip((records[0], records[2]), alone, strict=True):
        assert together["probabilities"] == pytest.approx(by_itself["probabilities"], abs=2e-6)


def test_bad_rows_are_left_out_where_that_is_asked_and_counted_all_the_same(stream):
    lines = b'{"text": "ban"}\n{\n{"text": "bar"}\n'
    records, messages, counts = stream(lines, format="jsonl", on_bad_row="skip")
    assert [record["row"] for record in records] == [1, 3]
    assert messages[0].startswith("row 2: expected JSON") and messages[-1].startswith("3 rows; 1 ")
    assert (counts.rows, counts.errors) == (3, 1)


@pytest.mark.errors
@pytest.mark.parametrize("window", [1, 2, 100])
def test_a_bad_row_is_the_end_where_that_is_asked(predictor, window):
    sink, source = io.StringIO(), io.BytesIO(b"ban\nbar\na\tb\tc\nbas\n")
    config = replace(CONFIG, on_bad_row="stop", window=window)
    with pytest.raises(ValueError, match="^row 3: expected a text, or two with a TAB between, "):
        predict(predictor, source, sink, config, io.StringIO())
    assert [json.loads(line)["row"] for line in sink.getvalue().splitlines()] == [1, 2]


class Text(str):
    """A text that is counted for as long as anything holds it."""

    alive = most = 0

    def __new__(cls, text):
        Text.alive += 1
        Text.most = max(Text.most, Text.alive)
        return super().__new__(cls, text)

    def __del__(self):
        Text.alive -= 1


class Counting(Classification):
    def parse(self, line):
        text_a, text_b = super().parse(line)
        return Text(text_a), text_b


class Endless:
    """Lines without end, and how many were taken."""

    taken = 0

    def readline(self, size):
        self.taken += 1
        return b"ban bar\n"


class Enough(Exception):
    pass


class Sink:
    """Takes so many lines and no more; sees how far the reading was ahead of each."""

    def __init__(self, source, lines):
        self.source, self.lines, self.written, self.ahead = source, lines, 0, 0

    def write(self, text):
        self.ahead = max(self.ahead, self.source.taken - self.written)
        self.written += text.count("\n")
        if self.written == self.lines:
            raise Enough

    def flush(self):
        pass


def test_endless_input_holds_a_window_of_rows_and_no_more(predictor, tokenizer):
    source = Endless()
    sink = Sink(source, 2000)
    Text.alive = Text.most = 0
    with pytest.raises(Enough):
        predict(
            Predictor(Counting(), predictor.model, tokenizer),
            source, sink, replace(CONFIG, window=50), io.StringIO(),
        )  # fmt: skip
    assert sink.ahead == 50  # answers come a window after their rows at the latest
    assert 50 <= Text.most <= 100  # the window that is answered, and the one that is read


def test_bytes_that_are_no_text_are_read_and_counted(stream):
    records, messages, _ = stream(b"ban \xff\x00 bar\n\xed\xa0\x80\nban  bar\n")
    assert records[0]["probabilities"] == pytest.approx(records[2]["probabilities"], abs=2e-6)
    assert messages == ["3 rows; 0 with errors; 4 bytes that are not UTF-8, read as U+FFFD"]


def test_a_line_that_is_too_long_is_a_row_and_is_not_kept(stream, monkeypatch):
    monkeypatch.setattr(finetune.predict, "LONGEST_LINE", 10)
    records, _, _ = stream(b"ban\n" + b"x" * 35 + b"\nbar\n" + b"y" * 11)
    assert [("error" in record) for record in records] == [False, True, False, True]
    assert records[1]["error"] == "expected at most 10 bytes, got a longer line"


def test_windows_are_bounded_in_bytes_too():
    rows = [finetune.predict.InputRow(i, finetune.predict.WINDOW_BYTES // 3) for i in range(8)]
    assert [len(window) for window in finetune.predict.windows(rows, 100)] == [4, 4]
    assert [len(window) for window in finetune.predict.windows(rows, 3)] == [3, 3, 2]


def test_what_is_cut_is_counted(predictor, tokenizer):
    short = Predictor(TASK, predictor.model, tokenizer, max_length=8)
    sink, messages = io.StringIO(), io.StringIO()
    predict(short, io.BytesIO(b"ban\n" + b"bar " * 20 + b"\n"), sink, CONFIG, messages)
    assert "1 fill the 8 tokens or were cut" in messages.getvalue()


def test_numbers_that_are_not_finite_are_an_error(tokenizer):
    model = BertForSequenceClassification(TINY)
    with torch.no_grad():
        model.classifier.weight.fill_(float("nan"))
    assert Predictor(TASK, model, tokenizer).answer([("ban", None)]) == [
        "expected finite numbers from the model, got NaN or infinity"
    ]


def test_a_model_of_one_segment_type_refuses_pairs_row_by_row(tokenizer):
    model = BertForSequenceClassification(replace(TINY, type_vocab_size=1))
    single, pair = Predictor(TASK, model, tokenizer).answer([("ban", None), ("ban", "bar")])
    assert "label" in single
    assert pair == "expected a single text: the model has one segment type"


@pytest.mark.parametrize("is_pair", [False, True])
def test_a_model_takes_what_it_learned_from_pairs_or_single_texts(tokenizer, is_pair):
    kept = tasks.state("classification", TASK, {"is_pair": is_pair})
    model = BertForSequenceClassification(replace(TINY, **kept))
    answers = Predictor(TASK, model, tokenizer).answer([("ban", None), ("ban", "bar")])
    assert "label" in answers[is_pair]
    assert answers[not is_pair].startswith(
        "expected a pair of texts, as the model learned from, got one; a TAB parts them"
        if is_pair
        else "expected a single text, as the model learned from, got a pair"
    )


@pytest.mark.errors
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"problem_type": "regression"},
            "model: expected a classifier, got problem_type regression",
        ),
        ({"id2label": {0: "x"}}, "model: expected two classes or more, got one"),
        (
            {"vocab_size": 20},
            "tokenizer: expected at most the model's 20 tokens (vocab_size), got 35",
        ),
        (
            {"max_position_embeddings": 39},
            "max_length: expected at most 39 (max_position_embeddings), got 40",
        ),
    ],
)
def test_what_cannot_classify_is_refused(tokenizer, changes, message):
    model = BertForSequenceClassification(replace(TINY, **changes))
    with pytest.raises(ValueError) as error:
        Predictor(TASK, model, tokenizer, max_length=40)
    assert str(error.value) == message


@pytest.mark.errors
def test_an_encoder_without_a_trained_head_is_refused(predictor, tokenizer, tmp_path):
    save_pretrained(predictor.model.bert, tmp_path, tokenizer)
    with pytest.raises(ValueError) as error:
        Predictor.load(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: expected a fine-tuned model, got a BertModel without a trained head; "
        "bert finetune trains one, and bert embed takes it as it is"
    )


@pytest.mark.errors
def test_a_pretrained_model_is_told_by_its_name(tokenizer, tmp_path):
    save_pretrained(BertForPreTraining(TINY), tmp_path, tokenizer)
    with pytest.raises(ValueError) as error:
        Predictor.load(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: expected a fine-tuned model, got a BertForPreTraining without a trained "
        "head; bert finetune trains one, and bert fill-mask and bert embed take it as it is"
    )


@pytest.mark.parametrize(("policy", "code"), [("report", 1), ("skip", 0), ("stop", 2)])
def test_the_exit_code_tells_of_bad_rows(predictor, monkeypatch, capsys, policy, code):
    monkeypatch.setattr(Predictor, "load", lambda *_, **__: predictor)
    for content, expected in ((b"ban\na\tb\tc\n", code), (b"ban\n", 0)):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))
        assert main(["predict", "unused", "--on-bad-row", policy]) == expected
    assert "2 rows; 1 with errors" in capsys.readouterr().err or policy == "stop"


def test_it_runs_on_the_kernels_of_the_hardware(predictor, tokenizer, tmp_path, monkeypatch):
    save_pretrained(predictor.model, tmp_path, tokenizer)
    monkeypatch.setattr("bert.training.hardware.choose", lambda name, device: REFERENCE)
    assert Predictor.load(tmp_path).model.bert.kernels is REFERENCE


# --- the command -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(predictor, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved")
    save_pretrained(predictor.model, path, tokenizer)
    return path


def test_the_command_streams_and_a_closed_pipe_is_no_fault(saved):
    # Buffered, as it is for a user, whatever is set here.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""}
    code = "import sys; from bert.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "predict", str(saved), "--window", "1"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        # With a window of one, an answer comes while the input is still open.
        process.stdin.write("bän\n".encode())
        process.stdin.flush()
        if not select.select([process.stdout], [], [], 60)[0]:
            process.kill()
        assert json.loads(process.stdout.readline())["row"] == 1
        process.stdout.close()
        _, errors = process.communicate(b"ban\n" * 5000, timeout=120)
        assert process.returncode == 141
        assert b"Traceback" not in errors and b"Exception ignored" not in errors
