"""SQuAD's files: what is read, and what is refused where."""

import copy
import json
import lzma

import pytest

from bert.text import TextReport
from finetune.questions.squad import Answer, read_squad
from tests.finetune.conftest import write_squad

CONTEXT = "The cat sat on the mat."
PLAIN = {"id": "q1", "question": "Who?", "answers": [{"text": "cat", "answer_start": 4}]}


def document(*records, context=CONTEXT):
    return {"data": [{"title": "t", "paragraphs": [{"context": context, "qas": list(records)}]}]}


def test_questions_are_read_in_order(tmp_path):
    values = document(PLAIN, {**PLAIN, "id": "q2", "answers": [], "is_impossible": True})
    values["data"][0]["paragraphs"].append(
        {"context": "\U0001f600 mat", "qas": [{
            "id": "q3", "question": "Where?", "is_impossible": False,
            "answers": [{"text": "mat", "answer_start": 2}, {"text": "at", "answer_start": 3}],
        }]}
    )  # fmt: skip
    questions = read_squad(write_squad(tmp_path / "a.json", values), TextReport())
    assert [q.id for q in questions] == ["q1", "q2", "q3"]
    assert [q.context for q in questions] == [CONTEXT, CONTEXT, "\U0001f600 mat"]
    assert questions[1].answers == ()
    # Offsets are characters, not bytes.
    assert questions[2].placed_answers == [Answer("mat", 2), Answer("at", 3)]


def test_an_answer_that_is_elsewhere_is_kept_but_not_placed(tmp_path):
    answers = [{"text": "cat", "answer_start": 5}, {"text": "sat", "answer_start": 8}]
    values = document({**PLAIN, "answers": answers})
    (question,) = read_squad(write_squad(tmp_path / "a.json", values), TextReport())
    assert len(question.answers) == 2
    assert question.placed_answers == [Answer("sat", 8)]


def test_a_packed_file_with_a_mark_and_odd_bytes(tmp_path):
    path = tmp_path / "a.json.xz"
    text = json.dumps(document(PLAIN, context="The cat\ufffd \ud800"), ensure_ascii=True)
    raw = b"\xef\xbb\xbf" + text.replace("\\ufffd", "?").encode().replace(b"cat?", b"cat\xff")
    path.write_bytes(lzma.compress(raw))
    report = TextReport()
    (question,) = read_squad(path, report)
    assert question.context == "The cat\ufffd \ud800"
    assert (report.byte_order_marks, report.invalid_bytes) == (1, 1)


@pytest.mark.parametrize(
    ("name", "questions", "contexts"),
    [("parasquad/train", 931, 696), ("policyqa/train", 3809, 574), ("xquad/xquad.zh", 1190, 240)],
)
def test_real_files(shared_data, name, questions, contexts):
    # The numbers are those of the collection's own list.
    found = read_squad(shared_data(f"{name}.json.xz"), TextReport())
    assert (len(found), len({q.context for q in found})) == (questions, contexts)
    assert all(len(q.placed_answers) == len(q.answers) > 0 for q in found)


def changed(path, value):
    """A document of one question, in which something is replaced, or taken out."""
    values = copy.deepcopy(document(PLAIN))
    *parents, last = path
    target = values
    for key in parents:
        target = target[key]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return values


PARAGRAPH = ("data", 0, "paragraphs", 0)
QUESTION = (*PARAGRAPH, "qas", 0)
ANSWER = (*QUESTION, "answers", 0)
PLACE = "article 1, paragraph 1, question 1 (id 'q1')"


@pytest.mark.errors
@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("data",), ..., "data: expected a list, got nothing"),
        (("data",), [], "expected questions, got none"),
        (("data", 0), 3, "article 1: expected an object with 'paragraphs', got 3"),
        (
            ("data", 0, "paragraphs"),
            {},
            "article 1: paragraphs: expected a list, got {}",
        ),
        (
            (*PARAGRAPH, "context"),
            None,
            "article 1, paragraph 1: context: expected a text, got None",
        ),
        ((*PARAGRAPH, "qas"), [], "expected questions, got none"),
        (
            (*QUESTION, "id"),
            7,
            "article 1, paragraph 1, question 1: id: expected a text, got 7",
        ),
        ((*QUESTION, "question"), ..., f"{PLACE}: question: expected a text, got nothing"),
        (
            (*QUESTION, "is_impossible"),
            0,
            f"{PLACE}: is_impossible: expected true or false, got 0",
        ),
        (
            (*QUESTION, "is_impossible"),
            True,
            f"{PLACE}: expected no answer, since is_impossible, got 1",
        ),
        (
            (*QUESTION, "answers"),
            [],
            f"{PLACE}: expected an answer, or is_impossible, got neither",
        ),
        ((*ANSWER, "text"), " ", f"{PLACE}, answer 1: text: expected a text, got ' '"),
        (
            (*ANSWER, "answer_start"),
            "4",
            f"{PLACE}, answer 1: answer_start: expected a whole number, got '4'",
        ),
        (
            (*ANSWER, "answer_start"),
            True,
            f"{PLACE}, answer 1: answer_start: expected a whole number, got True",
        ),
        (
            (*ANSWER, "answer_start"),
            -1,
            f"{PLACE}, answer 1: answer_start: expected 0 or more, got -1",
        ),
        (
            (*PARAGRAPH, "qas"),
            [PLAIN, PLAIN],
            "article 1, paragraph 1, question 2 (id 'q1'): expected an id of its own, got that "
            f"of {PLACE}",
        ),
    ],
)
def test_a_wrong_value_is_told_with_its_place(tmp_path, path, value, message):
    file = write_squad(tmp_path / "a.json", changed(path, value))
    with pytest.raises(ValueError) as error:
        read_squad(file, TextReport())
    text = str(error.value)
    assert text.startswith(str(file)) and text.endswith(message) and "\n" not in text


@pytest.mark.errors
@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"[1]", b'"x"'])
def test_what_is_no_squad_file_is_one_line(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path}: expected .*") as error:
        read_squad(path, TextReport())
    assert "\n" not in str(error.value)


@pytest.mark.errors
def test_a_broken_or_absent_file_is_one_line(tmp_path):
    whole = lzma.compress(json.dumps(document(PLAIN)).encode())
    (tmp_path / "cut.json.xz").write_bytes(whole[:-10])
    for name in ("cut.json.xz", "absent.json"):
        with pytest.raises(ValueError, match=f"^{tmp_path / name}: can't be read: "):
            read_squad(tmp_path / name, TextReport())
