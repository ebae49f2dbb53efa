"""Look at a model's tensors, or change them, by the names of hooks.py, on any backend.

    with capture(model, "layers.*.attention.probabilities") as cache:
        model(input_ids)
    cache["layers.3.attention.probabilities"], cache.made_by["layers.3.attention.probabilities"]

    with edit(model, {"layers.3.attention.context": without_head_5}), capture(model) as cache:
        model(input_ids)

Capturing changes nothing that the model computes, to the bit: how, says watching.py. The tensors
are those of the run, packed and with their gradients' graph; those that a fused kernel never makes
(attention's scores and probabilities, sums with a bias, the embeddings' parts) are computed beside
by REFERENCE's formulas from what the kernel was given, and `made_by` says so.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from bert.architectures import Model
from bert.internals.hooks import expand, hook, hook_names
from bert.internals.watching import Edit, Taps, install, trunk_of, watched
from bert.model import Bert
from bert.packing import PackedBatch
from bert.pretraining import BertForMaskedLM, BertForPreTraining
from kernels import PackedSequences

_T = TypeVar("_T")


@dataclass(eq=False)
class Cache(Mapping[str, Tensor]):
    """The tensors of the last forward pass, by their names."""

    names: frozenset[str]
    """What was asked for."""
    made_by: dict[str, str] = field(default_factory=dict)
    """Who made each: the model's backend (TORCH, TRITON), REFERENCE beside it, or an edit."""
    _tensors: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _sequences: PackedSequences | None = field(default=None, repr=False)

    def __getitem__(self, name: str) -> Tensor:
        if name in self._tensors:
            return self._tensors[name]
        if name in self.names:
            raise KeyError(f"{name}: no forward pass came by there since the capture began")
        raise KeyError(f"{name}: not among what was captured: {', '.join(sorted(self.names))}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def sequences(self) -> PackedSequences:
        """Where each sequence of the packed batch lies."""
        if self._sequences is None:
            raise ValueError("cache: expected a forward pass since the capture began, got none")
        return self._sequences

    def of_sequence(self, name: str, index: int = 0) -> Tensor:
        """Take one sequence's part of a tensor, without padding.

        Returns:
            [length, …] of packed tokens, [heads, length, length] of attention, [features] of
            what a sequence has one of.

        Raises:
            ValueError: the head's rows are not the batch's tokens, but some of them.
        """
        tensor, axes = self[name], hook(name).axes
        offsets, length = self.sequences.offsets, self.sequences.lengths[index]
        if axes.endswith("max_seqlen"):
            return tensor[index, :, :length, :length]
        if len(tensor) == len(self.sequences.lengths) and axes.startswith("seqs"):
            return tensor[index]
        if len(tensor) != self.sequences.tokens:
            raise ValueError(
                f"{name}: expected the batch's {self.sequences.tokens} tokens as rows, "
                f"got {len(tensor)}"
            )
        return tensor[offsets[index] : offsets[index] + length]

    def begin(self, sequences: PackedSequences) -> None:
        """Forget the forward pass before."""
        self._tensors.clear()
        self.made_by.clear()
        self._sequences = sequences

    def record(self, name: str, tensor: Tensor, made_by: str) -> None:
        """Keep a tensor."""
        self._tensors[name], self.made_by[name] = tensor, made_by


@contextmanager
def capture(model: Model, names: str | Iterable[str] | None = None) -> Iterator[Cache]:
    """Keep the named tensors of each forward pass; the last one's stay.

    Args:
        model: in evaluation mode. Edits that are open change what is captured.
        names: names or patterns of hooks.py; None: all that the model has.

    Raises:
        ValueError: a name that the model doesn't have, or a model that can't be looked into now.
    """
    cache = Cache(frozenset(expand(names, hook_names(model))))
    with _watching(model) as taps, _member(taps.recorders, cache):
        yield cache


@contextmanager
def edit(model: Model, edits: Mapping[str, Edit]) -> Iterator[None]:
    """Let functions change tensors on their way through the model.

    A function gets a copy of the tensor and returns one of its shape and dtype. One that returns
    what it was given, unchanged, changes nothing, to the bit. A changed tensor of attention's
    scores or probabilities is followed by REFERENCE's formula, since no fused kernel takes one.
    An edit of "layers.*.input" changes both what attention takes and what is added to it.

    Args:
        model: in evaluation mode.
        edits: functions by names or patterns of hooks.py. Of two for one place the later rules;
            of two contexts both act, the outer first.

    Raises:
        ValueError: as `capture`; in the forward pass, where a function returns something else.
    """
    known = hook_names(model)
    by_name = {name: edits[pattern] for pattern in edits for name in expand(pattern, known)}
    with _watching(model) as taps, _member(taps.edits, by_name):
        yield


@contextmanager
def _watching(model: Model) -> Iterator[Taps]:
    """Watch the model, with who does so already if anybody does."""
    if (taps := watched(model)) is not None:
        if model is not taps.model and model is not trunk_of(model):
            raise ValueError(
                "model: expected the encoder that is looked into already, got the model around "
                "it; let the outer capture or edit have the model"
            )
        yield taps
        return
    if model.training:
        raise ValueError("model: expected evaluation mode (model.eval()), got training mode")
    if trunk_of(model).gradient_checkpointing:
        raise ValueError("model: expected gradient_checkpointing off, got on")
    taps = install(model)
    try:
        yield taps
    finally:
        for undo in reversed(taps.undo):
            undo()


@contextmanager
def _member(group: list[_T], member: _T) -> Iterator[None]:
    group.append(member)
    try:
        yield
    finally:
        group[:] = [other for other in group if other is not member]


def forward(model: Model, batch: PackedBatch) -> Tensor:
    """Run a model with its heads on a packed batch, in evaluation mode.

    Returns:
        A masked-word model's logits, [tokens, vocab]; a fine-tuned one's, [seqs or tokens,
        labels]; the last hidden state of one without a head, [tokens, hidden].
    """
    if isinstance(model, Bert):
        return model.encode(batch).last_hidden_state
    if not isinstance(model, BertForMaskedLM):
        return model.logits(batch)
    encoded = model.bert.encode(batch)
    if isinstance(model, BertForPreTraining):
        model.nsp_head(encoded.pooled)
    return model.mlm_head(encoded.last_hidden_state, model.bert.embeddings.word.weight)


@torch.no_grad()
def run_captured(
    model: Model, batch: PackedBatch, names: str | Iterable[str] | None = None
) -> Cache:
    """Run a model once, without gradients, and keep the named tensors."""
    with capture(model, names) as cache:
        forward(model, batch)
    return cache


def resume(model: Model, hidden: Tensor, sequences: PackedSequences, layer: int) -> Tensor:
    """Run the layers from number `layer` on, in evaluation mode; return the last hidden state.

    With a hidden state of another run that is what this run would be, to the bit.
    """
    for part in list(trunk_of(model).encoder.layers)[layer:]:
        hidden = part(hidden, sequences, None)
    return hidden


def without_heads(heads: Iterable[int]) -> Callable[[Tensor], Tensor]:
    """Make an edit for "layers.*.attention.context" that zeroes some heads, counted from 0."""
    heads = list(heads)

    def zeroed(context: Tensor) -> Tensor:
        context[:, heads] = 0
        return context

    return zeroed
