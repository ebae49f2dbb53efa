"""How good answers are: exact match and F1 as SQuAD's evaluation script v2.0 defines them.

(Rajpurkar et al. 2016, section 6.1, and 2018, section 5; evaluate-v2.0.py beside the data.) Before
two answers are compared, letters are made small and ASCII punctuation, the articles a, an and the,
and the spaces at the ends are taken out. An exact match is equality. F1 is that of the words,
counted with their repetitions; where one of the two has no word, it is 1 if neither has, else 0.
Of several right answers the nearest counts. "No answer" is the empty text.

Values are fractions; the script prints 100 times as much.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True)
class AnswerScores:
    """What predicted answers are worth, all together and by kind of question."""

    exact: float
    """The share of questions that are answered in the very words."""
    f1: float
    """Mean F1 of the words."""
    questions: int
    by_kind: dict[str, dict[str, float]]
    """The three for HasAns and NoAns, as the script calls them; empty where all are of a kind."""
    best_threshold: dict[str, float]
    """The null threshold at which f1 would have been best, and this f1; empty without NoAns."""
    each: np.ndarray = field(repr=False, compare=False)
    """Exact and F1 of each question, in two columns."""
    spans: Sequence[Any] = field(default=(), repr=False, compare=False)
    """What the model said of each question (spans.py), where a model was asked."""

    @property
    def text(self) -> str:
        """A table."""
        kinds = {"all": {"exact": self.exact, "f1": self.f1, "questions": self.questions}}
        lines = [f"{'questions':9}  {'number':>7}  {'exact':>7}  {'f1':>7}"]
        for name, values in (kinds | self.by_kind).items():
            lines.append(
                f"{name:9}  {values['questions']:7}  {values['exact']:7.4f}  {values['f1']:7.4f}"
            )
        if self.best_threshold:
            lines += [
                "",
                f"The best f1 of all null thresholds: {self.best_threshold['f1']:.4f}, at "
                f"{self.best_threshold['threshold']:.4f}",
            ]
        return "\n".join(lines) + "\n"

    def summary(self) -> dict[str, float]:
        """Return the numbers that a log line holds."""
        return {"f1": self.f1, "exact": self.exact}

    def as_json(self) -> dict[str, Any]:
        """Return all numbers."""
        numbers: dict[str, Any] = {**self.summary(), "questions": self.questions, **self.by_kind}
        return numbers | ({"best_threshold": self.best_threshold} if self.best_threshold else {})


def score_answers(
    spans: Sequence[str],
    right: Sequence[Sequence[str]],
    null_odds: Sequence[float],
    null_threshold: float | None,
) -> AnswerScores:
    """Score the answers of some questions.

    Args:
        spans: of each question the best span of its context.
        right: the right answers; none where the context holds none.
        null_odds: how much the logit of "no answer" exceeds the best span's.
        null_threshold: above it the answer is "no answer"; None: never.
    """
    values = np.array([_values(span, texts) for span, texts in zip(spans, right, strict=True)])
    is_null = np.array([not texts for texts in right])
    of_null = np.repeat(is_null[:, None], 2, axis=1).astype(float)
    odds = np.asarray(null_odds, dtype=np.float64)
    is_silent = (
        np.zeros(len(odds), dtype=bool) if null_threshold is None else odds > null_threshold
    )
    scores = np.where(is_silent[:, None], of_null, values)
    by_kind = {
        name: _means(scores[chosen])
        for name, chosen in (("HasAns", ~is_null), ("NoAns", is_null))
        if chosen.any()
    }
    total = _means(scores)
    return AnswerScores(
        total["exact"],
        total["f1"],
        len(spans),
        by_kind if len(by_kind) == 2 else {},
        _best_threshold(values[:, 1], of_null[:, 1], odds) if is_null.any() else {},
        scores,
    )


def normalize(answer: str) -> str:
    """Take out what doesn't count when answers are compared; see the file's head."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, right: str) -> float:
    """Return 1 for the same answer, else 0."""
    return float(normalize(answer) == normalize(right))


def word_f1(answer: str, right: str) -> float:
    """Return the F1 of an answer's words."""
    words, wanted = normalize(answer).split(), normalize(right).split()
    if not words or not wanted:
        return float(words == wanted)
    # 2PR / (P + R), where P = shared / words and R = shared / wanted.
    shared = sum((Counter(words) & Counter(wanted)).values())
    return 2 * shared / (len(words) + len(wanted))


def _values(answer: str, right: Sequence[str]) -> tuple[float, float]:
    # The script passes over a right answer without a word; if none has one, it is the empty text.
    worded = [text for text in right if normalize(text)] or [""]
    return (
        max(exact_match(answer, text) for text in worded),
        max(word_f1(answer, text) for text in worded),
    )


def _means(scores: np.ndarray) -> dict[str, float]:
    exact, f1 = scores.mean(0)
    return {"exact": float(exact), "f1": float(f1), "questions": len(scores)}


def _best_threshold(spans: np.ndarray, silent: np.ndarray, odds: np.ndarray) -> dict[str, float]:
    """Find the threshold of the greatest mean, the lowest one of equals.

    Args:
        spans: of each question the F1 of the span.
        silent: that of "no answer".
        odds: by which the questions answered are chosen: those of at most the threshold.
    """
    order = np.argsort(odds, kind="stable")
    odds = odds[order]
    gained = np.concatenate([[0.0], np.cumsum((spans - silent)[order])])
    # How many are answered: none, all, or those up to the last of equal odds.
    ends = np.concatenate([[0], np.flatnonzero(odds[1:] > odds[:-1]) + 1, [len(odds)]])
    best = int(ends[gained[ends].argmax()])
    threshold = odds[best - 1] if best else np.nextafter(odds[0], -np.inf)
    return {"f1": float((silent.sum() + gained[best]) / len(odds)), "threshold": float(threshold)}
