"""The operations that the encoder is built from, each as a typed signature, and a set of them.

`KernelSet` is a value: `Bert(config, kernels=TORCH)` says which mathematics library runs, and
nothing else does. Every set computes the same functions; they differ in speed, in the dtypes that
they take, and in how they draw a dropout mask.

Inside the encoder all tensors are packed: the sequences of a batch lie one after another along
one axis of `tokens`, without padding, and `PackedSequences` says where each begins.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

GeluForm = Literal["erf", "tanh"]


@dataclass(frozen=True)
class PackedSequences:
    """Where each sequence of a packed batch lies: the i-th from cu_seqlens[i] to cu_seqlens[i+1].

    The lengths are held twice, on the device for kernels and on the host for launchers, so that
    no operation has to wait for the device to learn them.
    """

    cu_seqlens: Int32[Tensor, " seqs_plus_one"]
    max_seqlen: int
    lengths: tuple[int, ...] = field(repr=False)
    # Compiled code asks for these two, and not for the lengths that they follow from: it would be
    # compiled again for each batch whose lengths are others.
    tokens: int = field(init=False, repr=False)
    """The number of rows in the packed batch."""
    has_empty: bool = field(init=False, repr=False)
    """Whether a sequence has no tokens."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", sum(self.lengths))
        object.__setattr__(self, "has_empty", 0 in self.lengths)

    @staticmethod
    def from_lengths(
        lengths: Sequence[int], device: torch.device | str = "cpu"
    ) -> "PackedSequences":
        """Lay sequences of these lengths (in tokens, 0 allowed) one after another."""
        lengths = tuple(int(length) for length in lengths)
        if any(length < 0 for length in lengths):
            raise ValueError(f"lengths: expected non-negative integers, got {min(lengths)}")
        offsets = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
        return PackedSequences(offsets, max(lengths, default=0), lengths)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """`cu_seqlens` on the host."""
        return (0, *accumulate(self.lengths))

    def to(self, device: torch.device | str) -> "PackedSequences":
        """Move `cu_seqlens`; the host's copy stays."""
        return PackedSequences(self.cu_seqlens.to(device), self.max_seqlen, self.lengths)

    def check(self, tokens: int) -> None:
        """Refuse a packed tensor that has another number of rows than the sequences add up to."""
        if tokens != self.tokens:
            raise ValueError(
                f"sequences: expected lengths that add up to the {tokens} packed tokens, "
                f"got {self.tokens}"
            )


class Dropout(NamedTuple):
    """A dropout mask that can be replayed: a pure function of these three and the shape.

    The probability is rounded to 1/65,536, and the exact probability of keeping divides.
    """

    p: float
    seed: Int64[Tensor, ""]
    """One random draw for a whole forward pass."""
    stream: int
    """Which of the forward pass's masks this is: each place that drops has its own number."""

    @property
    def threshold(self) -> int:
        """An element is kept where its 16 random bits, as an unsigned number, reach this."""
        return round(self.p * 65536)

    @property
    def scale(self) -> float:
        """What kept elements are multiplied by: one over the exact probability of keeping."""
        return 65536 / (65536 - self.threshold)

    @staticmethod
    def check(p: float, name: str = "p") -> None:
        """Refuse a probability outside [0, 0.99]."""
        if not 0 <= p <= 0.99:
            raise ValueError(f"{name}: expected a probability between 0 and 0.99, got {p}")


class EmbeddingIndices(NamedTuple):
    """Which row of each embedding table a token takes."""

    word: Int64[Tensor, " tokens"]
    position: Int64[Tensor, " tokens"]
    token_type: Int64[Tensor, " tokens"]


class EmbeddingTables(NamedTuple):
    """BERT's three embedding tables."""

    word: Float[Tensor, "vocab hidden"]
    position: Float[Tensor, "positions hidden"]
    token_type: Float[Tensor, "types hidden"]


class LambSettings(NamedTuple):
    """What one step of LAMB is told, for a group of tensors."""

    learning_rate: Float[Tensor, ""]
    """On the parameters' device, where a captured CUDA graph reads it anew."""
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    is_adapted: bool
    """Whether a tensor's step is as long as the learning rate times the tensor's own norm."""


@runtime_checkable
class Attention(Protocol):
    """Softmax(query·keyᵀ / √head_dim)·value within each sequence, in both directions.

    (Vaswani et al. 2017, section 3.2.1.) Attention never crosses from one sequence to another.
    Dropout acts on the probabilities. A sequence of no tokens has no output.
    """

    def __call__(  # noqa: D102
        self,
        query: Float[Tensor, "tokens heads head_dim"],
        key: Float[Tensor, "tokens heads head_dim"],
        value: Float[Tensor, "tokens heads head_dim"],
        sequences: PackedSequences,
        dropout: Dropout | None = None,
    ) -> Float[Tensor, "tokens heads head_dim"]: ...


@runtime_checkable
class AttentionProbabilities(Protocol):
    """The probabilities that `Attention` weighs the values with, padded, before dropout.

    For study: it costs memory quadratic in the length. Rows and columns past a sequence's end
    are zero.
    """

    def __call__(  # noqa: D102
        self,
        query: Float[Tensor, "tokens heads head_dim"],
        key: Float[Tensor, "tokens heads head_dim"],
        sequences: PackedSequences,
    ) -> Float[Tensor, "seqs heads max_seqlen max_seqlen"]: ...


@runtime_checkable
class LayerNorm(Protocol):
    """(x − mean) / √(variance + eps) · weight + bias over the last axis (Ba et al. 2016).

    The variance is the biased one. Statistics are in float32 at least.
    """

    def __call__(  # noqa: D102
        self,
        x: Float[Tensor, "tokens hidden"],
        weight: Float[Tensor, " hidden"],
        bias: Float[Tensor, " hidden"],
        eps: float,
    ) -> Float[Tensor, "tokens hidden"]: ...


@runtime_checkable
class AddLayerNorm(Protocol):
    """LayerNorm(residual + dropout(x + x_bias)): what ends both halves of a BERT layer.

    `x_bias` is the bias of the linear map that made x. Returns the normalised rows and the sum
    that was normalised, which is the residual stream that students look at.
    """

    def __call__(  # noqa: D102
        self,
        x: Float[Tensor, "tokens hidden"],
        x_bias: Float[Tensor, " hidden"],
        residual: Float[Tensor, "tokens hidden"],
        weight: Float[Tensor, " hidden"],
        bias: Float[Tensor, " hidden"],
        eps: float,
        dropout: Dropout | None = None,
    ) -> tuple[Float[Tensor, "tokens hidden"], Float[Tensor, "tokens hidden"]]: ...


@runtime_checkable
class BiasGelu(Protocol):
    """gelu(x + bias) with gelu(x) = x·Φ(x), or its tanh form (Hendrycks & Gimpel 2016)."""

    def __call__(  # noqa: D102
        self,
        x: Float[Tensor, "tokens features"],
        bias: Float[Tensor, " features"],
        form: GeluForm = "erf",
    ) -> Float[Tensor, "tokens features"]: ...


@runtime_checkable
class EmbeddingLayerNorm(Protocol):
    """dropout(LayerNorm(word + position + token type)): the encoder's input.

    (Devlin et al. 2018, section 3.) The gradient of the row `padding_idx` of the word table is
    left out, as it is in `torch.nn.Embedding`; a negative one leaves out none.
    """

    def __call__(  # noqa: D102
        self,
        indices: EmbeddingIndices,
        tables: EmbeddingTables,
        weight: Float[Tensor, " hidden"],
        bias: Float[Tensor, " hidden"],
        eps: float,
        padding_idx: int = -1,
        dropout: Dropout | None = None,
    ) -> Float[Tensor, "tokens hidden"]: ...


@runtime_checkable
class LinearCrossEntropy(Protocol):
    """The sum over rows of −log softmax(hidden·weightᵀ + bias)[label].

    Rows whose label is −100 count nothing. The sum is in float32 at least. The caller divides,
    since only it knows the count over all micro-batches and processes.
    """

    def __call__(  # noqa: D102
        self,
        hidden: Float[Tensor, "masked hidden"],
        weight: Float[Tensor, "vocab hidden"],
        bias: Float[Tensor, " vocab"],
        labels: Int64[Tensor, " masked"],
    ) -> Float[Tensor, ""]: ...


@runtime_checkable
class DropoutOp(Protocol):
    """x · keep / (probability of keeping) (Srivastava et al. 2014)."""

    def __call__(  # noqa: D102
        self, x: Float[Tensor, "rows features"], dropout: Dropout | None
    ) -> Float[Tensor, "rows features"]: ...


@runtime_checkable
class LambStep(Protocol):
    """One step of LAMB, in place, for each tensor by itself (You et al. 2020, algorithm 2).

    mean ← β₁·mean + (1 − β₁)·g            square ← β₂·square + (1 − β₂)·g²
    u = (mean / (1 − β₁ᵗ)) / (√(square / (1 − β₂ᵗ)) + eps) + decay·x
    x ← x − rate · ‖x‖/‖u‖ · u

    The ratio of norms is 1 where either is zero, and where the group is not adapted. Each tensor
    has its own step t, counted from 1, in float32.
    """

    def __call__(  # noqa: D102
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        means: list[Tensor],
        squares: list[Tensor],
        steps: list[Tensor],
        settings: LambSettings,
    ) -> None: ...


@dataclass(frozen=True)
class KernelSet:
    """One implementation of every operation. Swap one with `dataclasses.replace`."""

    name: str
    attention: Attention
    attention_probabilities: AttentionProbabilities
    layer_norm: LayerNorm
    add_layer_norm: AddLayerNorm
    bias_gelu: BiasGelu
    embedding_layer_norm: EmbeddingLayerNorm
    linear_cross_entropy: LinearCrossEntropy
    dropout: DropoutOp
    lamb_step: LambStep

    def __repr__(self) -> str:
        return f"KernelSet({self.name})"
