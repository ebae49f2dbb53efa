"""Plan an epoch's sentence pairs after Google's recipe (Devlin et al. 2018, A.2).

From a document's sentences, one after another, as create_pretraining_data.py does it:

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
few long documents would hang on few draws); and its ten tries to hit another document are one
exact draw.

What is computed for all chunks at once: any sentence may start a chunk, so what would follow from
each of them is drawn with array operations; then the ones that do start one are found from the
documents' first sentences by pointer doubling, in log2(chunks of the longest document) rounds.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int32, Int64

FRAME = 3  # [CLS] A [SEP] B [SEP]
_BLOCK = 1 << 20  # sentences drawn at once: what bounds the memory for temporaries
_PAIR_STREAM, _ORDER_STREAM = 0, 1  # each use of a seed has its own random stream


@dataclass(frozen=True, eq=False)
class PairPlan:
    """The pairs of one epoch in training order, as pieces of the corpus's tokens."""

    a_start: Int64[np.ndarray, " pairs"]
    a_length: Int32[np.ndarray, " pairs"]
    b_start: Int64[np.ndarray, " pairs"]
    b_length: Int32[np.ndarray, " pairs"]
    is_random: Bool[np.ndarray, " pairs"]
    """The next-sentence label: 0 is next, 1 is random."""

    def __len__(self) -> int:
        return len(self.a_start)

    @property
    def lengths(self) -> Int32[np.ndarray, " pairs"]:
        """Tokens of each pair with [CLS] and both [SEP]."""
        return self.a_length + self.b_length + np.int32(FRAME)

    @property
    def majority_rate(self) -> float:
        """What always guessing the more frequent next-sentence label scores."""
        rate = float(self.is_random.mean())
        return max(rate, 1 - rate)

    def take(self, pairs: np.ndarray | slice) -> "PairPlan":
        """Select pairs, in the order given."""
        return PairPlan(
            self.a_start[pairs],
            self.a_length[pairs],
            self.b_start[pairs],
            self.b_length[pairs],
            self.is_random[pairs],
        )


@dataclass(frozen=True, eq=False)
class _Chunks:
    """What would follow if a chunk started at each sentence; bounds are sentence numbers."""

    target: Int32[np.ndarray, " sentences"]
    boundary: np.ndarray
    end: np.ndarray
    is_random: Bool[np.ndarray, " sentences"]


def plan_pairs(
    sentence_offsets: Int64[np.ndarray, " sentences_plus_one"],
    document_offsets: Int64[np.ndarray, " documents_plus_one"],
    *,
    max_length: int,
    seed: int,
    epoch: int,
    short_probability: float = 0.1,
) -> PairPlan:
    """Plan the pairs of one epoch: a pure function of its arguments.

    Args:
        sentence_offsets: where each sentence starts in the tokens, and where the last one ends;
            no sentence is empty.
        document_offsets: where each document starts in the sentences, and where the last one ends;
            no document is empty.
        max_length: tokens of a pair, with [CLS] and both [SEP].
        seed: not negative.
        epoch: from 0.
        short_probability: how many chunks aim at a random length of 2 to max_length − 3.

    Raises:
        ValueError: fewer than two documents, no room for a token in each segment, a probability
            outside 0 to 1, a negative seed or epoch.
    """
    documents = len(document_offsets) - 1
    room = max_length - FRAME
    if documents < 2:
        raise ValueError(
            f"document_offsets: expected at least 2 documents, to take random sentences from "
            f"another one, got {documents}"
        )
    if room < 2:
        raise ValueError(f"max_length: expected at least {FRAME + 2} tokens, got {max_length}")
    if not 0 <= short_probability <= 1:
        raise ValueError(f"short_probability: expected 0 to 1, got {short_probability}")
    if seed < 0 or epoch < 0:
        raise ValueError(f"seed, epoch: expected no negative number, got {seed}, {epoch}")

    rng = np.random.default_rng((seed, epoch, _PAIR_STREAM))
    chunks = _draw_chunks(rng, sentence_offsets, document_offsets, room, short_probability)
    first = _chunk_starts(chunks, document_offsets)
    boundary, end = chunks.boundary[first], chunks.end[first]
    is_random, target = chunks.is_random[first], chunks.target[first]

    a_start = sentence_offsets[first]
    b_start = sentence_offsets[boundary]
    a_length = b_start - a_start
    b_length = sentence_offsets[end] - b_start
    own = np.searchsorted(document_offsets, first[is_random], side="right") - 1
    b_start[is_random], b_length[is_random] = _draw_elsewhere(
        rng, own, (target - a_length)[is_random], sentence_offsets, document_offsets
    )
    a_cut, b_cut = _excess(a_length, b_length, room)
    # Each token goes from the front or the back with equal chance.
    a_start += rng.binomial(a_cut, 0.5)
    b_start += rng.binomial(b_cut, 0.5)
    plan = PairPlan(
        a_start,
        (a_length - a_cut).astype(np.int32),
        b_start,
        (b_length - b_cut).astype(np.int32),
        is_random,
    )
    return plan.take(np.random.default_rng((seed, epoch, _ORDER_STREAM)).permutation(len(plan)))


def _draw_chunks(
    rng: np.random.Generator,
    sentence_offsets: np.ndarray,
    document_offsets: np.ndarray,
    room: int,
    short_probability: float,
) -> _Chunks:
    """Draw, for each sentence, the chunk that would start there (steps 1 to 3)."""
    sentences = len(sentence_offsets) - 1
    index = np.int32 if sentences < 2**31 else np.int64
    target = np.empty(sentences, np.int32)
    boundary, end = np.empty(sentences, index), np.empty(sentences, index)
    is_random = np.empty(sentences, np.bool_)
    for begin in range(0, sentences, _BLOCK):
        block = np.arange(begin, min(begin + _BLOCK, sentences))
        here = slice(begin, begin + len(block))
        is_short = rng.random(len(block)) < short_probability
        target[here] = np.where(is_short, 2 + _below(rng, np.full(len(block), room - 1)), room)
        # The chunk ends with the sentence that reaches the target, or with the document.
        reached = np.searchsorted(sentence_offsets, sentence_offsets[block] + target[here])
        document = np.searchsorted(document_offsets, block, side="right")
        end[here] = np.minimum(reached, document_offsets[document])
        inner = end[here] - block - 1  # boundaries inside the chunk
        boundary[here] = block + 1 + _below(rng, np.maximum(inner, 1))
        is_random[here] = (rng.random(len(block)) < 0.5) | (inner == 0)
    return _Chunks(target, boundary, end, is_random)


def _chunk_starts(chunks: _Chunks, document_offsets: np.ndarray) -> np.ndarray:
    """Return the sentences that start a chunk, ascending.

    After k rounds `jump` leads 2^k chunks on, and `is_start` holds all that lie fewer than 2^k
    chunks behind a document's start.
    """
    # The rest of a chunk goes back when B is random. The last sentence leads to the end, and a
    # document's last chunk to the next document's start, which is one anyway.
    jump = np.append(np.where(chunks.is_random, chunks.boundary, chunks.end), len(chunks.end))
    jump = jump.astype(chunks.end.dtype)
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
