"""Plan an epoch's sequences: sentence pairs after Google's recipe, or pieces of one document.

From a document's sentences, one after another, as create_pretraining_data.py does it for
next-sentence prediction (Devlin et al. 2018, A.2):

1. Take a chunk: sentences up to `room` = max_length − 3 tokens or a little more, or up to the
   document's end. One chunk in ten aims at a random shorter length.
2. Segment A is the chunk up to a random boundary inside it.
3. Segment B is the rest of the chunk (label 0, "is next") or, half of the time, starts at a random
   sentence of another document (label 1, "random"). In that case the rest goes back: the next
   chunk starts with it. So a document's own sentences are used once an epoch.
4. The longer segment loses tokens, each from its front or its back at random, until both fit.

A chunk of one sentence has no boundary inside: it is all A, and its B is always random. So more
than half of the labels are 1, and the majority rate is what a guesser scores.

Two differences: Google draws the short length once a document, here each chunk draws (a corpus of
few long documents would hang on few draws, and a document of short chunks has more of them, so
more than a tenth of Google's pairs are short); and its ten tries to hit another document are one
exact draw.

The two other tasks change steps 1 to 3:

- "sop", sentence order (Lan et al. 2020, section 3.1): B is always the rest of the chunk, and half
  of the pairs are swapped (label 1). A chunk has two sentences or more; one that is left alone at
  a document's end is left out (ALBERT's code takes its B from another document, so that topics
  tell).
- None, no pairs: a sequence is [CLS] A [SEP], whole sentences of one document up to
  `room` = max_length − 2 tokens (DOC-SENTENCES of Liu et al. 2019, section 4.2). Short lengths are
  drawn as above; RoBERTa has none.

What is computed for all chunks at once: any sentence may start a chunk, so what would follow from
each of them is drawn with array operations; then the ones that do start one are found from the
documents' first sentences by pointer doubling, in log2(chunks of the longest document) rounds.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int32, Int64

PairTask = Literal["nsp", "sop"]

_SINGLE_FRAME, _PAIR_FRAME = 2, 3  # [CLS] A [SEP], and [CLS] A [SEP] B [SEP]
_BLOCK = 1 << 20  # sentences drawn at once: what bounds the memory for temporaries
_PAIR_STREAM, _ORDER_STREAM = 0, 1  # each use of a seed has its own random stream


@dataclass(frozen=True, eq=False)
class PairPlan:
    """The sequences of one epoch in training order, as pieces of the corpus's tokens."""

    a_start: Int64[np.ndarray, " pairs"]
    a_length: Int32[np.ndarray, " pairs"]
    b_start: Int64[np.ndarray, " pairs"]
    b_length: Int32[np.ndarray, " pairs"]
    """0 where there is no second segment."""
    label: Bool[np.ndarray, " pairs"]
    """Of next sentences: 0 is next, 1 is random. Of sentence order: 1 is swapped. Else 0."""

    def __len__(self) -> int:
        return len(self.a_start)

    @property
    def lengths(self) -> Int32[np.ndarray, " pairs"]:
        """Tokens of each sequence with its [CLS] and [SEP]."""
        frame = np.where(self.b_length > 0, _PAIR_FRAME, _SINGLE_FRAME)
        return self.a_length + self.b_length + frame.astype(np.int32)

    @property
    def majority_rate(self) -> float:
        """What always guessing the more frequent label scores."""
        rate = float(self.label.mean())
        return max(rate, 1 - rate)

    def take(self, pairs: np.ndarray | slice) -> "PairPlan":
        """Select pairs, in the order given."""
        return PairPlan(
            self.a_start[pairs],
            self.a_length[pairs],
            self.b_start[pairs],
            self.b_length[pairs],
            self.label[pairs],
        )


@dataclass(frozen=True, eq=False)
class _Chunks:
    """What would follow if a chunk started at each sentence; bounds are sentence numbers."""

    target: Int32[np.ndarray, " sentences"]
    boundary: np.ndarray
    """Where A ends; the chunk's end where there is no B of its own."""
    end: np.ndarray
    label: Bool[np.ndarray, " sentences"]


def plan_pairs(
    sentence_offsets: Int64[np.ndarray, " sentences_plus_one"],
    document_offsets: Int64[np.ndarray, " documents_plus_one"],
    *,
    max_length: int,
    seed: int,
    epoch: int,
    short_probability: float = 0.1,
    task: PairTask | None = "nsp",
) -> PairPlan:
    """Plan the sequences of one epoch: a pure function of its arguments.

    Args:
        sentence_offsets: where each sentence starts in the tokens, and where the last one ends;
            no sentence is empty.
        document_offsets: where each document starts in the sentences, and where the last one ends;
            no document is empty.
        max_length: tokens of a sequence, with its [CLS] and [SEP].
        seed: not negative.
        epoch: from 0.
        short_probability: how many chunks aim at a random length of 2 to `room`.
        task: what the pairs are for; None: no pairs.

    Raises:
        ValueError: fewer than two documents for next sentences, no document of two sentences for
            sentence order, no room for a token in each segment, a probability outside 0 to 1, a
            negative seed or epoch.
    """
    room = max_length - (_SINGLE_FRAME if task is None else _PAIR_FRAME)
    _check(document_offsets, max_length, seed, epoch, short_probability, task)
    rng = np.random.default_rng((seed, epoch, _PAIR_STREAM))
    chunks = _draw_chunks(rng, sentence_offsets, document_offsets, room, short_probability, task)
    # The rest of a chunk goes back when B is from elsewhere.
    rest = np.where(chunks.label, chunks.boundary, chunks.end) if task == "nsp" else chunks.end
    first = _chunk_starts(rest, document_offsets)
    if task == "sop":
        first = first[chunks.boundary[first] < chunks.end[first]]
    boundary, end = chunks.boundary[first], chunks.end[first]
    label, target = chunks.label[first], chunks.target[first]

    a_start = sentence_offsets[first]
    b_start = sentence_offsets[boundary]
    a_length = b_start - a_start
    b_length = sentence_offsets[end] - b_start
    if task == "nsp":
        own = np.searchsorted(document_offsets, first[label], side="right") - 1
        b_start[label], b_length[label] = _draw_elsewhere(
            rng, own, (target - a_length)[label], sentence_offsets, document_offsets
        )
    if task == "sop":
        # Before the cut, in which B loses the ties: afterwards lengths would tell the order.
        a_start, b_start = np.where(label, b_start, a_start), np.where(label, a_start, b_start)
        a_length, b_length = np.where(label, (b_length, a_length), (a_length, b_length))
    a_cut, b_cut = _excess(a_length, b_length, room)
    # Each token goes from the front or the back with equal chance.
    a_start += rng.binomial(a_cut, 0.5)
    b_start += rng.binomial(b_cut, 0.5)
    plan = PairPlan(
        a_start,
        (a_length - a_cut).astype(np.int32),
        b_start,
        (b_length - b_cut).astype(np.int32),
        label,
    )
    return plan.take(np.random.default_rng((seed, epoch, _ORDER_STREAM)).permutation(len(plan)))


def _check(
    document_offsets: np.ndarray,
    max_length: int,
    seed: int,
    epoch: int,
    short_probability: float,
    task: PairTask | None,
) -> None:
    """Refuse what can't be planned."""
    documents = len(document_offsets) - 1
    if task == "nsp" and documents < 2:
        raise ValueError(
            f"document_offsets: expected at least 2 documents, to take random sentences from "
            f"another one, got {documents}"
        )
    if task == "sop" and np.diff(document_offsets).max() < 2:
        raise ValueError(
            "document_offsets: expected a document of at least 2 sentences, whose order can be "
            "asked for, got none"
        )
    if max_length < _PAIR_FRAME + 2:
        raise ValueError(
            f"max_length: expected at least {_PAIR_FRAME + 2} tokens, got {max_length}"
        )
    if not 0 <= short_probability <= 1:
        raise ValueError(f"short_probability: expected 0 to 1, got {short_probability}")
    if seed < 0 or epoch < 0:
        raise ValueError(f"seed, epoch: expected no negative number, got {seed}, {epoch}")


def _draw_chunks(
    rng: np.random.Generator,
    sentence_offsets: np.ndarray,
    document_offsets: np.ndarray,
    room: int,
    short_probability: float,
    task: PairTask | None,
) -> _Chunks:
    """Draw, for each sentence, the chunk that would start there (steps 1 to 3)."""
    sentences = len(sentence_offsets) - 1
    index = np.int32 if sentences < 2**31 else np.int64
    target = np.empty(sentences, np.int32)
    boundary, end = np.empty(sentences, index), np.empty(sentences, index)
    label = np.zeros(sentences, np.bool_)
    for begin in range(0, sentences, _BLOCK):
        block = np.arange(begin, min(begin + _BLOCK, sentences))
        here = slice(begin, begin + len(block))
        is_short = rng.random(len(block)) < short_probability
        target[here] = np.where(is_short, 2 + _below(rng, np.full(len(block), room - 1)), room)
        wanted = sentence_offsets[block] + target[here]
        if task is None:  # up to the last sentence that fits whole, but one at least
            reached = np.searchsorted(sentence_offsets, wanted, side="right") - 1
            reached = np.maximum(reached, block + 1)
        else:  # the sentence that reaches the target is the last
            reached = np.searchsorted(sentence_offsets, wanted)
        if task == "sop":
            reached = np.maximum(reached, block + 2)
        document = np.searchsorted(document_offsets, block, side="right")
        end[here] = np.minimum(reached, document_offsets[document])
        if task is None:
            boundary[here] = end[here]
            continue
        inner = end[here] - block - 1  # boundaries inside the chunk
        boundary[here] = block + 1 + _below(rng, np.maximum(inner, 1))
        label[here] = rng.random(len(block)) < 0.5
        if task == "nsp":
            label[here] |= inner == 0
    return _Chunks(target, boundary, end, label)


def _chunk_starts(rest: np.ndarray, document_offsets: np.ndarray) -> np.ndarray:
    """Return the sentences that start a chunk, ascending.

    After k rounds `jump` leads 2^k chunks on, and `is_start` holds all that lie fewer than 2^k
    chunks behind a document's start.

    Args:
        rest: the sentence that would start the next chunk, if one started at each sentence.
        document_offsets: see `plan_pairs`.
    """
    # The last sentence leads to the end, and a document's last chunk to the next document's
    # start, which is one anyway.
    jump = np.append(rest, len(rest)).astype(rest.dtype)
    is_start = np.zeros(len(jump), np.bool_)
    is_start[document_offsets] = True
    while True:
        reached = jump[np.flatnonzero(is_start)]
        if is_start[reached].all():
            return np.flatnonzero(is_start[:-1])
        is_start[reached] = True
        jump = jump[jump]


def _draw_elsewhere(
    rng: np.random.Generator,
    own: np.ndarray,
    wanted: np.ndarray,
    sentence_offsets: np.ndarray,
    document_offsets: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a segment from another document for each: its start and its length in tokens."""
    documents = len(document_offsets) - 1
    other = _below(rng, np.full(len(own), documents - 1))
    other += other >= own
    count = document_offsets[other + 1] - document_offsets[other]
    first = document_offsets[other] + _below(rng, count)
    start = sentence_offsets[first]
    # One sentence at least; then on to the wanted length, or to the document's end.
    end = np.searchsorted(sentence_offsets, start + np.maximum(wanted, 1))
    end = np.minimum(end, document_offsets[other + 1])
    return start, sentence_offsets[end] - start


def _excess(
    a_length: np.ndarray, b_length: np.ndarray, room: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return how many tokens each segment loses when the longer one loses one after another.

    They meet at equal lengths; from there B, which loses the ties, and A take turns.
    """
    excess = np.maximum(a_length + b_length - room, 0)
    gap = a_length - b_length
    from_longer = np.minimum(excess, np.abs(gap))
    rest = excess - from_longer
    a_cut = rest // 2 + np.where(gap > 0, from_longer, 0)
    return a_cut, excess - a_cut


def _below(rng: np.random.Generator, bound: np.ndarray) -> np.ndarray:
    """Draw one integer from 0 to bound − 1 for each bound."""
    return (rng.random(len(bound)) * bound).astype(np.int64)
