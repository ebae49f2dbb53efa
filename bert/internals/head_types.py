"""Known kinds of heads, found by what their attention falls on (Clark et al. 2019, section 3).

| type       | the keys that count, for a query's token                       |
| ---------- | -------------------------------------------------------------- |
| next       | the token after it                                             |
| previous   | the token before it                                            |
| self       | itself                                                         |
| separator  | every [SEP]: where a head looks that has nothing to do         |
| classifier | every [CLS]                                                    |
| same_word  | the other pieces of its word                                   |
| repeated   | the same token elsewhere in the sequence                       |

A head's score is the attention that falls on these keys, averaged over the queries that have such
a key; [CLS], [SEP] and [PAD] are no queries. Beside it stands the score of a head that looks at
all tokens alike. A head is of a type where it spends there half of its attention or more.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bert.architectures import Model
from bert.internals.attention import attention_maps, is_special, word_groups
from bert.packing import PackedBatch

THRESHOLD = 0.5
"""The part of its attention that makes a head one of a type."""

TYPES: tuple[str, ...] = (
    "next",
    "previous",
    "self",
    "separator",
    "classifier",
    "same_word",
    "repeated",
)


@dataclass(frozen=True)
class HeadScores:
    """How much of each head's attention falls where a type's would."""

    scores: dict[str, Float[Tensor, "layers heads"]]
    """For each of `TYPES`, from 0 to 1; NaN where no query has such a key."""
    uniform: dict[str, float]
    """What a head that looks at all tokens alike would score, on the same queries."""
    queries: dict[str, int]
    """How many queries have such a key."""

    def found(self, threshold: float = THRESHOLD) -> list[tuple[int, int, str, float]]:
        """List (layer, head, type, score) of each head of a type, the highest score first.

        A head that several types would claim is of the one with the highest score.
        """
        table = torch.stack([self.scores[name] for name in TYPES]).nan_to_num(-1)
        best = table.max(0)
        places = (best.values >= threshold).nonzero().tolist()
        heads = [
            (layer, head, TYPES[int(best.indices[layer, head])], float(best.values[layer, head]))
            for layer, head in places
        ]
        return sorted(heads, key=lambda head: -head[3])


def head_scores(model: Model, batch: PackedBatch, vocab: Sequence[str]) -> HeadScores:
    """Score all heads of a model on a packed batch.

    Args:
        model: in evaluation mode.
        batch: on its device.
        vocab: the tokenizer's tokens, by id.
    """
    ids = batch.input_ids.split(list(batch.sequences.lengths))
    tokens = [[vocab[int(id)] for id in row] for row in ids]
    return score_maps(attention_maps(model, batch), tokens)


def score_maps(
    maps: Sequence[Float[Tensor, "layers heads _ _"]], tokens: Sequence[Sequence[str]]
) -> HeadScores:
    """Score heads by the maps of some sequences; see `head_scores`.

    Raises:
        ValueError: no sequence, or one without as many tokens as its map has.
    """
    if not maps or len(maps) != len(tokens):
        raise ValueError(
            f"tokens: expected those of {len(maps) or 'some'} maps, got {len(tokens)}"
        )
    shape = maps[0].shape[:2]
    sums = {name: torch.zeros(shape, dtype=torch.float64) for name in TYPES}
    alike, queries = dict.fromkeys(TYPES, 0.0), dict.fromkeys(TYPES, 0)
    for index, (probabilities, row) in enumerate(zip(maps, tokens, strict=True)):
        if probabilities.shape[-1] != len(row):
            raise ValueError(
                f"tokens[{index}]: expected {probabilities.shape[-1]}, as many as the map has, "
                f"got {len(row)}"
            )
        for name, counts in type_keys(row).items():
            falls = (probabilities.cpu().double() * counts).sum((2, 3))
            sums[name] += falls
            alike[name] += float(counts.sum()) / max(len(row), 1)
            queries[name] += int(counts.any(1).sum())
    return HeadScores(
        {name: total / (queries[name] or float("nan")) for name, total in sums.items()},
        {name: alike[name] / (queries[name] or float("nan")) for name in TYPES},
        queries,
    )


def type_keys(tokens: Sequence[str]) -> dict[str, Bool[Tensor, "queries keys"]]:
    """Mark for each type which keys count for which query; see the table at the top."""
    place = torch.arange(len(tokens))
    after = place - place[:, None]
    word, firsts = (
        torch.empty_like(place),
        {token: i for i, token in reversed([*enumerate(tokens)])},
    )
    for number, group in enumerate(word_groups(tokens)):
        word[group] = number
    kind = torch.tensor([firsts[token] for token in tokens], dtype=torch.int64)
    is_query = torch.tensor([not is_special(token) for token in tokens], dtype=torch.bool)
    counts = {
        "next": after == 1,
        "previous": after == -1,
        "self": after == 0,
        "separator": torch.tensor([token == "[SEP]" for token in tokens], dtype=torch.bool),
        "classifier": torch.tensor([token == "[CLS]" for token in tokens], dtype=torch.bool),
        "same_word": (word == word[:, None]) & (after != 0),
        "repeated": (kind == kind[:, None]) & (after != 0),
    }
    return {name: keys & is_query[:, None] for name, keys in counts.items()}
