"""Text → a prepared corpus: the same documents, whatever the form and the faults of the text."""

import fcntl
import gzip
import lzma
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bert.text import TextReport
from bert.tokenization import Tokenizer
from pretrain.corpus import MANIFEST, TOKENS, Corpus
from pretrain.preparation import prepare
from pretrain.sentences import split_sentences
from tests.conftest import ROOT
from tests.pretrain.texts import (
    DOCUMENTS_OF_TEXT,
    TOKENIZER,
    contents,
    make_documents,
    write_text,
)


def prepared(tmp_path, *texts: bytes | str, **options) -> Corpus:
    """Prepare one file for each text, in a directory of its own."""
    directory = tmp_path / f"{len(list(tmp_path.iterdir()))}"
    directory.mkdir()
    paths = []
    for number, text in enumerate(texts):
        paths.append(directory / f"{number}.txt")
        paths[-1].write_bytes(text.encode() if isinstance(text, str) else text)
    return prepare(paths, directory / "out", TOKENIZER, progress=False, **options)


def documents_in(corpus: Corpus) -> list[list[str]]:
    """The corpus as text: documents of sentences."""
    offsets = corpus.sentence_offsets
    return [
        [TOKENIZER.decode(corpus.tokens[offsets[i] : offsets[i + 1]]) for i in range(first, last)]
        for first, last in zip(
            corpus.document_offsets[:-1], corpus.document_offsets[1:], strict=True
        )
    ]


def test_sentences_and_documents_are_those_of_the_text(tmp_path):
    text = write_text(tmp_path / "text.txt", DOCUMENTS_OF_TEXT)
    corpus = prepare([text], tmp_path / "corpus", TOKENIZER, progress=False)
    expected = [
        [TOKENIZER.decode(ids) for ids in TOKENIZER.encode_plain(sentences)]
        for sentences in (
            [s for paragraph in paragraphs for s in split_sentences(paragraph)]
            for paragraphs in DOCUMENTS_OF_TEXT
        )
    ]
    assert documents_in(corpus) == expected
    manifest = corpus.manifest
    assert manifest["documents"] == len(expected)
    assert manifest["sentences"] == sum(map(len, expected))
    assert manifest["tokens"] == len(corpus.tokens)
    assert manifest["characters"] == sum(
        len(s) for document in DOCUMENTS_OF_TEXT for p in document for s in split_sentences(p)
    )
    assert manifest["tokenizer_sha256"] == TOKENIZER.sha256
    assert corpus.tokens.dtype == np.uint16
    assert sorted(path.name for path in corpus.directory.iterdir()) == sorted(
        [*manifest["files"], MANIFEST, "tokenizer"]
    )


def test_blank_lines_and_ends_of_files_part_documents(tmp_path):
    corpus = prepared(
        tmp_path, "\n\nThe cat sat. It ran.\nWe saw it.\n \t \n\n\nA dog.", "The mat.\r\n\r\nHome."
    )
    assert documents_in(corpus) == [
        ["the cat sat.", "it ran.", "we saw it."],
        ["a dog."],
        ["the mat."],
        ["home."],
    ]


@pytest.mark.parametrize(("suffix", "open_packed"), [(".gz", gzip.open), (".xz", lzma.open)])
def test_packed_files_are_the_same(tmp_path, suffix, open_packed):
    plain = write_text(tmp_path / "text.txt", DOCUMENTS_OF_TEXT)
    packed = tmp_path / f"text.txt{suffix}"
    with open_packed(packed, "wb") as file:
        file.write(plain.read_bytes())
    first = prepare([plain], tmp_path / "plain", TOKENIZER, progress=False)
    second = prepare([packed], tmp_path / "packed", TOKENIZER, progress=False)
    assert first.fingerprint == second.fingerprint
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(ValueError, match=f"text.txt{suffix}: line [0-9]+: cannot be unpacked"):
        prepare([packed], tmp_path / "broken", TOKENIZER, progress=False)
    assert not (tmp_path / "broken").exists()


def test_the_same_text_gives_the_same_bytes(tmp_path, monkeypatch):
    text = write_text(tmp_path / "text.txt", DOCUMENTS_OF_TEXT)
    directories = []
    for piece in (1 << 20, 1 << 20, 60, 1):  # characters that are tokenized at a time
        monkeypatch.setattr("pretrain.shards._PIECE", piece)
        directories.append(tmp_path / f"corpus{len(directories)}")
        prepare([text], directories[-1], TOKENIZER, progress=False)
    for directory in directories[1:]:
        assert contents(directory) == contents(directories[0])


texts = st.lists(
    st.sampled_from(["The cat sat.", "A dog ran home. It", "\n", "\n\n", "\x00", "\x07\n", " "])
    | st.text(max_size=8),
    max_size=12,
)


@given(texts, texts, st.sampled_from([1, 30, 1 << 20]), st.integers(1, 6))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_gives_a_sound_corpus(tmp_path, monkeypatch, first, second, piece, longest):
    monkeypatch.setattr("pretrain.shards._PIECE", piece)
    contents = ["".join(part).encode("utf-8", "replace") for part in (first, second)]
    contents = [b"We saw it.\n\n" + contents[0], contents[1] + b"\n\nThe end."]
    corpus = prepared(tmp_path, *contents, max_sentence_tokens=longest)
    sentences, documents = corpus.sentence_offsets, corpus.document_offsets
    assert sentences[0] == documents[0] == 0
    assert sentences[-1] == len(corpus.tokens) and documents[-1] == len(sentences) - 1
    assert (np.diff(documents) >= 1).all() and len(documents) >= 3
    assert (np.diff(sentences) >= 1).all() and (np.diff(sentences) <= longest).all()
    lines = [line for text in contents for line in text.decode().splitlines()]
    if all(line.isprintable() for line in lines):
        expected = TOKENIZER.encode_plain(s for line in lines for s in split_sentences(line))
        assert corpus.tokens.tolist() == [i for ids in expected for i in ids]


def test_long_sentences_are_cut_into_equal_parts(tmp_path):
    text = "cat " * 10 + "\n" + "dog " * 11 + "\n" + "mat " * 5 + "\n\nThe end."
    corpus = prepared(tmp_path, text, max_sentence_tokens=5)
    assert np.diff(corpus.sentence_offsets).tolist()[:6] == [5, 5, 4, 4, 3, 5]
    assert corpus.manifest["cut_sentences"] == 2
    assert documents_in(corpus)[0][1] == "cat cat cat cat cat"


def test_documents_without_tokens_are_none(tmp_path):
    corpus = prepared(
        tmp_path, "The cat.\n\n\x07\x00\n\n\x01\nA dog.\x02\n\n\x07", "", "\n\nHome."
    )
    assert documents_in(corpus) == [["the cat."], ["a dog."], ["home."]]


def test_what_is_odd_in_a_text_is_counted(tmp_path):
    counted = TextReport()
    TOKENIZER.report = counted
    corpus = prepared(
        tmp_path,
        b"\xef\xbb\xbfThe \x00cat\x07 sat.\n\nA \xff\xfe dog [MASK] ran [SEP].\n\nWe \xc3\x28 it.",
    )
    assert documents_in(corpus)[0] == ["the cat sat."]
    text = corpus.manifest["text"]
    assert text["byte_order_marks"] == 1
    assert text["invalid_bytes"] == 3
    assert text["controls"] == 2
    assert text["special_literals"] == 2
    special = [*TOKENIZER.special_ids]
    special.remove(TOKENIZER.unk_id)
    assert not np.isin(corpus.tokens, special).any()
    # The brackets are not in this vocabulary.
    assert corpus.manifest["unknown_tokens"] == int((corpus.tokens == TOKENIZER.unk_id).sum()) > 0
    # The caller's tokenizer keeps its own counts.
    assert TOKENIZER.report is counted and counted == TextReport()


def test_a_line_of_ten_megabytes(tmp_path):
    line = "The cat sat on a mat " * 500_000  # and never a full stop
    corpus = prepared(tmp_path, line + "\n\nHome.")
    assert len(corpus.tokens) == 500_000 * 6 + 2
    assert corpus.manifest["text"]["long_texts"] >= 1
    assert np.diff(corpus.sentence_offsets).max() <= 128
    assert np.diff(corpus.sentence_offsets[:-2]).min() > 32


def test_large_vocabularies_take_four_bytes(tmp_path):
    words = [f"w{i}" for i in range(65_536 - 4)]
    tokenizer = Tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])
    text = write_text(tmp_path / "text.txt", [[words[-1]], [words[0]]])
    corpus = prepare([text], tmp_path / "corpus", tokenizer, progress=False)
    assert corpus.tokens.dtype == np.uint32
    assert corpus.tokens.tolist() == [65_536, 5]
    smaller = Tokenizer(tokenizer.vocab[:-1])
    corpus = prepare([text], tmp_path / "smaller", smaller, progress=False)
    assert corpus.tokens.dtype == np.uint16
    assert corpus.tokens.tolist() == [1, 5]


def test_progress_is_drawn_on_a_terminal_unless_unwanted(tmp_path, capsys, monkeypatch):
    text = write_text(tmp_path / "text.txt", DOCUMENTS_OF_TEXT)
    prepare([text], tmp_path / "no terminal", TOKENIZER)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    prepare([text], tmp_path / "quiet", TOKENIZER, progress=False)
    assert capsys.readouterr() == ("", "")
    prepare([text], tmp_path / "corpus", TOKENIZER)
    assert "prepare: 100%" in capsys.readouterr().err


@pytest.mark.errors
@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "files: expected at least one text file, got none"),
        ([None], "0.txt: expected a text file, got none"),
        (["directory"], "0.txt: expected a text file, got a directory"),
        ([""], "files: expected at least 2 documents with text, .*, got 0"),
        (["\n \n\x00\n"], "files: expected at least 2 documents with text, .*, got 0"),
        (["The cat. It sat.\nA dog."], "files: expected at least 2 documents with text, .*got 1"),
        (["The cat.\n\nHome.", "The cat.\n\nHome."], "1.txt: holds the same bytes as 0.txt"),
    ],
)
def test_what_cannot_be_prepared_is_refused(tmp_path, texts, message):
    paths = []
    for number, text in enumerate(texts):
        paths.append(tmp_path / f"{number}.txt")
        if text == "directory":
            paths[-1].mkdir()
        elif text is not None:
            paths[-1].write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        prepare(paths, tmp_path / "out", TOKENIZER, progress=False)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.iterdir()) == sorted(path for path in paths if path.exists())


@pytest.mark.errors
def test_wrong_arguments_are_refused(tmp_path):
    text = write_text(tmp_path / "text.txt", DOCUMENTS_OF_TEXT)
    with pytest.raises(ValueError, match="out: expected a path where nothing is, got .*text.txt"):
        prepare([text], text, TOKENIZER, progress=False)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="out: expected a path where nothing is, got .*link"):
        prepare([text], tmp_path / "link", TOKENIZER, progress=False)
    with pytest.raises(ValueError, match="max_sentence_tokens: expected 1 or more, got 0"):
        prepare([text], tmp_path / "out", TOKENIZER, max_sentence_tokens=0, progress=False)


def test_two_writers_do_not_meet(tmp_path):
    text = write_text(tmp_path / "text.txt", DOCUMENTS_OF_TEXT)
    partial = tmp_path / ".out.partial"
    partial.mkdir()
    other = os.open(partial, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    try:
        with pytest.raises(ValueError, match="out: another process is preparing"):
            prepare([text], tmp_path / "out", TOKENIZER, progress=False)
        assert partial.exists()
    finally:
        os.close(other)
    prepare([text], tmp_path / "out", TOKENIZER, progress=False)
    assert not partial.exists()


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    text = write_text(tmp_path / "text.txt", make_documents(400))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(OSError, match="[0-9]+ more bytes were to be written: .*text-00000"):
            prepare([text], tmp_path / "out", TOKENIZER, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == [text]


KILLED = """
import sys
from pathlib import Path
from pretrain.preparation import prepare
from tests.pretrain.texts import TOKENIZER
prepare([Path(sys.argv[1])], Path(sys.argv[2]), TOKENIZER, progress=False)
"""


def test_a_killed_preparation_leaves_no_corpus_and_the_next_one_works(tmp_path):
    text = write_text(tmp_path / "text.txt", make_documents(5_000))
    out, partial = tmp_path / "out", tmp_path / ".out.partial"
    child = subprocess.Popen([sys.executable, "-c", KILLED, text, out], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not [*partial.glob(f"*/{TOKENS}")] and time.monotonic() < deadline:
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert partial.exists() and not out.exists()
    small = write_text(tmp_path / "small.txt", DOCUMENTS_OF_TEXT)
    corpus = prepare([small], out, TOKENIZER, progress=False)
    corpus.verify()
    assert corpus.manifest["documents"] == len(DOCUMENTS_OF_TEXT)
    assert not partial.exists()
    assert (out / MANIFEST).stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_real_book(tmp_path, shared_data):
    tokenizer = Tokenizer.load(shared_data("vocabs/bert-base-uncased-vocab.txt"))
    book = shared_data("books_pd/validation.txt.xz")
    corpus = prepare([book], tmp_path / "corpus", tokenizer, progress=False)
    manifest = corpus.manifest
    assert manifest["documents"] == 54  # as books_pd's own list says
    assert manifest["unknown_tokens"] < 5
    assert 15 < manifest["tokens"] / manifest["sentences"] < 40
    assert 3.5 < manifest["characters"] / manifest["tokens"] < 5
