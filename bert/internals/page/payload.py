"""What the page shows, as plain values: made by collect.py, written into the page by render.py.

Everything that came from a user, or from a model's files, gets into the page by `as_json` alone,
and there it is text: no character of it can end the element that it stands in.
"""

import base64
import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

# In an HTML page these could end or open something; in JSON their escapes mean the same.
_ESCAPES = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&"})
SIGNIFICANT = 5
"""Digits that are kept of a number."""


@dataclass(frozen=True)
class Bytes:
    """Numbers from 0 to 1 in 255 steps, the last axis running fastest."""

    shape: tuple[int, ...]
    base64: str

    @staticmethod
    def of(values: Float[Tensor, "*axes"]) -> "Bytes":
        """Round to the nearest step."""
        steps = (values.detach().cpu().double() * 255).round().to(torch.uint8)
        content = steps.contiguous().numpy().tobytes()
        return Bytes(tuple(values.shape), base64.b64encode(content).decode("ascii"))

    def values(self) -> np.ndarray:
        """Return the numbers, each within half a step of what it was made of."""
        steps = np.frombuffer(base64.b64decode(self.base64), np.uint8)
        return steps.reshape(self.shape) / 255


@dataclass(frozen=True)
class Token:
    """One of the model's tokens."""

    text: str
    """As the vocabulary has it: "##s" goes on with the word before."""
    word: int
    """The number of its word; a special token is a word of its own."""
    segment: int
    special: bool
    """Whether it is of the frame, not of the text."""


@dataclass(frozen=True)
class Head:
    """What one head is like on this text."""

    kind: str
    """Its type of head_types.py, or nothing."""
    scores: list[float | None]
    """For each type; None where no token could show it."""
    entropy: float
    """Nats, the mean over its queries."""
    distance: float
    """Tokens, the mean over its queries."""


@dataclass(frozen=True)
class Lens:
    """Each layer's vectors, read by the masked-word head."""

    words: list[str]
    """The tokens that the guesses point at."""
    guesses: list[list[list[int]]]
    """For each layer and position the likeliest, as places in `words`."""
    probabilities: list[list[list[float | None]]]
    truth: list[str]
    """For each position the token that is held to be right there."""
    rank: list[list[int]]
    """Its rank, from 1."""
    divergence: list[list[float | None]]
    """KL from the last layer's distribution to this one, in nats."""
    vocabulary: int
    """How many tokens there are to guess."""


@dataclass(frozen=True)
class Answer:
    """What the head of a fine-tuned model says."""

    title: str
    labels: list[str]
    rows: list[list[float | None]]
    """The labels' values: one row for the text, or one a token."""
    kind: Literal["text", "tokens", "number"]
    """Probabilities of the text, or of each token; or a plain number."""


@dataclass(frozen=True)
class Attributed:
    """How much a logit hangs on each token (attribution.py): gradient × input, in logits."""

    name: str
    """The class or the token whose logit it is."""
    place: int | None
    """The token that is predicted; None for a class of the text."""
    scores: list[float | None]


@dataclass(frozen=True)
class Parts:
    """What a masked prediction's logit is the sum of (logit_attribution.py)."""

    place: int
    """The token that is predicted."""
    token: str
    """Whose logit."""
    logit: float | None
    names: list[str]
    shares: list[float | None]
    """The largest first, whatever its sign."""
    remainder: float | None
    """What they leave of the logit: rounding."""


@dataclass(frozen=True)
class Patched:
    """Which places carry the difference between two sentences' predictions (patching.py)."""

    tokens: list[str]
    """The other sentence's."""
    place: int
    """The token that is predicted."""
    first: str
    """The difference is this token's logit less the next one's."""
    second: str
    here: float
    """The difference in this sentence's run."""
    there: float
    """In the other's."""
    changes: dict[str, list[list[float | None]]]
    """For each component, the change at [layer][token] with the other's vector there."""
    heads: list[list[float | None]]
    """The change with a head's output taken from the other, at all tokens."""


@dataclass(frozen=True)
class Origin:
    """Who made a kind of tensor, and how far it stands from the reference."""

    name: str
    meaning: str
    made_by: str
    difference: float | None
    """The largest of an element, over all layers, from REFERENCE in float64."""
    largest: float | None
    """The largest value of an element, to judge the difference by."""


@dataclass(frozen=True)
class Payload:
    """All that the page shows."""

    name: str
    text: str
    pair: str | None
    backend: str
    facts: dict[str, str]
    card: str
    """The model's README.md, or nothing."""
    tokens: list[Token]
    attention: Bytes
    """[layers, heads, queries, keys]."""
    rollout: Bytes
    """[layers, queries, keys]."""
    types: dict[str, float | None]
    """The types of heads, each with the score of a head that looks at all tokens alike."""
    heads: list[list[Head]]
    norms: list[list[float | None]]
    """The length of the embeddings' vectors, then of each layer's: [layers + 1][tokens]."""
    lens: Lens | None
    answer: Answer | None
    attributed: Attributed | None
    parts: Parts | None
    patched: Patched | None
    origins: list[Origin]

    def as_json(self) -> str:
        """Write it down in ASCII, without a character that means something to HTML."""
        content = json.dumps(
            asdict(self), ensure_ascii=True, allow_nan=False, separators=(",", ":")
        )
        return content.translate(_ESCAPES)


def rounded(values: Any) -> Any:
    """Keep the significant digits of a number, or of each in nested lists; None if not finite."""
    if isinstance(values, list):
        return [rounded(value) for value in values]
    return float(f"{values:.{SIGNIFICANT}g}") if math.isfinite(values) else None
