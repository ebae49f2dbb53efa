"""Which known types of attention heads a snapshot has, on held-out text without masks."""

import math
from collections.abc import Sequence
from typing import Any

from bert.internals.head_types import TYPES, HeadScores, head_scores
from bert.packing import PackedBatch
from bert.pretraining import BertForPreTraining
from bert.tokenization import Tokenizer

TOKENS = 1024
"""Tokens that heads are looked at on, about: attention takes memory by a sequence's length."""


def score_heads(
    model: BertForPreTraining, windows: Sequence[Sequence[int]], tokenizer: Tokenizer
) -> HeadScores:
    """Score all heads of a snapshot (bert/internals/head_types.py) on the first sequences.

    Args:
        model: in evaluation mode.
        windows: of `read_windows`; one of them at least is looked at.
        tokenizer: theirs.
    """
    kept = [windows[0]]
    for window in windows[1:]:
        if sum(map(len, kept)) + len(window) > TOKENS:
            break
        kept.append(window)
    device = model.bert.embeddings.word.weight.device
    return head_scores(model, PackedBatch.from_lists(kept, None, device), tokenizer.vocab)


def described(scores: HeadScores) -> dict[str, Any]:
    """Turn scores into what JSON can say; a type that no query could show is left out."""
    return {name: scores.scores[name].tolist() for name in TYPES if scores.queries[name]}


def uniform(scores: HeadScores) -> dict[str, float]:
    """What a head that looks at all tokens alike would score, of the same types."""
    return {name: score for name, score in scores.uniform.items() if not math.isnan(score)}
