"""Windows: they cover the context, overlap as they should, and point at the answer."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bert.tokenization import Tokenizer
from finetune.questions.spans import find_spans
from finetune.questions.squad import Answer, Question
from finetune.questions.windows import OUTSIDE, check_stride, cut_windows, question_room
from tests.finetune.conftest import SPECIAL, WORDS

CHARACTERS = Tokenizer([*SPECIAL, *"abcdefghij", *(f"##{c}" for c in "abcdefghij")])


def question(words, answer=None, text="a b"):
    """A question on words of a letter each; the answer is a pair of words, first and last."""
    context = " ".join(words)
    if answer is None:
        return Question("", text, context)
    first, last = answer
    return Question("", text, context, (Answer(context[2 * first : 2 * last + 1], 2 * first),))


contexts = st.lists(st.sampled_from("abcdefghij"), max_size=60)


@settings(max_examples=50)
@given(contexts, st.integers(12, 30), st.integers(0, 9))
def test_windows_cover_the_context_and_share_the_stride(words, max_length, stride):
    stride = min(stride, check_stride(None, max_length))
    (asked,) = [question(words)]
    windows = cut_windows([asked], CHARACTERS, max_length, stride)
    ids = CHARACTERS.encode(asked.context).ids[1:-1]
    covered = []
    for row, tokens in enumerate(windows.of_each_question()[0]):
        window = windows.tokens.input_ids[tokens].tolist()
        assert len(window) <= max_length
        assert window[:4] == CHARACTERS.encode("a b").ids and window[-1] == CHARACTERS.sep_id
        places = windows.characters[tokens]
        assert (places[:4] == OUTSIDE).all() and (places[-1] == OUTSIDE).all()
        first = places[4, 0] // 2 if len(window) > 5 else 0
        assert window[4:-1] == ids[first : first + len(window) - 5]
        texts = [asked.context[a:b] for a, b in places[4:-1]]
        assert texts == words[first : first + len(window) - 5]
        # Each begins `stride` tokens before the end of the last one, which was full.
        if row:
            assert first == covered[-1] + 1 - stride
        covered.extend(range(first, first + len(window) - 5))
    assert sorted(set(covered)) == list(range(len(words)))
    types = windows.tokens.token_type_ids
    assert types[windows.characters[:, 0] != OUTSIDE].all()


@settings(max_examples=50)
@given(st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=60), st.data())
def test_a_window_points_at_the_answer_or_at_nothing(words, data):
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, min(first + 8, len(words) - 1)))
    asked = question(words, (first, last))
    windows = cut_windows([asked], CHARACTERS, 20, 6)
    found = 0
    for tokens, (start, end) in zip(windows.of_each_question()[0], windows.targets, strict=True):
        places = windows.characters[tokens]
        inside = places[4:-1, 0] // 2
        if first in inside and last in inside:
            assert (places[start, 0], places[end, 1]) == (2 * first, 2 * last + 1)
            found += 1
        else:
            assert (start, end) == (0, 0)
    # What is no longer than what two windows share is whole in one of them.
    assert found or last - first + 1 > 6


def test_an_answer_within_a_word_and_after_odd_characters():
    # "Hé" loses its accent, the control character goes, "cab" is three pieces.
    context = "b\x07\u0065\u0301 cab  a"
    for text, pieces in [("ab", ["##a", "##b"]), ("b  a", ["##b", "a"]), ("c", ["c"])]:
        asked = Question("", "a", context, (Answer(text, context.index(text)),))
        windows = cut_windows([asked], CHARACTERS, 20, 6)
        start, end = windows.targets[0]
        found = windows.tokens.input_ids[start : end + 1]
        assert [CHARACTERS.vocab[i] for i in found] == pieces


def test_each_token_knows_where_its_word_begins_and_ends():
    context = "cab  a\u0301j. ba"  # ##a ##b of the first word, ##j of the second
    asked = Question("", "a", context)
    windows = cut_windows([asked, asked], CHARACTERS, 14, 2)
    words = {(0, 3): "cab", (5, 8): "a\u0301j", (8, 9): ".", (10, 12): "ba"}
    seen = set()
    for piece, whole in zip(windows.characters.tolist(), windows.words.tolist(), strict=True):
        if piece == [OUTSIDE, OUTSIDE]:
            assert whole == piece
        else:
            assert whole[0] <= piece[0] <= piece[1] <= whole[1]
            assert context[slice(*whole)] == words[tuple(whole)]
            seen.add((context[slice(*piece)], context[slice(*whole)]))
    assert ("b", "cab") in seen and ("j", "a\u0301j") in seen
    # A span that begins and ends within words is the words.
    (parts, _) = windows.of_each_question()
    logits = np.zeros((len(windows.characters), 2), np.float32)
    tokens = parts[0]
    places = windows.characters[tokens].tolist()
    logits[tokens.start + places.index([1, 2]), 0] = 5
    logits[tokens.start + places.index([5, 6]), 1] = 5
    found = find_spans([(logits[t], windows.words[t]) for t in parts], 5, 30)
    assert found.best[0][:2] == (0, 8)


def test_an_answer_that_is_elsewhere_or_has_no_token_is_none():
    for context, answer in [("a b c", Answer("b", 0)), ("a \x07 c", Answer("\x07", 2))]:
        asked = Question("", "a", context, (answer,))
        assert cut_windows([asked], CHARACTERS, 20, 6).targets.tolist() == [[0, 0]]
    two = Question("", "a", "a b c", (Answer("b", 0), Answer("c", 4)))
    assert cut_windows([two], CHARACTERS, 20, 6).targets.tolist() == [[5, 5]]


def test_questions_share_a_batch_and_each_has_its_windows():
    asked = [question("abcdefghij" * 3, (0, 1)), question(""), question("ab", (1, 1))]
    windows = cut_windows(asked, CHARACTERS, 20, 6)
    parts = windows.of_each_question()
    assert [len(part) for part in parts] == [3, 1, 1]
    assert windows.question.tolist() == [0, 0, 0, 1, 2]
    batch = windows.batch([4, 0])
    assert batch.packed.sequences.lengths == (7, 20)
    assert torch.equal(batch.targets, torch.tensor([[5, 5], [4, 5]]))
    alone = cut_windows(asked[2:], CHARACTERS, 20, 6).tokens
    assert batch.packed.input_ids[:7].tolist() == alone.input_ids.tolist()


def test_a_long_question_is_cut_and_counted():
    asked = [question("abc", text="a " * 7), question("abc", text="a " * 6)]
    windows = cut_windows(asked, CHARACTERS, 20, 6)
    assert windows.cut_questions == 1 and question_room(20) == 6
    ids = windows.tokens.input_ids.tolist()
    assert ids[:12] == ids[12:]


@pytest.mark.parametrize("length", [8, 20, 128, 384])
def test_a_third_is_shared_and_windows_always_get_on(length):
    stride = check_stride(None, length)
    assert stride == length // 3 or length < 12
    asked = Question("", "a " * length, "b " * 2 * length)
    assert len(cut_windows([asked], CHARACTERS, length, stride)) < 2 * length + 1
    most = length - 3 - length // 3 - 1
    assert check_stride(most, length) == most
    with pytest.raises(
        ValueError, match=f"^stride: expected at most {most}, for windows of {length}"
    ):
        check_stride(most + 1, length)


def test_windows_are_those_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = Tokenizer([*SPECIAL, *WORDS])
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    for size in (1, 3, 20, 57, 200):  # an empty one is no pair to them
        asked = Question("", "ban dor", " ".join(rng.choice(WORDS, size)))
        windows = cut_windows([asked], tokenizer, 30, 7)
        expected = theirs(
            asked.text, asked.context, max_length=30, truncation="only_second", stride=7,
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        parts = windows.of_each_question()[0]
        assert [windows.tokens.input_ids[p].tolist() for p in parts] == expected["input_ids"]
        assert [windows.tokens.token_type_ids[p].tolist() for p in parts] == expected[
            "token_type_ids"
        ]
        for part, offsets, types in zip(
            parts, expected["offset_mapping"], expected["token_type_ids"], strict=True
        ):
            inside = [o for o, kind in zip(offsets, types, strict=True) if kind][:-1]
            places = windows.characters[part]
            assert places[places[:, 0] != OUTSIDE].tolist() == [list(o) for o in inside]
