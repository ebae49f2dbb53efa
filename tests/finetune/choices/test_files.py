"""Files of questions with choices: which columns are found, what is read, what is refused."""

import json

import pytest

from bert.text import TextReport
from finetune.choices.files import Choices, read_choices
from finetune.config import Columns
from tests.finetune.conftest import write_tsv

COPA = {"id": 1, "question": "effect", "context": "It rained.", "label": 1,
        "choices": ["He sang.", "He got wet."]}  # fmt: skip


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path, asked=Columns(), choices=None):  # noqa: B008 - frozen
    columns, names, rows = read_choices(path, asked, choices, TextReport())
    return columns, names, list(rows)


def test_a_list_of_choices_and_a_question(tmp_path):
    columns, names, rows = read(write_jsonl(tmp_path / "a.jsonl", [COPA]))
    assert columns.used == ("context", "question", "choices", "label")
    assert names == ("id", "question", "context", "label", "choices")
    expected = Choices(
        "It rained.", ("effect He sang.", "effect He got wet."), ("He sang.", "He got wet.")
    )
    assert rows == [(expected, 1)]


def test_columns_with_a_choice_each_and_rows_with_fewer(tmp_path):
    header = ("sent1", "ending10", "ending2", "Ending0", "label")
    path = write_tsv(
        tmp_path / "a.tsv", [("ban", "d", "c", "b", 2), ("bar", "", "y", "x", 1)], header
    )
    columns, _, rows = read(path)
    assert columns.choices == ("Ending0", "ending2", "ending10")  # by their numbers
    assert [(row.premise, row.choices, label) for row, label in rows] == [
        ("ban", ("b", "c", "d"), 2), ("bar", ("x", "y"), 1)
    ]  # fmt: skip
    assert rows[0][0].seconds == rows[0][0].choices  # no question


def test_columns_that_are_asked_for(tmp_path):
    header = ("p", "q", "one", "two", "right")
    path = write_tsv(tmp_path / "a.tsv", [("ban", "why", "x", "y", 0)], header)
    ((row, label),) = read(path, Columns("p", "q", "right"), "one, two")[2]
    assert (row.premise, row.seconds, label) == ("ban", ("why x", "why y"), 0)
    ((row, _),) = read(path, Columns("p", None, "right"), "two,one")[2]
    assert row.seconds == ("y", "x")


def test_a_question_alone_is_the_premise(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"question": "2+2?", "options": ["3", "4"],
                                               "label": "1"}])  # fmt: skip
    columns, _, rows = read(path)
    assert rows == [(Choices("2+2?", ("3", "4"), ("3", "4")), 1)]
    assert columns.question is None


@pytest.mark.errors
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": 2}, ", line 2, column 'label': expected a choice from 0 to 1, got 2"),
        ({"label": -1}, ", line 2, column 'label': expected a choice from 0 to 1, got -1"),
        ({"label": True}, ", line 2, column 'label': expected a choice from 0 to 1, got true"),
        ({"label": "b"}, ", line 2, column 'label': expected a choice from 0 to 1, got \"b\""),
        (
            {"label": None},
            ", line 2, column 'label': expected a choice from 0 to 1, got nothing",
        ),
        (
            {"choices": ["a"]},
            ", line 2, column 'choices': expected two choices or more, none empty, got [\"a\"]",
        ),
        (
            {"choices": ["a", " "]},
            ", line 2, column 'choices': expected two choices or more, none empty, "
            'got ["a", " "]',
        ),
        (
            {"choices": "a b"},
            ", line 2, column 'choices': expected a list of texts, got \"a b\"",
        ),
        (
            {"choices": ["a", 3]},
            ", line 2, column 'choices': expected a list of texts, got [\"a\", 3]",
        ),
        ({"context": 3}, ", line 2, column 'context': expected a text, got 3"),
        ({"question": None}, ", line 2, column 'question': expected a text, got nothing"),
    ],
)
def test_a_wrong_value_is_told_with_line_and_column(tmp_path, changes, message):
    path = write_jsonl(tmp_path / "a.jsonl", [COPA, COPA | changes])
    with pytest.raises(ValueError) as error:
        read(path)
    assert str(error.value) == f"{path}{message}"


@pytest.mark.errors
@pytest.mark.parametrize(
    ("header", "asked", "choices", "message"),
    [
        (
            ("x", "choice1", "choice2", "label"), Columns(), None,
            "columns.text_a: expected a column named question, sent2, text_b, got x, choice1, "
            "choice2, label; say which it is",
        ),
        (
            ("context", "premise", "choice1", "choice2", "label"), Columns(), None,
            "columns.text_a: expected one column of a usual name, got context and premise; say "
            "which",
        ),
        (
            ("context", "choice1", "choice2", "right"), Columns(), None,
            "columns.label: expected a column named label, labels, class, target, gold_label, "
            "got context, choice1, choice2, right; say which it is",
        ),
        (
            ("context", "choice1", "b", "label"), Columns(), None,
            "options: choices: expected a column named choices, options, endings, or columns "
            "choice1, choice2, …, got context, choice1, b, label; say which",
        ),
        (
            ("context", "choices", "choice1", "choice2", "label"), Columns(), None,
            "options: choices: expected a column named choices, options, endings, or columns "
            "choice1, choice2, …, got context, choices, choice1, choice2, label; say which",
        ),
        (
            ("context", "choice1", "choice2", "label"), Columns(), "choice1,choice3",
            "options: choices: expected one of context, choice1, choice2, label, got 'choice3'",
        ),
        (
            ("context", "choice1", "choice2", "label"), Columns(text_b="why"), None,
            "columns.text_b: expected one of context, choice1, choice2, label, got 'why'",
        ),
    ],
)  # fmt: skip
def test_columns_that_are_not_there_are_told(tmp_path, header, asked, choices, message):
    path = write_tsv(tmp_path / "a.tsv", [["0"] * len(header)], header)
    with pytest.raises(ValueError) as error:
        read(path, asked, choices)
    assert str(error.value) == f"{path}: {message}"


@pytest.mark.errors
def test_a_gap_among_the_choices_and_an_empty_file_are_told(tmp_path):
    header = ("context", "choice1", "choice2", "choice3", "label")
    path = write_tsv(tmp_path / "a.tsv", [("ban", "a", "", "c", 0)], header)
    with pytest.raises(ValueError) as error:
        read(path)
    assert str(error.value) == (
        f"{path}, line 2, columns 'choice1, choice2, choice3': expected two choices or more, none "
        'empty, got ["a", "", "c"]'
    )
    empty = write_tsv(tmp_path / "b.tsv", [], header)
    with pytest.raises(ValueError, match="b.tsv: expected rows, got none"):
        read(empty)
