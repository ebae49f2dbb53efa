"""A first layer that looks around itself, and a head that passes on what it found: a start only.

A network drawn at random has to find out first that the words beside a gap tell of it. A small one
takes a million tokens for that, and stays near the unigram loss until then. Here the first weights
know it. No shape and no formula is another, and training moves all of it.

With P the embedding of a position, f_j of W frequencies, s the place that a head of layer 1 looks
at (one to the left, one to the right, two to the left, …), q, k, v its query, key and value:

    P(p)         the last 2W dimensions: a · (…, sin f_j·p, cos f_j·p, …); words leave them empty
    q(p) · k(r)  ∝ Σ_j cos f_j·(p + s − r): highest where r is p + s, and falling from there
    v, output    copy the first dimensions of words: the layer adds its neighbours' words
    head         a tenth of the identity: GELU(x) ≈ x/2 for small x; LayerNorm restores the scale

So the decoder multiplies the neighbours' vectors with each word's; where these are word vectors
(word_vectors.py), the product says how well the words go together. (Waves: Vaswani et al. 2017,
section 3.5. First weights that resemble trained ones: Trockman and Kolter 2023.)
"""

import math

import torch
from torch import Tensor

from bert.attention import SelfAttention
from bert.encoder import Layer
from bert.pretraining import BertForPreTraining

WAVES = 0.25
"""Share of the dimensions that are for positions, at most a head's."""
SLOWEST = 1 / 40
"""Radians a token of the slowest wave; the fastest has 1."""
SCORE = 13.5
"""What a token's attention gives to the place that it looks at, before the softmax."""
CONTEXT = 2.0
"""How much of its neighbours' words a token takes up, beside its own."""
HEAD = 0.1
"""Of the identity, in the masked-word head."""
NOISE = 0.02
"""Standard deviation of what is drawn beside the pattern, so that no two weights stay alike."""


@torch.no_grad()
def start_locally(model: BertForPreTraining) -> None:
    """Write the pattern into a drawn model, whose word embedding has its first values already.

    The word vectors lose their last dimensions, which in `word_vectors` tell least, and keep their
    root mean square.

    Raises:
        ValueError: the model is too narrow for waves beside words.
    """
    config, embeddings = model.config, model.bert.embeddings
    if config.hidden_size < 4 or config.head_dim < 2:
        raise ValueError(
            f"model: expected 4 dimensions or more, and 2 in a head, for local_start, got "
            f"{config.hidden_size} and {config.head_dim}"
        )
    waves = max(1, min(int(WAVES * config.hidden_size), config.head_dim) // 2)
    words = config.hidden_size - 2 * waves
    _empty_last(embeddings.word.weight, words)
    embeddings.token_type.weight *= 0.2  # all tokens of a segment have it: it tells nothing yet
    frequencies = SLOWEST ** torch.linspace(0, 1, waves)
    embeddings.position.weight[:, :words] *= 0.1
    embeddings.position.weight[:, words:] = (
        # As much in all as a word's vector has.
        config.initializer_range
        * math.sqrt(config.hidden_size / waves)
        * _waves(torch.arange(config.max_position_embeddings), frequencies)
    )
    first = model.bert.encoder.layers[0]
    assert isinstance(first, Layer)
    _look_around(first.attention, frequencies, words)
    head = model.mlm_head.dense.weight
    head.normal_(0, HEAD * NOISE).diagonal().add_(HEAD)


def _look_around(attention: SelfAttention, frequencies: Tensor, words: int) -> None:
    """Let each head look at a place of its own, and pass on what words have there."""
    config, waves = attention.config, len(frequencies)
    heads, size = config.num_attention_heads, config.head_dim
    attention.qkv.weight.normal_(0, NOISE)
    attention.output.weight.normal_(0, NOISE)
    query, key, value = attention.qkv.weight.view(3, heads, size, config.hidden_size)
    output = attention.output.weight.view(config.hidden_size, heads, size)
    # After LayerNorm the waves are half of a vector's squared norm, which is its width.
    gain = math.sqrt(2 * SCORE * math.sqrt(size) / config.hidden_size)
    sine, cosine = torch.arange(0, 2 * waves, 2), torch.arange(1, 2 * waves, 2)
    passed = torch.arange(min(size, words))
    for head in range(heads):
        shift = (head // 2 + 1) * (-1 if head % 2 == 0 else 1)
        turn = shift * frequencies
        query[head, sine, words + sine] += gain * turn.cos()
        query[head, sine, words + cosine] += gain * turn.sin()
        query[head, cosine, words + sine] -= gain * turn.sin()
        query[head, cosine, words + cosine] += gain * turn.cos()
        for row in (sine, cosine):
            key[head, row, words + row] += gain
        value[head, passed, passed] += 1
        output[passed, head, passed] += CONTEXT


def _empty_last(weight: Tensor, kept: int) -> None:
    size = weight.square().mean().sqrt()
    weight[:, kept:] = 0
    weight *= size / weight.square().mean().sqrt()


def _waves(positions: Tensor, frequencies: Tensor) -> Tensor:
    """Make sine and cosine by turns, for each position."""
    angles = positions[:, None] * frequencies
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)
