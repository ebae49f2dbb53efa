"""Odd text: each policy at the head of bert/text.py, and its count."""

import gzip
import lzma
import os
import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bert import text
from bert.text import TextReport, odd_things, read_lines
from bert.tokenization import Tokenizer
from tests.bert.test_tokenization import VOCAB

# What the batch of each test holds beside the odd row, and what it must give whatever that is.
GOOD, GOOD_TOKENS = "Embeddings aren't fine", "em ##bed ##ding ##s aren ' t fine".split()


def encode(row, **options):
    """Encode an odd row between two good ones; see that these are as ever; give the odd one."""
    tokenizer = Tokenizer(VOCAB)
    batch = tokenizer.encode_batch([GOOD, row, GOOD], **options)
    assert batch[0].tokens[1:-1] == batch[2].tokens[1:-1] == GOOD_TOKENS
    if not options:
        assert tokenizer.encode_plain([GOOD, row, GOOD])[1] == batch[1].ids[1:-1]
        tokenizer.report = TextReport()
        assert tokenizer.encode(row) == batch[1]
    return batch[1], tokenizer.report


def counted(**counts):
    return TextReport(texts=1, **counts)


def test_lone_surrogates_vanish_and_move_nothing():
    encoding, report = encode("a \ud800\udc00b \udfff c")
    assert encoding.tokens[1:-1] == ["a", "b", "c"]
    assert encoding.offsets[1:-1] == [(0, 1), (4, 5), (8, 9)]
    assert report == counted(surrogates=3)


def test_control_characters_vanish_and_tabs_are_spaces():
    encoding, report = encode("a\x00\tem\x01\x0b\x1c\x85bed\x7f\nc\r")
    assert encoding.tokens[1:-1] == ["a", "em", "##bed", "c"]
    assert encoding.offsets[1:-1] == [(0, 1), (3, 5), (9, 12), (14, 15)]
    assert report == counted(controls=6)


def test_a_byte_order_mark_vanishes():
    encoding, report = encode("\ufeffa")
    assert encoding.tokens[1:-1] == ["a"] and encoding.offsets[1] == (1, 2)
    assert report == counted(byte_order_marks=1)


@pytest.mark.parametrize("row", ["", " \n\u3000", "\x00", "\u200b"])
def test_an_empty_text_is_a_frame_alone(row):
    encoding, report = encode(row)
    assert encoding.tokens == ["[CLS]", "[SEP]"]
    assert report == counted(empty=1, controls=row.count("\x00"))


def test_literal_special_tokens_are_text():
    encoding, report = encode("a [MASK] [SEP]. [mask]")
    assert encoding.tokens[1:-1] == "a [ mask ] [ sep ] . [ mask ]".split()
    assert report == counted(special_literals=2)


def test_literal_special_tokens_count_where_the_caller_says_so():
    encoding, report = encode("a [MASK][SEP] [mask]", allow_special=True)
    assert encoding.tokens[1:-1] == "a [MASK] [SEP] [ mask ]".split()
    assert encoding.offsets[2:4] == [(2, 8), (8, 13)]
    assert encoding.ids[2] == VOCAB.index("[MASK]")
    assert report == TextReport(texts=3)


noise = st.text(
    st.sampled_from("\ufeff\ufffd\u200b\u200d \t\n\u3000")
    | st.characters(categories=["Cs", "Cc"]),
    max_size=6,
)


@given(st.lists(st.tuples(noise, st.sampled_from(["a", "em", "fine", "中", "é"]))))
def test_offsets_point_into_the_text_of_the_user(pieces):
    row, offsets = "", []
    for odd, word in pieces:
        row += odd + " "
        offsets.append((len(row), len(row) + len(word)))
        row += word + " "
    encoding, _ = encode(row)
    assert encoding.offsets[1:-1] == offsets
    assert encoding.tokens[1:-1] == [word.replace("é", "e") for _, word in pieces]


# --- long texts


@pytest.fixture
def short_parts(monkeypatch):
    """Cut from 12 characters on, so that a test's texts are long ones."""
    monkeypatch.setattr(text, "LONGEST", 12)


spaced = st.text(st.sampled_from("ab中É.  \u3000\t\u0301"), max_size=80)
words = st.text(st.sampled_from("ab中É.'\u0301"), max_size=12)


@pytest.mark.usefixtures("short_parts")
@given(st.lists(words, max_size=12), st.sampled_from([" ", "\t", "\u3000", " \u2028"]))
@example(["ab", "中.", "É", "a"] * 3, " ")
def test_the_cuts_of_a_long_text_change_nothing(runs, space):
    row = space.join(runs)
    tokenizer = Tokenizer(VOCAB)
    cut, plain = tokenizer.encode(row), tokenizer.encode_plain([row])[0]
    whole = tokenizer._backend.encode(row, add_special_tokens=False)
    assert plain == cut.ids[1:-1] == whole.ids
    assert cut.offsets[1:-1] == whole.offsets
    assert cut.tokens[1:-1] == whole.tokens
    assert cut.word_ids[1:-1] == whole.word_ids
    assert tokenizer.report.long_texts == 2 * (len(row) > 12)


@pytest.mark.usefixtures("short_parts")
@given(spaced, st.integers(2, 12))
@example("a b " * 20, 7)
def test_a_long_text_is_read_only_as_far_as_needed(row, max_length):
    tokenizer = Tokenizer(VOCAB)
    short = tokenizer.encode(row, "a b", max_length=max_length + 3)
    other = tokenizer.encode(row, "a b")
    size = len(other) - 5
    longest = [size, 2]
    while sum(longest) > max_length:  # one token at a time, off the longer
        longest[longest[0] < longest[1]] -= 1
    assert sum(longest) == len(short) - 3
    assert short.ids[1 : 1 + longest[0]] == other.ids[1 : 1 + longest[0]]
    alone = tokenizer.encode(row, max_length=max_length + 2)
    assert alone.ids[1:-1] == other.ids[1 : 1 + size][:max_length]


@pytest.mark.usefixtures("short_parts")
def test_a_refused_long_text_is_named_with_its_whole_length():
    for truncation in ("error", "only_second"):
        with pytest.raises(ValueError, match=r"at most 5 tokens without the frame, got 40 and 9 "):
            Tokenizer(VOCAB).encode("a b " * 20, "a " * 9, max_length=8, truncation=truncation)


@pytest.mark.usefixtures("short_parts")
def test_a_run_without_spaces_is_cut_where_it_stands():
    assert list(text.parts("ab " + "x" * 30)) == [
        (0, "ab "),
        (3, "x" * 12),
        (15, "x" * 12),
        (27, "x" * 6),
    ]
    assert text.split_at_spaces("ab " + "x" * 30) == ["ab", "x" * 12, "x" * 12, "x" * 6]
    # To Python "\x0b" is a space; to BERT it is nothing, so no place for a cut.
    assert list(text.parts("a\x0b" + "x" * 11)) == [(0, "a\x0b" + "x" * 10), (12, "x")]


def test_ten_megabytes_in_one_line_take_no_time_to_truncate():
    row = "embeddings aren't 中文 " * 500_000
    assert len(row) > 10_000_000
    tokenizer = Tokenizer(VOCAB)
    start = time.process_time()
    encoding = tokenizer.encode(row, max_length=512)
    ids, lengths = tokenizer.encode_flat([row])
    assert time.process_time() - start < 8
    assert len(encoding) == 512 and lengths.tolist() == [9 * 500_000]
    assert encoding.ids[1:10] == ids[-9:].tolist()
    assert tokenizer.report == TextReport(texts=2, long_texts=2)


# --- files


PACKED = {"a.txt": open, "a.txt.gz": gzip.open, "a.txt.xz": lzma.open}


@pytest.mark.parametrize("name", PACKED)
def test_a_file_is_read_whatever_it_holds(tmp_path, name):
    content = b"\xef\xbb\xbfone\r\n\ntwo\xff\xfe\x00 \xed\xa0\x80\rthree\n\xef\xbb\xbf\xe4\xb8\xad"
    with PACKED[name](tmp_path / name, "wb") as file:
        file.write(content)
    report = TextReport()
    lines = list(read_lines(tmp_path / name, report))
    assert lines == ["one", "", "two\ufffd\ufffd\x00 \ufffd\ufffd\ufffd", "three", "\ufeff中"]
    assert report == TextReport(byte_order_marks=1, invalid_bytes=5)


@pytest.mark.parametrize("name", ["a.gz", "a.xz"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "not packed"])
def test_a_broken_packed_file_is_named(tmp_path, name, damage):
    packed = {"a.gz": gzip, "a.xz": lzma}[name].compress(bytes(range(32, 127)) * 99 + b"\n" * 9)
    if damage == "cut":
        packed = packed[:-20]
    elif damage == "flipped":
        packed = packed[:40] + bytes([packed[40] ^ 255]) + packed[41:]
    else:
        packed = b"plain text"
    (tmp_path / name).write_bytes(packed)
    expected = rf"^{re.escape(str(tmp_path / name))}: line \d+: cannot be unpacked: [^\n]*$"
    with pytest.raises(ValueError, match=expected):
        list(read_lines(tmp_path / name))


def test_a_file_cut_short_is_named_with_its_line(tmp_path):
    lines = [os.urandom(20).hex() for _ in range(5000)]
    (tmp_path / "a.gz").write_bytes(gzip.compress("\n".join(lines).encode())[:-2000])
    got = []
    with pytest.raises(ValueError) as error:
        for line in read_lines(tmp_path / "a.gz"):
            got.append(line)
    assert 1000 < len(got) < 5000 and got == lines[: len(got)]
    assert f"a.gz: line {len(got) + 1}: cannot be unpacked" in str(error.value)


@pytest.mark.usefixtures("short_parts")
@given(spaced, st.sampled_from(["\n", "", "\n\nb"]))
@example("ab " * 20, "\n")
@example("a" * 12, "\n")
@example("a" * 36, "\n\nb")
def test_long_lines_of_a_file_come_in_parts(tmp_path_factory, row, end):
    path = tmp_path_factory.mktemp("lines") / "a.txt"
    path.write_text(row + end, encoding="utf-8")
    report = TextReport()
    lines = list(read_lines(path, report))
    assert all(len(line) <= 2 * 12 for line in lines)
    expected = (row + end).removesuffix("\n").split("\n") if row + end else []
    assert "".join(lines) == "".join(expected)
    assert lines.count("") == expected.count(""), "a cut makes no blank line"
    assert report.long_texts == (len(lines) > len(expected))


def test_a_user_is_told_what_is_odd_and_nothing_where_nothing_is():
    assert odd_things(vars(TextReport(texts=7))) == []
    (line,) = odd_things(vars(TextReport(texts=7, empty=2, controls=1)))
    assert line.endswith('{"empty": 2, "controls": 1}')
