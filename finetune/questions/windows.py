"""Questions on long contexts as windows that a model can take (Devlin et al. 2018, section 4.2).

    [CLS] question [SEP] context, tokens 0 to 299   [SEP]
    [CLS] question [SEP] context, tokens 172 to 471 [SEP]      the two share 128 tokens

An answer is a pair of tokens of a window, its first and its last. In a window that does not hold
all of it, both are [CLS], which means "no answer here".
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Int32, Int64
from torch import Tensor

from bert.framing import Encoding, Segment, frame
from bert.packing import PackedBatch
from bert.tokenization import Tokenizer
from finetune.batches import TokenRows
from finetune.long_texts import parts
from finetune.questions.squad import Question

# Questions tokenized at once; the contexts that they share are tokenized once.
CHUNK = 1024
OUTSIDE = -1


@dataclass(frozen=True)
class SpanBatch:
    """A packed micro-batch of windows, and the first and last token of each one's answer."""

    packed: PackedBatch
    targets: Int64[Tensor, "seqs 2"]

    def to(self, device: torch.device) -> "SpanBatch":
        """Move both to a device."""
        return SpanBatch(self.packed.to(device), self.targets.to(device))


@dataclass(frozen=True)
class Windows:
    """The windows of some questions, one at least of each."""

    tokens: TokenRows
    questions: int
    """How many they are."""
    question: Int64[np.ndarray, " windows"]
    """Which of them each window belongs to, from 0."""
    characters: Int32[np.ndarray, "tokens 2"]
    """Where each token starts and ends in the context; OUTSIDE in the frame and the question."""
    words: Int32[np.ndarray, "tokens 2"]
    """Where the token's word does: an answer begins and ends with a word, not within one."""
    targets: Int64[np.ndarray, "windows 2"]
    """The tokens of the window with which the answer starts and ends; 0 is [CLS]."""
    cut_questions: int
    """Questions that were longer than their part of a window."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> Int64[np.ndarray, " windows"]:
        """The tokens of each window."""
        return self.tokens.lengths

    def batch(self, chosen: Sequence[int] | Int64[np.ndarray, " chosen"]) -> SpanBatch:
        """Pack the chosen windows, in the given order."""
        return SpanBatch(self.tokens.batch(chosen), torch.from_numpy(self.targets[chosen]))

    def of_each_question(self) -> list[list[slice]]:
        """Return the tokens of each window, question by question."""
        offsets = self.tokens.offsets.tolist()
        parts: list[list[slice]] = [[] for _ in range(self.questions)]
        for number, tokens in zip(self.question.tolist(), pairwise(offsets), strict=True):
            parts[number].append(slice(*tokens))
        return parts


def question_room(max_length: int) -> int:
    """Return how many tokens of a question are kept: a third of a window."""
    return max_length // 3


def check_stride(stride: int | None, max_length: int) -> int:
    """Return the tokens that consecutive windows share; None: a third of a window.

    Raises:
        ValueError: a window would not get on, after the longest question that is kept.
    """
    most = max_length - 3 - question_room(max_length) - 1
    if stride is not None and stride > most:
        raise ValueError(
            f"stride: expected at most {most}, for windows of {max_length} tokens, got {stride}"
        )
    return min(max_length // 3, most) if stride is None else stride


def cut_windows(
    questions: Sequence[Question], tokenizer: Tokenizer, max_length: int, stride: int
) -> Windows:
    """Tokenize questions and contexts, and cut windows.

    The answer that a window points at is the question's first one that is where it is said to be.

    Args:
        questions: neighbours that share a context are the cheaper.
        tokenizer: its report counts the odd things met in the texts.
        max_length: tokens of a window.
        stride: tokens that consecutive windows of a context share, as `stride` in transformers;
            Google's doc_stride is what they don't share.
    """
    numbers: list[int] = []
    characters: list[np.ndarray] = []
    words: list[np.ndarray] = []
    targets: list[tuple[int, int]] = []
    cut = 0

    def encodings() -> Iterator[Encoding]:
        nonlocal cut
        for number, (text, context) in enumerate(_segments(questions, tokenizer)):
            kept = text.keep(question_room(max_length))
            cut += len(kept.ids) < len(text.ids)
            edges = np.array(context.offsets, dtype=np.int32).reshape(-1, 2)
            of_words = _edges_of_words(context, edges)
            answer = _tokens_of_answer(questions[number], edges)
            before = len(kept.ids) + 2
            for first, end in parts(len(context.ids), max_length - before - 1, stride):
                window = frame(tokenizer.cls_id, tokenizer.sep_id, kept, context.part(first, end))
                numbers.append(number)
                for found, some in ((characters, edges), (words, of_words)):
                    places = np.full((len(window), 2), OUTSIDE, dtype=np.int32)
                    places[before : before + end - first] = some[first:end]
                    found.append(places)
                targets.append(_target(answer, first, end, before))
                yield window

    tokens = TokenRows.from_encodings(encodings())
    return Windows(
        tokens,
        len(questions),
        np.array(numbers, dtype=np.int64),
        np.concatenate(characters) if characters else np.empty((0, 2), dtype=np.int32),
        np.concatenate(words) if words else np.empty((0, 2), dtype=np.int32),
        np.array(targets, dtype=np.int64).reshape(-1, 2),
        cut,
    )


def _segments(
    questions: Sequence[Question], tokenizer: Tokenizer
) -> Iterator[tuple[Segment, Segment]]:
    """Yield the tokens of each question and of its context, without a frame."""
    for start in range(0, len(questions), CHUNK):
        chunk = questions[start : start + CHUNK]
        contexts = list(dict.fromkeys(question.context for question in chunk))
        encoded = dict(zip(contexts, tokenizer.encode_batch(contexts), strict=True))
        texts = tokenizer.encode_batch([question.text for question in chunk])
        for question, text in zip(chunk, texts, strict=True):
            yield _unframed(text), _unframed(encoded[question.context])


def _unframed(row: Encoding) -> Segment:
    return Segment(row.ids[1:-1], row.offsets[1:-1], row.tokens[1:-1], row.word_ids[1:-1])


def _edges_of_words(
    context: Segment, edges: Int32[np.ndarray, "tokens 2"]
) -> Int32[np.ndarray, "tokens 2"]:
    """Return where the word of each token starts and ends, given that of the tokens."""
    ids = np.array(context.word_ids, dtype=np.int64)
    begins = np.flatnonzero(np.diff(ids, prepend=-1))
    pieces = np.diff(begins, append=len(ids))
    whole = np.stack([edges[begins, 0], edges[begins + pieces - 1, 1]], axis=1)
    return np.repeat(whole, pieces, axis=0)


def _tokens_of_answer(
    question: Question, edges: Int32[np.ndarray, "tokens 2"]
) -> tuple[int, int] | None:
    """Return the first and the last token that has a character of the answer."""
    if not question.placed_answers:
        return None
    answer = question.placed_answers[0]
    first = int(np.searchsorted(edges[:, 1], answer.start, side="right"))
    last = int(np.searchsorted(edges[:, 0], answer.start + len(answer.text), side="left")) - 1
    return (first, last) if first <= last else None


def _target(answer: tuple[int, int] | None, first: int, end: int, before: int) -> tuple[int, int]:
    """Return the answer as tokens of a window, `before` of which precede the context's."""
    if answer is None or answer[0] < first or answer[1] >= end:
        return (0, 0)
    return (answer[0] - first + before, answer[1] - first + before)
