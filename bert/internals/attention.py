"""What each head of each layer looks at: by words, by parts of the input, how widely, how far.

The functions take one sequence's probabilities, [layers, heads, queries, keys], each row of which
sums to 1, as `attention_maps` gives them.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from bert.architectures import Model
from bert.internals.capture import Cache, run_captured
from bert.internals.watching import trunk_of
from bert.packing import PackedBatch

PARTS = ("[CLS]", "first segment", "second segment", "[SEP]")
"""What `token_parts` counts by."""


def attention_maps(
    model: Model, batch: PackedBatch
) -> list[Float[Tensor, "layers heads length length"]]:
    """Compute the probabilities of each sequence of a packed batch, beside: see capture.py."""
    cache = run_captured(trunk_of(model), batch, "layers.*.attention.probabilities")
    return [maps_of(cache, index) for index in range(len(batch.sequences.lengths))]


def maps_of(cache: Cache, index: int = 0) -> Float[Tensor, "layers heads length length"]:
    """Stack one sequence's captured probabilities, of all layers that were asked for."""
    names = [name for name in cache if name.endswith("attention.probabilities")]
    return torch.stack([cache.of_sequence(name, index) for name in names])


def word_groups(tokens: Sequence[str]) -> list[list[int]]:
    """List the places of each word's pieces: "##s" belongs to the word before it.

    A special token is a word of its own.
    """
    groups: list[list[int]] = []
    for place, token in enumerate(tokens):
        if token.startswith("##") and place and not is_special(tokens[place - 1]):
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


def is_special(token: str) -> bool:
    """Whether a token belongs to the frame or the padding; a [MASK] or [UNK] stands for a word."""
    return token in ("[CLS]", "[SEP]", "[PAD]")


def merge_words(
    probabilities: Float[Tensor, "layers heads queries keys"], groups: Sequence[Sequence[int]]
) -> Float[Tensor, "layers heads words words"]:
    """Merge pieces to words: sum over the keys of a word, mean over its queries.

    (Clark et al. 2019, section 4.1.) Rows still sum to 1.

    Args:
        probabilities: of tokens.
        groups: see `word_groups`; each token once.

    Raises:
        ValueError: the groups are not the sequence's tokens.
    """
    length = probabilities.shape[-1]
    if sorted(place for group in groups for place in group) != list(range(length)):
        raise ValueError(f"groups: expected each of {length} tokens once, got other places")
    merge = probabilities.new_zeros(len(groups), length)
    for word, group in enumerate(groups):
        merge[word, list(group)] = 1
    mean = merge / merge.sum(1, keepdim=True)
    return mean @ probabilities @ merge.T


def token_parts(tokens: Sequence[str], token_type_ids: Sequence[int]) -> list[str]:
    """Say of each token which of `PARTS` it belongs to."""
    return [
        token if token in ("[CLS]", "[SEP]") else PARTS[2 if segment else 1]
        for token, segment in zip(tokens, token_type_ids, strict=True)
    ]


def block_mass(
    probabilities: Float[Tensor, "layers heads queries keys"], parts: Sequence[str]
) -> tuple[list[str], Float[Tensor, "layers heads parts parts"]]:
    """Add up how much each part of the input looks at each part.

    Args:
        probabilities: of tokens.
        parts: each token's part: see `token_parts`.

    Returns:
        The parts that occur, in the order of their first tokens; and for each pair the mean over
        the first part's queries of their attention to all of the second part: rows sum to 1.
    """
    names = list(dict.fromkeys(parts))
    groups = [[place for place, part in enumerate(parts) if part == name] for name in names]
    return names, merge_words(probabilities, groups)


def entropy(
    probabilities: Float[Tensor, "layers heads queries keys"],
) -> Float[Tensor, "layers heads queries"]:
    """Measure how widely each query looks, −Σ p ln p, in nats: 0 at one key, ln(keys) at all."""
    return torch.special.entr(probabilities).sum(-1)


def distance(
    probabilities: Float[Tensor, "layers heads queries keys"],
) -> Float[Tensor, "layers heads queries"]:
    """Measure how far each query looks: the mean of |query − key| in tokens, by attention."""
    place = torch.arange(probabilities.shape[-1], device=probabilities.device)
    apart = (place[:, None] - place).abs().to(probabilities.dtype)
    return (probabilities * apart).sum(-1)


def rollout(
    probabilities: Float[Tensor, "layers heads queries keys"],
) -> Float[Tensor, "layers queries keys"]:
    """Follow attention down to the input tokens (Abnar and Zuidema 2020, section 3).

    A layer mixes half its token's own residual with half its heads' mean; the product of the
    layers up to each says from which input a token's vector there has come. Rows sum to 1.
    """
    length = probabilities.shape[-1]
    reached = torch.eye(length, dtype=probabilities.dtype, device=probabilities.device)
    rolled = []
    for mean in probabilities.mean(1):
        reached = 0.5 * mean @ reached + 0.5 * reached
        rolled.append(reached)
    return torch.stack(rolled)
