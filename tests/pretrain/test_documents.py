"""Files → paragraphs and documents: the same, whatever the form; what can't be read is named."""

import gzip
import json
import lzma

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert.text import TextReport, open_unpacked
from pretrain import documents
from pretrain.documents import Rows, describe_sources, read_paragraphs

try:
    from backports import zstd
except ImportError:
    zstd = None

PACKERS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}
if zstd:
    PACKERS[".zst"] = zstd.compress


def read(path, **rows):
    """The documents of a file, the report, and the rows."""
    report, rows = TextReport(), Rows(**rows)
    found, document = [], []
    for paragraph in read_paragraphs(path, report, rows):
        if paragraph is not None:
            document.append(paragraph)
        elif document:
            found.append(document)
            document = []
    assert not document, "a file's end is a document's end"
    return found, report, rows


def jsonl(*records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


@pytest.mark.parametrize("packed", PACKERS)
def test_lines_and_rows_are_read_packed_or_not(tmp_path, packed):
    text = tmp_path / f"a.txt{packed}"
    text.write_bytes(PACKERS[packed](b"One.\nTwo.\n \t\n\nThree.\r\nFour"))
    assert read(text)[0] == [["One.", "Two."], ["Three.", "Four"]]
    rows = tmp_path / f"a.jsonl{packed}"
    records = [{"text": "One.\nTwo."}, {"id": 3, "text": "\r\nThree.\r\n \n\rFour"}, {"text": " "}]
    rows.write_bytes(PACKERS[packed](jsonl(*records) + b"\n"))
    assert read(rows)[0] == [["One.", "Two."], ["Three.", "Four"]]


@pytest.mark.errors
@pytest.mark.parametrize("name", [f"a.{kind}{packed}" for kind in ("txt", "jsonl")
                                  for packed in PACKERS if packed])  # fmt: skip
@pytest.mark.parametrize("damage", ["cut", "not packed"])
def test_a_broken_packed_file_is_named_with_the_place(tmp_path, name, damage):
    path = tmp_path / name
    packed = PACKERS[path.suffix](jsonl(*[{"text": f"{i} cats."} for i in range(5000)]))
    path.write_bytes(packed[:-20] if damage == "cut" else b"plain text")
    with pytest.raises(ValueError, match=rf"{name}: (line|row) \d+: cannot be unpacked: [^\n]+$"):
        read(path)


@pytest.mark.errors
def test_a_zst_file_without_its_library_names_the_extra(tmp_path, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("bert.text.import_module", missing)
    with pytest.raises(ModuleNotFoundError, match="a.zst: .*install the extra zst: pip install"):
        open_unpacked(tmp_path / "a.zst")


BAD_ROWS = [
    (b'{"text": "a"', "expected JSON, got Expecting"),
    (b"[" * 100_000, "expected JSON, got maximum recursion"),
    (b"7" * 5000, "expected JSON, got Exceeds the limit"),
    (b'["text"]', r"expected a JSON object, got \['text'\]"),
    (b'{"body": "a"}', r"expected a text in the field 'text', got only \['body'\]"),
    (b'{"text": null}', "expected a text in the field 'text', got None"),
    (b'{"text": ["a"]}', r"expected a text in the field 'text', got \['a'\]"),
    (b'{"text": "' + b"a" * 200 + b'"}', "expected at most 100 bytes, got more"),
]


@pytest.mark.errors
@pytest.mark.parametrize(("row", "message"), BAD_ROWS)
def test_a_bad_row_is_named_or_skipped_and_counted(tmp_path, monkeypatch, row, message):
    monkeypatch.setattr(documents, "LARGEST_ROW", 100 if len(row) < 300 else 1 << 20)
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl({"text": "One."}) + b"\n" + row + b"\n" + jsonl({"text": "Two."}))
    with pytest.raises(ValueError, match=f"a.jsonl: row 3: {message}") as error:
        read(path)
    assert len(str(error.value)) < 300
    found, _, rows = read(path, skip_bad=True)
    assert found == [["One."], ["Two."]] and rows.skipped == 1


def test_a_row_of_the_largest_size_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "LARGEST_ROW", 100)
    path = tmp_path / "a.jsonl"
    for end in (b"", b"\n", b"\n" + jsonl({"text": "b"})):
        path.write_bytes(b'{"text": "' + b"a" * 88 + b'"}' + end)
        assert read(path)[0][0] == ["a" * 88]


def test_another_field(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl({"text": 3, "body": "One."}))
    assert read(path, text_field="body")[0] == [["One."]]


def test_odd_text_in_a_row_is_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a\\ud800b\xff\\u0000"}\n{"text": "\\ud83d\\ude00"}\n')
    found, report, _ = read(path)
    assert found == [["a\ufffdb\ufffd\x00"], ["\U0001f600"]]
    assert report == TextReport(byte_order_marks=1, invalid_bytes=1, surrogates=1)


def test_a_long_line_of_a_row_comes_in_parts(tmp_path):
    path = tmp_path / "a.jsonl"
    words = "cat " * 50_000
    path.write_bytes(jsonl({"text": words}))
    (document,), _, _ = read(path)
    assert "".join(document) == words and max(map(len, document)) <= 16_384


nasty = st.text(
    st.sampled_from("a. \n\r\t\x00\x0b\x1c\x85\u2028\ufeff\ud800\U0001f600") | st.characters(),
    max_size=40,
)


@given(st.lists(nasty, max_size=5))
def test_any_text_comes_back_from_a_row(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    path.write_bytes(jsonl(*[{"text": text} for text in texts]))
    expected = []
    for text in json.loads(json.dumps(texts)):  # two lone surrogates may become one character
        clean = "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
        lines = clean.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        expected += [document] if (document := [line for line in lines if line.strip()]) else []
    assert read(path)[0] == expected


@pytest.mark.errors
@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize(
    "content",
    [
        bytes(range(256)) * 400,
        "привет, мир\n".encode("cp1251") * 100,
        ("words\n" * 100).encode("utf-16"),
    ],
    ids=["bytes", "cp1251", "utf-16"],
)
def test_a_file_that_is_no_text_is_refused(tmp_path, packer, content):
    path = tmp_path / f"a.txt{packer}"
    path.write_bytes(PACKERS[packer](content))
    with pytest.raises(ValueError, match=r"a\.txt.*: expected text in UTF-8, got a file with"):
        describe_sources([path])


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize(
    "content",
    # Some bytes of another encoding, a NUL, and a character that the sample's end cuts in two.
    ["d\xe9j\xe0 vu, et ainsi de suite\n".encode("latin-1"), b"a b c d\x00 e f g h\n", b"", b"x"
     + "€".encode() * 30_000],
    ids=["latin-1", "nul", "empty", "cut"],
)  # fmt: skip
def test_a_text_with_odd_bytes_is_none_of_those(tmp_path, packer, content):
    path = tmp_path / f"a.txt{packer}"
    path.write_bytes(PACKERS[packer](content))
    (source,) = describe_sources([path])
    assert source["name"] == path.name
