"""Reading files: every format, and every way in which a file can be wrong."""

import gzip
import json
import lzma

import pytest

from bert.text import TextReport
from finetune.config import Columns
from finetune.tables import Table

DETECT = Columns()


def read(path, columns=DETECT, report=None):
    return list(Table.open(path, columns).rows(report or TextReport()))


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def fails(path, content, message, columns=DETECT):
    with pytest.raises(ValueError) as error:
        read(write(path, content), columns)
    assert str(error.value) == f"{path}{message}"


def test_a_tsv_has_no_quoting(tmp_path):
    path = write(tmp_path / "a.tsv", 'label\ttext\textra\n1\t"not closed\tx\r\n0\tit\'s "so"\ty\n')
    assert read(path) == [(2, '"not closed', None, "1"), (3, 'it\'s "so"', None, "0")]


def test_a_csv_has_quoting_and_its_rows_may_span_lines(tmp_path):
    path = write(
        tmp_path / "a.csv", 'text,label\n"one, and\ntwo",good\n"say ""x""",bad\n\nz,bad\n'
    )
    assert read(path) == [
        (2, "one, and\ntwo", None, "good"),
        (4, 'say "x"', None, "bad"),
        (6, "z", None, "bad"),
    ]


def test_a_csv_may_hold_a_field_of_any_length(tmp_path):
    path = write(tmp_path / "a.csv", f"text,label\n{'a' * 200_000},1\n")
    assert len(read(path)[0].text_a) == 200_000


def test_a_jsonl_may_have_numbers_as_labels(tmp_path):
    records = [{"premise": "a\tb", "hypothesis": "", "label": 1, "id": [1]}, {}]
    records[1] = {"hypothesis": "d", "label": "x", "premise": "c"}
    path = write(tmp_path / "a.jsonl", "\n\n".join(map(json.dumps, records)) + "\n")
    assert read(path) == [(1, "a\tb", "", "1"), (3, "c", "d", "x")]


@pytest.mark.parametrize(("suffix", "pack"), [(".xz", lzma.compress), (".gz", gzip.compress)])
def test_packed_files(tmp_path, suffix, pack):
    whole = pack(b"text\tlabel\n" + b"a\t0\n" * 5000)
    assert len(read(write(tmp_path / f"a.tsv{suffix}", whole))) == 5000
    with pytest.raises(ValueError, match=r"cut.tsv.*can't be read"):
        read(write(tmp_path / f"cut.tsv{suffix}", whole[:-20]))


def test_the_usual_names_are_found_and_the_rest_is_told(tmp_path):
    path = write(tmp_path / "a.tsv", "Sentence\tCLASS\tsource\na\t0\tx\n")
    table = Table.open(path, DETECT)
    assert table.columns == Columns("Sentence", None, "CLASS")
    assert table.unused == ("source",)


def test_asked_columns_come_first(tmp_path):
    path = write(tmp_path / "a.tsv", "text\ttext_b\tother\tlabel\na\tb\tc\t0\n")
    assert read(path, Columns(text_a="other")) == [(2, "c", None, "0")]
    assert read(path, Columns(text_a="text", text_b="other")) == [(2, "a", "c", "0")]
    assert read(path) == [(2, "a", "b", "0")]


def test_odd_texts_are_rows_and_are_counted(tmp_path):
    report = TextReport()
    content = b"\xef\xbb\xbftext\tlabel\na\x00b\t0\n\xff\xfec\t0\n\t1\n\n\xed\xa0\x80\t1\n"
    rows = read(write(tmp_path / "a.tsv", content), report=report)
    assert [row.text_a for row in rows] == ["a\x00b", "\ufffd\ufffdc", "", "\ufffd\ufffd\ufffd"]
    assert [row.line for row in rows] == [2, 3, 4, 6]
    assert (report.invalid_bytes, report.byte_order_marks) == (5, 1)


def test_a_lone_surrogate_in_json_is_passed_on(tmp_path):
    rows = read(write(tmp_path / "a.jsonl", '{"text": "\\ud800x", "label": 0}\n'))
    assert rows[0].text_a == "\ud800x"


@pytest.mark.errors
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "", ": expected rows, got none"),
        (
            "a.json",
            "{}",
            ": expected a name that ends in .tsv, .csv or .jsonl, and .xz or .gz after it; a "
            ".json of SQuAD's is for --task question-answering",
        ),
        (
            "a.conll",
            "a\tO\n",
            ": expected a name that ends in .tsv, .csv or .jsonl, and .xz or .gz after it; "
            "tagged words, a line each, are for --task token-classification",
        ),
        ("a.tsv", "text\tlabel\n", ": expected rows, got none"),
        ("a.tsv", "text\tlabel\na\n", ", line 2: expected 2 columns (text, label), got 1"),
        ("a.tsv", "text\tlabel\n\nb\t0\t\n", ", line 3: expected 2 columns (text, label), got 3"),
        ("a.tsv", "text\ttext\na\t0\n", ", line 1: column 'text' is there twice"),
        ("a.tsv", "text\tlabel\na\t\n", ", line 2, column 'label': expected a label, got nothing"),
        (
            "a.tsv",
            "label\ttext\n \ta\n",
            ", line 2, column 'label': expected a label, got nothing",
        ),
        (
            "a.tsv",
            "words\tlabel\na\t1\n",
            ": columns.text_a: expected a column named text_a, text, sentence, sentence1, "
            "premise, question1, got words, label; say which it is",
        ),
        (
            "a.tsv",
            "text\ty\na\t1\n",
            ": columns.label: expected a column named label, labels, class, target, gold_label, "
            "got text, y; say which it is",
        ),
        (
            "a.tsv",
            "text\tsentence\tlabel\na\tb\t1\n",
            ": columns.text_a: expected one column of a usual name, got text and sentence; "
            "say which",
        ),
        (
            "a.csv",
            'text,label\nc,1\n"a,1\nb,0\n',
            ", line 3: expected a row of a CSV file, got one with: unexpected end of data",
        ),
        ("a.csv", "text,label\na,b,1\n", ", line 2: expected 2 columns (text, label), got 3"),
        ("a.jsonl", "[1]\n", ", line 1: expected an object, got [1]"),
        (
            "a.jsonl",
            '{"text": "a", "label": 1}\n{"text": "a"}\n',
            ", line 2, column 'label': expected a label, a name or a whole number, got nothing",
        ),
        (
            "a.jsonl",
            '{"text": "a", "label": 1.5}\n',
            ", line 1, column 'label': expected a label, a name or a whole number, got 1.5",
        ),
        (
            "a.jsonl",
            '{"text": "a", "label": true}\n',
            ", line 1, column 'label': expected a label, a name or a whole number, got true",
        ),
        (
            "a.jsonl",
            '{"text": 7, "label": 1}\n',
            ", line 1, column 'text': expected a text, got 7",
        ),
        (
            "a.jsonl",
            '{"text": "a", "label": 1}\n{"label": 1}\n',
            ", line 2, column 'text': expected a text, got nothing",
        ),
        ("a.tsv", b"\xff\xfet\0e\0", ", line 1: expected UTF-8, got UTF-16 (by its mark)"),
        (
            "a.txt",
            "text\n",
            ": expected a name that ends in .tsv, .csv or .jsonl, and .xz or .gz after it",
        ),
        ("a.tsv.xz", "text\n", ": can't be read: Input format not supported by decoder"),
    ],
)  # fmt: skip
def test_an_error_names_the_file_the_line_and_the_column(tmp_path, name, content, message):
    fails(tmp_path / name, content, message)


@pytest.mark.errors
@pytest.mark.parametrize("line", ["{", "[" * 100_000, '{"label": 1' + "0" * 10_000 + "}"])
def test_what_is_not_json_is_told_with_its_line(tmp_path, line):
    path = write(tmp_path / "a.jsonl", f'{{"text": "a", "label": 1}}\n{line}\n')
    with pytest.raises(ValueError, match="line 2: expected JSON: "):
        read(path)


@pytest.mark.errors
def test_a_column_that_was_asked_for_must_be_there(tmp_path):
    message = ": columns.label: expected one of text, label, got 'y'"
    fails(tmp_path / "a.tsv", "text\tlabel\na\t0\n", message, Columns(label="y"))


@pytest.mark.errors
def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError) as error:
        read(tmp_path / "no.tsv")
    assert str(error.value) == f"{tmp_path / 'no.tsv'}: can't be read: No such file or directory"
