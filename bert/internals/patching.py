"""Where two sentences' runs part: one's activations put into the other's run, place by place.

(Activation patching: Vig et al. 2020; Meng et al. 2022, section 2.) The target's run is repeated
with one token's vector at one place taken from the source's run, and the difference between two
tokens' logits is read: how far it moves from the target's towards the source's is what that place
carries.

| component    | what is taken from the source                                      |
| ------------ | ------------------------------------------------------------------ |
| layer        | the layer's output                                                 |
| attention    | what the first half adds to what came in                           |
| feed_forward | what the second half adds                                          |
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bert.internals.capture import Cache, edit, resume, run_captured
from bert.packing import PackedBatch
from bert.pretraining import BertForMaskedLM

COMPONENTS = {
    "layer": "layers.{}.output",
    "attention": "layers.{}.attention.output",
    "feed_forward": "layers.{}.feed_forward.output",
}


@dataclass(frozen=True)
class Patch:
    """What one place carries."""

    layer: int
    component: str
    position: int
    change: float
    """The logit difference with the source's vector there, less the target's."""


@dataclass(frozen=True)
class Patching:
    """What each place carries of the difference between two runs."""

    tokens: tuple[int, int]
    """The difference is the first one's logit less the second one's."""
    source: float
    """The logit difference of the source's run."""
    target: float
    """That of the target's."""
    patches: list[Patch]
    """The largest change first, whatever its sign."""
    heads: Float[Tensor, "layers heads"]
    """The change with a head's context taken from the source at all positions at once."""

    def share(self, change: float) -> float:
        """Say what part of the way from the target to the source a change goes."""
        return change / (self.source - self.target)


@torch.no_grad()
def patch(
    model: BertForMaskedLM,
    target: PackedBatch,
    source: PackedBatch,
    row: int,
    tokens: tuple[int, int] | None = None,
    positions: Sequence[int] | None = None,
) -> Patching:
    """Patch every layer, component and position of one sentence's run from another's.

    Takes layers × (3 × positions + heads) passes, each through the layers from its own on.

    Args:
        model: in evaluation mode.
        target: one sequence, on the model's device.
        source: one of as many tokens.
        row: the token whose prediction is read, such as a [MASK] of both.
        tokens: whose logits are compared; None: the source's and the target's likeliest there.
        positions: the tokens to patch; None: all.

    Raises:
        ValueError: not two single sequences of one length, a position or token that isn't there,
            or no tokens where both sentences have the same likeliest one.
    """
    length, positions = _check(target, source, row, positions)
    runs = [_Run(model, batch, row) for batch in (source, target)]
    if tokens is None:
        tokens = runs[0].likeliest(), runs[1].likeliest()
        if tokens[0] == tokens[1]:
            raise ValueError(
                f"tokens: expected two, since both sentences' likeliest at {row} is the same, "
                f"{tokens[0]}; got none"
            )
    for token in tokens:
        if not 0 <= token < model.config.vocab_size:
            raise ValueError(f"tokens: expected 0 to {model.config.vocab_size - 1}, got {token}")
    of_source, of_target = (run.difference(run.last, tokens) for run in runs)

    def change(layer: int, name: str, places: Sequence[int], head: int | None = None) -> float:
        hidden = runs[1].patched(layer, name, _mixer(runs[0].cache[name], places, head))
        return runs[1].difference(hidden, tokens) - of_target

    layers = range(model.config.num_hidden_layers)
    patches = [
        Patch(layer, component, place, change(layer, name.format(layer), [place]))
        for layer in layers
        for component, name in COMPONENTS.items()
        for place in positions
    ]
    heads = [
        [
            change(layer, f"layers.{layer}.attention.context", range(length), head)
            for head in range(model.config.num_attention_heads)
        ]
        for layer in layers
    ]
    patches.sort(key=lambda one: -abs(one.change))
    by_head = torch.tensor(heads, dtype=torch.float64)
    return Patching(tokens, of_source, of_target, patches, by_head)


class _Run:
    """One sentence's run: what is patched from it, or into it."""

    NAMES = ("layers.*.input", "layers.*.attention.context", *(
        name.replace("{}", "*") for name in COMPONENTS.values()
    ))  # fmt: skip

    def __init__(self, model: BertForMaskedLM, batch: PackedBatch, row: int) -> None:
        self.model, self.sequences, self.row = model, batch.sequences, row
        self.cache: Cache = run_captured(model, batch, self.NAMES)
        self.last = self.cache[f"layers.{model.config.num_hidden_layers - 1}.output"]

    def patched(self, layer: int, name: str, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Run from a layer on with one of its tensors changed; return the last hidden state."""
        with edit(self.model, {name: change}):
            hidden = self.cache[f"layers.{layer}.input"]
            return resume(self.model, hidden, self.sequences, layer)

    def logits(self, last: Tensor) -> Tensor:
        word = self.model.bert.embeddings.word.weight
        return self.model.mlm_head(last[self.row : self.row + 1], word)[0].double()

    def difference(self, last: Tensor, tokens: tuple[int, int]) -> float:
        first, second = self.logits(last)[list(tokens)].tolist()
        return first - second

    def likeliest(self) -> int:
        return int(self.logits(self.last).argmax())


def _mixer(source: Tensor, places: Iterable[int], head: int | None) -> Callable[[Tensor], Tensor]:
    """Make an edit that takes some rows, or one head of them, from the source's run."""
    rows = list(places)

    def mix(x: Tensor) -> Tensor:
        if head is None:
            x[rows] = source[rows]
        else:
            x[rows, head] = source[rows, head]
        return x

    return mix


def _check(
    target: PackedBatch, source: PackedBatch, row: int, positions: Sequence[int] | None
) -> tuple[int, Sequence[int]]:
    for name, batch in (("target", target), ("source", source)):
        if len(batch.sequences.lengths) != 1:
            raise ValueError(f"{name}: expected one sequence, got {len(batch.sequences.lengths)}")
    length, other = target.sequences.tokens, source.sequences.tokens
    if length != other:
        raise ValueError(f"source: expected {length} tokens, as many as target, got {other}")
    positions = range(length) if positions is None else positions
    for name, place in [("row", row), *(("positions", place) for place in positions)]:
        if not 0 <= place < length:
            raise ValueError(f"{name}: expected 0 to {length - 1}, got {place}")
    return length, positions
