"""What the tokenizer gives, held against small examples worked out by hand."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert.text import SPECIAL_TOKENS
from bert.tokenization import Tokenizer
from bert.vocabulary import Normalization

PIECES = (
    "em ##bed ##ding ##s aren how that fine ' t s . ? [ ] mask sep 中 文 a b c d e ##e".split()
)
# The special tokens lie where the file has them, not at the front.
VOCAB = [*PIECES, *SPECIAL_TOKENS]


@pytest.fixture
def tokenizer():
    return Tokenizer(VOCAB)


def test_the_example_at_the_head_of_the_module(tokenizer):
    encoding = tokenizer.encode("Émbeddings aren't magic")
    assert encoding.tokens == "[CLS] em ##bed ##ding ##s aren ' t [UNK] [SEP]".split()
    assert encoding.ids == [VOCAB.index(token) for token in encoding.tokens]
    assert encoding.word_ids == [None, 0, 0, 0, 0, 1, 2, 3, 4, None]
    offsets = [
        (0, 0),
        (0, 2),
        (2, 5),
        (5, 9),
        (9, 10),
        (11, 15),
        (15, 16),
        (16, 17),
        (18, 23),
        (0, 0),
    ]
    assert encoding.offsets == offsets
    assert encoding.token_type_ids == [0] * 10


def test_the_pair_at_the_head_of_framing(tokenizer):
    encoding = tokenizer.encode("How's that?", "Fine.")
    assert encoding.tokens == "[CLS] how ' s that ? [SEP] fine . [SEP]".split()
    assert encoding.token_type_ids == [0, 0, 0, 0, 0, 0, 0, 1, 1, 1]
    assert encoding.word_ids == [None, 0, 1, 2, 3, 4, None, 0, 1, None]
    assert encoding.offsets[7:9] == [(0, 4), (4, 5)]


def test_special_ids_are_those_of_the_vocabulary(tokenizer):
    first = len(PIECES)
    assert tokenizer.special_ids == tuple(range(first, first + 5))
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id) == (first, first + 1, first + 2)
    assert (tokenizer.sep_id, tokenizer.mask_id) == (first + 3, first + 4)
    assert tokenizer.vocab_size == len(VOCAB) and tokenizer.vocab[first] == "[PAD]"
    assert tokenizer.token_to_id("em") == 0 and tokenizer.token_to_id("nowhere") is None


def test_a_word_of_over_100_characters_is_unknown(tokenizer):
    assert tokenizer.encode("a" + "e" * 99).tokens[1:3] == ["a", "##e"]
    assert tokenizer.encode("a" + "e" * 100).tokens == ["[CLS]", "[UNK]", "[SEP]"]


def test_chinese_characters_are_words_of_their_own_unless_told_otherwise():
    assert Tokenizer(VOCAB).encode("中文a").tokens[1:-1] == ["中", "文", "a"]
    unsplit = Tokenizer(VOCAB, Normalization(handle_chinese_chars=False))
    assert unsplit.encode("中文a").tokens[1:-1] == ["[UNK]"]


def test_accents_go_with_the_case_unless_told_otherwise():
    def tokens(**options):
        return Tokenizer(VOCAB, Normalization(**options)).encode("É é E").tokens[1:-1]

    assert tokens() == ["e", "e", "e"]
    assert tokens(lowercase=False) == ["[UNK]"] * 3
    assert tokens(lowercase=False, strip_accents=True) == ["[UNK]", "e", "[UNK]"]
    assert tokens(strip_accents=False) == ["[UNK]", "[UNK]", "e"]


# --- truncation


@pytest.mark.parametrize(
    ("truncation", "max_length", "first", "second"),
    [
        ("longest_first", 9, "abc", "abc"),  # the longer one down to the shorter, then both
        ("longest_first", 8, "abc", "ab"),
        ("longest_first", 10, "abcd", "abc"),
        ("only_first", 7, "a", "abc"),
        ("only_second", 9, "abcde", "a"),
        ("error", 11, "abcde", "abc"),
    ],
)
def test_what_each_strategy_cuts(tokenizer, truncation, max_length, first, second):
    got = tokenizer.encode("a b c d e", "a b c", max_length=max_length, truncation=truncation)
    assert got.tokens == ["[CLS]", *first, "[SEP]", *second, "[SEP]"]
    assert got.token_type_ids == [0] * (2 + len(first)) + [1] * (1 + len(second))
    assert len(got) == len(got.offsets) == len(got.word_ids) == max_length


def test_of_two_texts_as_long_the_second_keeps_the_odd_token(tokenizer):
    got = tokenizer.encode("a b c", "a b c", max_length=8)
    assert got.tokens == "[CLS] a b [SEP] a b c [SEP]".split()


@pytest.mark.parametrize(
    ("truncation", "max_length"), [("only_first", 6), ("only_second", 8), ("error", 10)]
)
def test_no_strategy_takes_all_of_a_text(tokenizer, truncation, max_length):
    expected = rf"^texts\[0\]: .* got 5 and 3 \(truncation='{truncation}'\)$"
    with pytest.raises(ValueError, match=expected):
        tokenizer.encode("a b c d e", "a b c", max_length=max_length, truncation=truncation)


def test_a_single_text_is_cut_at_its_end(tokenizer):
    assert tokenizer.encode("a b c d", max_length=4).tokens == ["[CLS]", "a", "b", "[SEP]"]
    assert tokenizer.encode("a b", max_length=4).tokens == ["[CLS]", "a", "b", "[SEP]"]
    assert tokenizer.encode("a b", max_length=2).tokens == ["[CLS]", "[SEP]"]


def test_the_error_strategy_names_row_and_lengths(tokenizer):
    options = {"max_length": 5, "truncation": "error"}
    assert len(tokenizer.encode_batch(["a b", "a b c"], **options)) == 2
    expected = r"^texts\[1\]: expected at most 3 tokens without the frame, got 4 \("
    with pytest.raises(ValueError, match=expected):
        tokenizer.encode_batch(["a b", "a b c d"], **options)
    with pytest.raises(ValueError, match=r"texts\[0\]: expected at most 2 .* got 2 and 1"):
        tokenizer.encode_batch(["a b"], ["c"], **options)


@pytest.mark.errors
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a"], ["b", "c"]), "pairs: expected 1, as many as texts, got 2"),
        ((["a", None],), r"texts\[1\]: expected text, got NoneType"),
        ((["a"], [3]), r"pairs\[0\]: expected text, got int"),
        (("one",), "texts: expected a sequence of texts, got one text"),
    ],
)
def test_rows_that_are_no_text_are_refused_by_name(tokenizer, arguments, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.encode_batch(*arguments)


@pytest.mark.errors
def test_options_out_of_range_are_refused(tokenizer):
    with pytest.raises(ValueError, match="max_length: expected at least 3, got 2"):
        tokenizer.encode("a", "b", max_length=2)
    with pytest.raises(ValueError, match=r"truncation: expected .*, got 'longest'"):
        tokenizer.encode("a", truncation="longest")
    for wrong in (-1, len(VOCAB)):
        with pytest.raises(
            ValueError, match=rf"ids\[1\]: expected 0..{len(VOCAB) - 1}, got {wrong}"
        ):
            tokenizer.decode([0, wrong])
    with pytest.raises(ValueError, match=r"texts\[1\]: expected text"):
        tokenizer.encode_plain(["a", b"b"])
    with pytest.raises(ValueError, match="texts: expected a sequence of texts, got one text"):
        tokenizer.encode_flat("one")


# --- without the frame, and back


texts = st.text(st.sampled_from("abeÉ中 \n'.\x00\x0b\u0301\u200d\ud800\u3000["), max_size=30)


@given(st.lists(texts, max_size=8))
def test_the_paths_of_pretraining_agree_with_encode(rows):
    tokenizer = Tokenizer(VOCAB)
    expected = [encoding.ids[1:-1] for encoding in tokenizer.encode_batch(rows)]
    framed = tokenizer.report
    for _ in range(2):  # the second time from memory
        tokenizer.report = type(framed)()
        assert tokenizer.encode_plain(rows) == expected
        assert tokenizer.report == framed
        ids, lengths = tokenizer.encode_flat(iter(rows))
        assert ids.dtype == np.int32 and lengths.dtype == np.int64
        assert lengths.tolist() == [len(row) for row in expected]
        assert ids.tolist() == sum(expected, [])


def test_words_are_forgotten_before_they_fill_the_memory(monkeypatch, tokenizer):
    monkeypatch.setattr("bert.tokenization.REMEMBERED", 10)
    rows = ["a b embeddings c", "d e embed that", "a fine embeddings"]
    assert tokenizer.encode_plain(rows) == [tokenizer.encode(row).ids[1:-1] for row in rows]
    assert sum(map(len, tokenizer._pieces)) <= 10


def test_decoding_joins_the_pieces(tokenizer):
    ids = tokenizer.encode("Embeddings aren't fine.", "中 a").ids
    assert tokenizer.decode(ids) == "embeddings aren ' t fine. 中 a"
    full = "[CLS] embeddings aren ' t fine. [SEP] 中 a [SEP]"
    assert tokenizer.decode(np.array(ids), skip_special_tokens=False) == full
    assert tokenizer.decode([]) == ""


# --- copies


def test_copies_are_equal_and_keep_the_policies():
    tokenizer = Tokenizer(VOCAB, Normalization(strip_accents=False))
    for twin in (pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        assert twin == tokenizer and hash(twin) == hash(tokenizer)
        assert twin.encode("[MASK]").ids == tokenizer.encode("[MASK]").ids
        assert tokenizer.mask_id not in twin.encode("[MASK]").ids


def test_the_fingerprint_moves_with_whatever_decides_the_ids(tokenizer):
    others = [
        Tokenizer(VOCAB[::-1]),
        Tokenizer([*VOCAB, "more"]),
        Tokenizer(VOCAB, Normalization(lowercase=False)),
        Tokenizer(VOCAB, Normalization(strip_accents=True)),
        Tokenizer(VOCAB, Normalization(handle_chinese_chars=False)),
    ]
    assert len({twin.sha256 for twin in [tokenizer, *others]}) == 6
    assert all(twin != tokenizer for twin in others) and tokenizer != "no tokenizer"


def test_importing_it_imports_no_torch():
    code = "import sys, bert.tokenization; assert not {'torch', 'transformers'} & set(sys.modules)"
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=60)
