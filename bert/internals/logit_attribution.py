"""Which parts of the model a masked prediction's logit is the sum of (Elhage et al. 2021).

BERT puts a LayerNorm after each addition, and a GELU into its head, so a logit is no plain sum of
what the parts wrote. It is one where this run's statistics are held fast: each LayerNorm divides
by the number that it divided by in this run, and the head's GELU multiplies each feature by the
number, Φ(z), that it multiplied by. What is left is linear: the vector that reads the logit off is
carried down through it, layer by layer, and its product with what each part wrote is the part's
share. The shares, biases among them, add up to the logit exactly, but for rounding.

    logit = Σ embeddings + Σ heads + Σ attention biases + Σ feed-forwards + Σ norm biases + head's

A share is what the part wrote at this token, read directly. What a head took from another token,
and which part wrote it there, is not followed further; nor is that a part without which the
statistics would be others moves all shares (ablation.py measures that).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bert.encoder import Layer
from bert.internals.capture import Cache, run_captured
from bert.packing import PackedBatch
from bert.pretraining import BertForMaskedLM

EMBEDDINGS = ("word", "position", "token_type")


@dataclass(frozen=True)
class LogitAttribution:
    """The shares of a logit, or of the difference between two, in float64."""

    logit: float
    """As the model computed it."""
    embeddings: dict[str, float]
    """Of the token's rows of the three tables."""
    heads: Float[Tensor, "layers heads"]
    attention_bias: Float[Tensor, " layers"]
    """Of the bias that follows the heads' projection."""
    feed_forward: Float[Tensor, " layers"]
    norm_bias: Float[Tensor, " norms"]
    """Of the embeddings' LayerNorm's bias, then of each layer's two."""
    head_bias: float
    """Of the biases of the masked-word head."""

    @property
    def total(self) -> float:
        """The sum of all shares."""
        parts = (self.heads, self.attention_bias, self.feed_forward, self.norm_bias)
        sums = sum(part.sum().item() for part in parts)
        return sums + sum(self.embeddings.values()) + self.head_bias

    @property
    def remainder(self) -> float:
        """What the shares leave of the logit: rounding, of the dtype that the model ran in."""
        return self.logit - self.total

    def ranked(self) -> list[tuple[str, float]]:
        """List all shares by their names, the largest first, whatever its sign."""
        shares = [(f"embeddings.{name}", share) for name, share in self.embeddings.items()]
        shares.append(("embeddings.norm.bias", self.norm_bias[0].item()))
        for layer, of_heads in enumerate(self.heads.tolist()):
            name = f"layers.{layer}"
            shares += [(f"{name}.head.{head}", share) for head, share in enumerate(of_heads)]
            halves = self.norm_bias[1 + 2 * layer : 3 + 2 * layer].tolist()
            shares += [
                (f"{name}.attention.bias", self.attention_bias[layer].item()),
                (f"{name}.attention.norm.bias", halves[0]),
                (f"{name}.feed_forward", self.feed_forward[layer].item()),
                (f"{name}.feed_forward.norm.bias", halves[1]),
            ]
        shares.append(("mlm_head.bias", self.head_bias))
        return sorted(shares, key=lambda share: -abs(share[1]))


@torch.no_grad()
def attribute_logit(
    model: BertForMaskedLM, batch: PackedBatch, row: int, token: int, against: int | None = None
) -> LogitAttribution:
    """Take a token's logit apart.

    In float32 the remainder is some 1e-5 of the logit; `model.double()` brings it to 1e-14.

    Args:
        model: in evaluation mode.
        batch: on its device.
        row: the packed batch's row that is predicted.
        token: whose logit.
        against: take apart how far the logit is above this token's; None: the logit itself.

    Raises:
        ValueError: a row or a token that isn't there.
    """
    tokens = [("token", token)] + ([] if against is None else [("against", against)])
    for name, value, limit in (
        ("row", row, len(batch.input_ids)),
        *((name, value, model.config.vocab_size) for name, value in tokens),
    ):
        if not 0 <= value < limit:
            raise ValueError(f"{name}: expected 0 to {limit - 1}, got {value}")
    cache = run_captured(model, batch, NAMES)
    weights = [(token, 1.0)] + ([] if against is None else [(against, -1.0)])
    return _Reader(model, cache, row).read(weights)


NAMES = (
    *(f"embeddings.{name}" for name in (*EMBEDDINGS, "residual")),
    "layers.*.attention.context",
    "layers.*.*.residual",
    "layers.*.feed_forward.output",
    "mlm_head.*_activation",
    "mlm_head.logits",
)


class _Reader:
    """Carries the vector that reads a logit off down through the model."""

    def __init__(self, model: BertForMaskedLM, cache: Cache, row: int) -> None:
        self.model = model
        self.values = {name: cache[name][row].double() for name in cache}

    def read(self, weights: list[tuple[int, float]]) -> LogitAttribution:
        """Read Σ weight · logit of a token."""
        logits = self.values["mlm_head.logits"]
        logit = sum(weight * logits[token].item() for token, weight in weights)
        reader, head_bias = self._through_head(weights)
        heads, attention_bias, feed_forward, norm_bias = [], [], [], []
        layers = list(enumerate(self.model.bert.encoder.layers))
        for index, layer in reversed(layers):
            assert isinstance(layer, Layer)
            name = f"layers.{index}"
            reader, of_second_norm = self._through_norm(
                reader, layer.feed_forward.norm, f"{name}.feed_forward.residual"
            )
            feed_forward.append(reader @ self.values[f"{name}.feed_forward.output"])
            reader, of_first_norm = self._through_norm(
                reader, layer.attention.norm, f"{name}.attention.residual"
            )
            heads.append(self._of_heads(reader, layer, f"{name}.attention.context"))
            attention_bias.append(reader @ layer.attention.output_bias.double())
            norm_bias += [of_second_norm, of_first_norm]
        embedded = self.model.bert.embeddings
        reader, of_norm = self._through_norm(reader, embedded.norm, "embeddings.residual")
        rows = {name: reader @ self.values[f"embeddings.{name}"] for name in EMBEDDINGS}
        return LogitAttribution(
            logit,
            {name: share.item() for name, share in rows.items()},
            torch.stack(heads[::-1]).cpu(),
            torch.stack(attention_bias[::-1]).cpu(),
            torch.stack(feed_forward[::-1]).cpu(),
            torch.stack([*norm_bias, of_norm][::-1]).cpu(),
            head_bias,
        )

    def _through_head(self, weights: list[tuple[int, float]]) -> tuple[Tensor, float]:
        """Carry the logit's reader down to the last hidden state; add up the head's biases."""
        head = self.model.mlm_head
        table = head.output_weight(self.model.bert.embeddings.word.weight)
        rows = [weight * table[token].double() for token, weight in weights]
        bias = sum(weight * head.bias[token].double() for token, weight in weights)
        before, after = (self.values[f"mlm_head.{name}_activation"] for name in ("pre", "post"))
        reader, of_norm = self._through_norm(torch.stack(rows).sum(0), head.norm, after)
        reader = reader * torch.where(before == 0, 0.5, after / before)  # gelu(z) = z·Φ(z)
        of_dense = reader @ head.dense_bias.double()
        return reader @ head.dense.weight.double(), (bias + of_norm + of_dense).item()

    def _through_norm(
        self, reader: Tensor, norm: nn.LayerNorm, taken: str | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Carry a reader through a LayerNorm whose divisor is this run's; give the bias' share."""
        x = self.values[taken] if isinstance(taken, str) else taken
        divisor = (x.var(correction=0) + norm.eps).sqrt()
        scaled = reader * norm.weight.double() / divisor
        return scaled - scaled.mean(), reader @ norm.bias.double()

    def _of_heads(self, reader: Tensor, layer: Layer, name: str) -> Float[Tensor, " heads"]:
        """Read each head's part of the projected context."""
        context = self.values[name]  # [heads, head_dim]
        into = reader @ layer.attention.output.weight.double()
        return (into.view_as(context) * context).sum(1)
