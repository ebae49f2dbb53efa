"""Learning a vocabulary: the same each time, from any source, in bounded memory."""

import gzip
import lzma
import os
import random
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import pytest

from bert import vocabulary
from bert.text import SPECIAL_TOKENS, TextReport
from bert.tokenization import Tokenizer

# Enough text of different characters to have many ties between pairs.
rng = random.Random(0)
WORDS = [
    "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(1, 7))) for _ in range(400)
]
TEXTS = [" ".join(rng.choices(WORDS, k=20)) + "." for _ in range(200)] + ["Él, 中文 (日本)!"] * 3


def test_the_pairs_that_stand_together_most_often_are_joined():
    tokenizer = Tokenizer.train(["the then the the", "ox", "ox"], 26)
    assert tokenizer.vocab[:5] == SPECIAL_TOKENS
    assert tokenizer.vocab[5:10] == ("e", "h", "t", "o", "x")  # e h t: 4 each
    assert tokenizer.vocab[10:15] == ("##e", "##h", "##t", "##o", "##x")
    # "t" "##h" and "##h" "##e" stand together 4 times each: the lower ids win.
    assert tokenizer.vocab[15:] == ("th", "the", "ox")
    assert tokenizer.encode("The ox then").tokens[1:-1] == ["the", "ox", "[UNK]"]


def test_the_size_is_kept_and_every_known_character_has_a_piece_everywhere():
    tokenizer = Tokenizer.train(TEXTS, 300)
    assert tokenizer.vocab_size == 300 and tokenizer.special_ids == (0, 1, 2, 3, 4)
    for row in ["zyxwvutsrqponmlkjihgfedcba", "e.l,é!(中z文a)", "日日 本a"]:
        assert tokenizer.unk_id not in tokenizer.encode(row).ids
    assert "中" in tokenizer.vocab and "##中" not in tokenizer.vocab, "always a word of its own"
    assert "##." not in tokenizer.vocab
    assert all(token == token.lower() for token in tokenizer.vocab[5:])


def test_a_cased_vocabulary_keeps_case_and_accents():
    tokenizer = Tokenizer.train(TEXTS, 300, lowercase=False)
    assert tokenizer.encode("Él").tokens[1:-1] in (["Él"], ["É", "##l"])
    assert tokenizer.normalization.lowercase is False
    assert "##中" in Tokenizer.train(TEXTS, 300, handle_chinese_chars=False).vocab


def test_rare_characters_and_pairs_get_no_piece():
    texts = ["ab ab ab", "q"]
    assert "q" not in Tokenizer.train(texts, 100).vocab
    assert "q" in Tokenizer.train(texts, 100, min_frequency=1).vocab
    assert "ab" in Tokenizer.train(texts, 100, min_frequency=3).vocab
    assert "ab" not in Tokenizer.train([*texts, "b", "a"], 100, min_frequency=4).vocab


def test_characters_take_at_most_half_of_the_vocabulary():
    texts = [chr(0x4E00 + number) * (1000 - number) for number in range(500)] + ["cat cat"] * 9
    tokenizer = Tokenizer.train(texts, 105)
    characters = [token for token in tokenizer.vocab if len(token) == 1]
    assert characters == [chr(0x4E00 + number) for number in range(50)], "the most frequent ones"
    letters = "abcdefghijklmnopqrstuvwxyz"  # each has two pieces, at a word's start and inside
    texts = [letter * 2 + " " for number, letter in enumerate(letters) for _ in range(30 - number)]
    assert (
        "".join(token for token in Tokenizer.train(texts, 45).vocab if len(token) == 1)
        == "abcdefghij"
    )


def test_any_process_and_any_number_of_threads_learn_the_same(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS), encoding="utf-8")
    code = (
        "import sys; from pathlib import Path; from bert.tokenization import Tokenizer;"
        "print(Tokenizer.train([Path(sys.argv[1])], 600).sha256)"
    )
    prints = {Tokenizer.train([path], 600).sha256}
    for threads in ("1", "2", "3"):
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": threads}
        result = subprocess.run(
            [sys.executable, "-c", code, path],
            cwd=Path(__file__).resolve().parents[2],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        prints.add(result.stdout.strip())
    assert len(prints) == 1


def test_files_lists_and_generators_are_the_same_source(tmp_path):
    content = "\n".join(TEXTS).encode()
    (tmp_path / "a.txt").write_bytes(content)
    (tmp_path / "a.gz").write_bytes(gzip.compress(content))
    (tmp_path / "a.xz").write_bytes(lzma.compress(content))
    expected = Tokenizer.train(TEXTS, 300)
    for source in (
        (text for text in TEXTS),
        [tmp_path / "a.txt"],
        [tmp_path / "a.gz"],
        iter([tmp_path / "a.xz"]),
        ["\n".join(TEXTS)],
    ):
        assert Tokenizer.train(source, 300) == expected


def test_odd_text_is_counted_and_teaches_nothing(tmp_path):
    path = tmp_path / "odd.txt"
    path.write_bytes(b"\xef\xbb\xbf\n\xff\xffa\x00b\n" + "\n".join(TEXTS).encode())
    odd = [path, "\ud800", "[MASK]" * 60, "ω" * 101 + " ", "ω" * 20_000 + " " + "ω" * 20_000]
    tokenizer = Tokenizer.train(odd, 400)
    assert tokenizer.report == TextReport(
        texts=2 + len(TEXTS) + 4,
        surrogates=1,
        controls=1,
        byte_order_marks=1,
        invalid_bytes=2,
        long_texts=1,
        special_literals=60,
    )
    assert not any("ω" in token or "\ufffd" in token for token in tokenizer.vocab)
    assert tokenizer.encode("[MASK]").tokens[1:-1] == ["[", "mask", "]"]


@pytest.mark.errors
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("corpus.txt", "source: expected texts and Paths, got one str"),
        (Path("corpus.txt"), "source: expected texts and Paths, got one PosixPath"),
        ([], "text: expected enough for 99 tokens, got 0 characters in all, none of which"),
        (["a b"], "text: expected enough for 99 tokens, got 3 characters in all, none of which"),
        (["a", None], r"source: expected texts and Paths, got a NoneType"),
    ],
)
def test_a_source_without_text_is_refused(source, message):
    with pytest.raises(ValueError, match=message):
        Tokenizer.train(source, 99)


def test_a_vocabulary_needs_some_room():
    with pytest.raises(ValueError, match="vocab_size: expected at least 10, got 9"):
        Tokenizer.train(TEXTS, 9)


def test_a_broken_file_of_the_source_is_named(tmp_path):
    (tmp_path / "a.xz").write_bytes(lzma.compress(os.urandom(9999))[:-99])
    with pytest.raises(ValueError, match=r"a\.xz: line \d+: cannot be unpacked"):
        Tokenizer.train([tmp_path / "a.xz"], 99)


def test_memory_does_not_grow_with_the_text(monkeypatch):
    """Python's side: ten times the text, the same peak (`tokenizers` has one entry a word)."""
    copies, spooled = [], tempfile.SpooledTemporaryFile

    def packed_copy(max_size):
        copies.append(spooled(max_size=max_size))
        return copies[-1]

    monkeypatch.setattr(vocabulary, "IN_MEMORY", 1000)
    monkeypatch.setattr(vocabulary.tempfile, "SpooledTemporaryFile", packed_copy)

    def peak(repeats):
        texts = (" ".join(rng.choices(WORDS, k=20)) for _ in range(200 * repeats))
        tracemalloc.start()
        Tokenizer.train(texts, 100)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(20) < 1.5 * peak(2)
    assert all(copy._rolled for copy in copies), "on disk"
