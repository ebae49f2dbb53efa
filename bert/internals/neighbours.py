"""Which tokens lie beside each other in the word embeddings, by the angle of their vectors."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bert.architectures import Model
from bert.model import Bert
from bert.tokenization import Tokenizer


@dataclass(frozen=True)
class Neighbour:
    """A token near another one."""

    token: str
    """As the vocabulary has it: "##ing" goes on with the word before."""
    id: int
    cosine: float
    """Of the angle between the two vectors: 1 where they point the same way, 0 across."""


def nearest_tokens(
    model: Model, tokenizer: Tokenizer, token: str, count: int = 10
) -> list[Neighbour]:
    """List the tokens whose word vectors lie nearest to a token's, the nearest first.

    The five special tokens are left out, and the rows that a model has beyond its tokenizer's.

    Args:
        model: any, on any device.
        tokenizer: the model's.
        token: one of the vocabulary, such as "king" or "##ing".
        count: how many; all where there are fewer.

    Raises:
        ValueError: the vocabulary hasn't the token, or `count` is below 1.
    """
    id = tokenizer.token_to_id(token)
    if id is None:
        raise ValueError(f"token: expected one of the vocabulary, got {token!r}")
    word = (model if isinstance(model, Bert) else model.bert).embeddings.word.weight
    known = word[: tokenizer.vocab_size]
    found = nearest_rows(known, known[id], count, {id, *tokenizer.special_ids})
    return [Neighbour(tokenizer.vocab[row], row, cosine) for row, cosine in found]


@torch.no_grad()
def nearest_rows(
    matrix: Float[Tensor, "rows hidden"],
    vector: Float[Tensor, " hidden"],
    count: int = 10,
    left_out: Collection[int] = (),
) -> list[tuple[int, float]]:
    """List the rows of a matrix that have the greatest cosine to a vector, the greatest first.

    Args:
        matrix: such as the word embeddings, which are the output matrix too; the vector may then
            be a token's state in any layer.
        vector: of any length; a row or a vector of zeros has a cosine of 0 to all.
        count: how many; all where there are fewer.
        left_out: rows to pass over.

    Returns:
        Each row's number with its cosine, computed in float32 at least.

    Raises:
        ValueError: `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"count: expected 1 or more, got {count}")
    dtype = torch.promote_types(matrix.dtype, torch.float32)
    rows = torch.nn.functional.normalize(matrix.to(dtype), dim=-1)
    cosines = rows @ torch.nn.functional.normalize(vector.to(dtype), dim=-1)
    cosines[list(left_out)] = -torch.inf
    best = cosines.topk(min(count, len(cosines) - len(set(left_out))))
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
