"""From the logits of a question's windows to its answers: the best spans of the context.

A span's score is the logit of its first token as a start plus that of its last as an end. All
spans of at most so many tokens are considered, in every window. Each stands for the words that it
begins and ends with as a whole, and of those that stand for the same, the best score counts. "No
answer" is [CLS] to [CLS] (Devlin et al. 2018, section 4.3), and has the lowest score that it gets
in a window: the windows that don't hold the answer are right to say so.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int32

from bert.text import SURROGATE
from finetune.questions.windows import OUTSIDE


class Span(NamedTuple):
    """Characters `start` to `end` of a context, and their score."""

    start: int
    end: int
    score: float

    def text(self, context: str) -> str:
        """Return the context's own characters; a lone surrogate can't be written, so U+FFFD."""
        return SURROGATE.sub("\ufffd", context[self.start : self.end])


class Spans(NamedTuple):
    """What the windows of a question say."""

    best: list[Span]
    """The best first; none where the context has no token."""
    null_score: float
    """The score of "no answer"."""

    @property
    def null_odds(self) -> float:
        """How much "no answer" exceeds the best span, in logits; infinite where there is none."""
        return self.null_score - self.best[0].score if self.best else float("inf")

    def is_null(self, threshold: float | None) -> bool:
        """Say whether "no answer" is the answer; where the threshold is None, only if it must."""
        return not self.best or (threshold is not None and self.null_odds > threshold)

    def probability(self, threshold: float | None) -> float:
        """Return the answer's share in the exponentials of the scores that are told.

        These are the best spans', and that of "no answer" where it may be the answer.
        """
        scores = [span.score for span in self.best]
        scores += [self.null_score] if threshold is not None or not scores else []
        chosen = self.null_score if self.is_null(threshold) else scores[0]
        return float(1 / np.exp(np.array(scores) - chosen).sum())


def find_spans(
    windows: Sequence[tuple[Float[np.ndarray, "tokens 2"], Int32[np.ndarray, "tokens 2"]]],
    n_best: int,
    longest: int,
) -> Spans:
    """Return the best spans of a question.

    Args:
        windows: of each window the start and end logits, finite, and the characters of each
            token's word.
        n_best: spans to return at most.
        longest: tokens of a span at most.
    """
    scores: dict[tuple[int, int], float] = {}
    for logits, characters in windows:
        for start, end, score in _window_spans(logits, characters, n_best, longest):
            place = int(characters[start, 0]), int(characters[end, 1])
            scores[place] = max(score, scores.get(place, -np.inf))
    ranked = sorted((-score, place) for place, score in scores.items())[:n_best]
    return Spans(
        [Span(*place, -negative) for negative, place in ranked],
        min(float(logits[0].sum(dtype=np.float64)) for logits, _ in windows),
    )


def _window_spans(
    logits: Float[np.ndarray, "tokens 2"],
    characters: Int32[np.ndarray, "tokens 2"],
    count: int,
    longest: int,
) -> Iterator[tuple[int, int, float]]:
    """Yield the best spans of a window: first token, last token, score."""
    inside = np.flatnonzero(characters[:, 0] != OUTSIDE)
    if not len(inside):
        return
    starts, ends = logits[inside].astype(np.float64).T
    width = min(longest, len(inside))
    # Row i: the ends of the spans that start at i, of 1, 2, … tokens; −inf past the last token.
    following = np.concatenate([ends, np.full(width - 1, -np.inf)])
    scores = starts[:, None] + np.lib.stride_tricks.sliding_window_view(following, width)
    flat = scores.ravel()
    if count < len(flat):
        least = np.partition(flat, -count)[-count]
        kept = np.flatnonzero((flat >= least) & (flat > -np.inf))
    else:
        kept = np.flatnonzero(flat > -np.inf)
    for place in kept[np.argsort(-flat[kept], kind="stable")][:count]:
        start, more = divmod(int(place), width)
        yield int(inside[start]), int(inside[start + more]), float(flat[place])
