"""How capture and edits get at a model's tensors: its kernel sets are values, so wrapped ones fit.

Each module of the model holds the `KernelSet` it runs on. `install` puts in its place one whose
operations show what they are given and what they return, and otherwise call the very operations
that they wrap; what lies between modules comes through PyTorch's own hooks. The model's code knows
nothing of it, and its results are those of its backend, to the bit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from operator import is_not
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bert.architectures import Model
from bert.encoder import Layer
from bert.internals.hooks import HEADS
from bert.model import Bert
from bert.packing import PackedBatch
from kernels import KernelSet, PackedSequences
from kernels.kernel_set import EmbeddingIndices, EmbeddingTables, GeluForm
from kernels.reference import attention_scores, weigh

Edit = Callable[[Tensor], Tensor]


@runtime_checkable
class Recorder(Protocol):
    """What wants to see tensors."""

    names: frozenset[str]

    def begin(self, sequences: PackedSequences) -> None:
        """Hear that a forward pass begins."""
        ...

    def record(self, name: str, tensor: Tensor, made_by: str) -> None:
        """Take a tensor."""
        ...


@dataclass(eq=False)
class Taps:
    """What watches a model at present: edits, in the order in which they came, then recorders."""

    model: Model
    edits: list[Mapping[str, Edit]] = field(default_factory=list)
    recorders: list[Recorder] = field(default_factory=list)
    undo: list[Callable[[], Any]] = field(default_factory=list)

    def want(self, *names: str) -> bool:
        """Whether anybody edits or records one of these."""
        watched: list[Any] = [*self.edits, *(recorder.names for recorder in self.recorders)]
        return any(name in some for name in names for some in watched)

    def show(self, name: str, tensor: Tensor, is_beside: bool = False) -> Tensor:
        """Let the edits change a tensor, show it to the recorders, and return it."""
        made_by = "REFERENCE" if is_beside else trunk_of(self.model).kernels.name
        for edits in self.edits:
            if name in edits and (changed := _edited(name, tensor, edits[name])) is not tensor:
                tensor, made_by = changed, "edit"
        for recorder in self.recorders:
            if name in recorder.names:
                recorder.record(name, tensor, made_by)
        return tensor


@dataclass(frozen=True)
class WatchedKernels(KernelSet):
    """The trunk's own kernel set while it is watched, and who watches."""

    taps: Taps


def trunk_of(model: Model) -> Bert:
    """Return the encoder of a model."""
    return model if isinstance(model, Bert) else model.bert


def watched(model: Model) -> Taps | None:
    """Return who watches a model; None where nobody does."""
    kernels = trunk_of(model).kernels
    return kernels.taps if isinstance(kernels, WatchedKernels) else None


def install(model: Model) -> Taps:
    """Wrap the kernel sets of a model; `taps.undo` has what takes the wrapping off again."""
    trunk = trunk_of(model)
    taps = Taps(model)
    _swap(trunk, WatchedKernels(**_operations(trunk.kernels), taps=taps), taps)
    _swap(trunk.embeddings, _watch_embeddings(trunk.embeddings.kernels, taps), taps)
    for index, layer in enumerate(trunk.encoder.layers):
        assert isinstance(layer, Layer)
        name, first, second = f"layers.{index}", layer.attention, layer.feed_forward
        _swap(first, _watch_attention(first.kernels, taps, f"{name}.attention"), taps)
        _swap(second, _watch_feed_forward(second.kernels, taps, name), taps)
        _show_input(layer, f"{name}.input", taps)
    head = getattr(model, "mlm_head", None)
    if head is not None:
        _swap(head, _watch_mlm_head(head.kernels, taps), taps)
        _show_input(head.dense, "mlm_head.input", taps)
    for module, name in _ends(model, trunk):
        _show_output(module, name, taps)
    _hear_beginnings(trunk.embeddings, taps)
    return taps


def _ends(model: Model, trunk: Bert) -> list[tuple[nn.Module, str]]:
    """List the modules that end a model, and the names of what they return."""
    ends = [(getattr(model, head, None), f"{head}.logits") for head in HEADS]
    found = [(trunk.pooler, "pooler.output"), *ends]
    return [(module, name) for module, name in found if module is not None]


def _operations(kernels: KernelSet) -> dict[str, Any]:
    return {part.name: getattr(kernels, part.name) for part in fields(KernelSet)}


def _swap(module: Any, kernels: KernelSet, taps: Taps) -> None:
    """Let a module run on other kernels until it is undone."""
    before, module.kernels = module.kernels, kernels
    taps.undo.append(lambda: setattr(module, "kernels", before))


def _show_input(module: nn.Module, name: str, taps: Taps) -> None:
    def before(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return taps.show(name, inputs[0]), *inputs[1:]

    taps.undo.append(module.register_forward_pre_hook(before).remove)


def _show_output(module: nn.Module, name: str, taps: Taps) -> None:
    def after(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        return taps.show(name, output)

    taps.undo.append(module.register_forward_hook(after).remove)


def _hear_beginnings(embeddings: nn.Module, taps: Taps) -> None:
    """Tell the recorders when a forward pass begins: what it embeds says how long texts are."""

    def before(_: nn.Module, inputs: tuple[PackedBatch, Any]) -> None:
        for recorder in taps.recorders:
            recorder.begin(inputs[0].sequences)

    taps.undo.append(embeddings.register_forward_pre_hook(before).remove)


# --- the operations, wrapped -----------------------------------------------------------------


def _watch_embeddings(kernels: KernelSet, taps: Taps) -> KernelSet:
    parts = tuple(f"embeddings.{part}" for part in EmbeddingTables._fields)
    whole = "embeddings.residual"

    def embedding_layer_norm(
        indices: EmbeddingIndices,
        tables: EmbeddingTables,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        padding_idx: int = -1,
        dropout: Any = None,
    ) -> Tensor:
        if taps.want(*parts, whole):
            rows = [table[index] for table, index in zip(tables, indices, strict=True)]
            seen = [taps.show(name, row, True) for name, row in zip(parts, rows, strict=True)]
            total = seen[0] + seen[1] + seen[2]
            changed = taps.show(whole, total, True)
            if changed is not total or any(map(is_not, seen, rows)):
                return taps.show(
                    "embeddings.output", kernels.layer_norm(changed, weight, bias, eps)
                )
        output = kernels.embedding_layer_norm(
            indices, tables, weight, bias, eps, padding_idx, dropout
        )
        return taps.show("embeddings.output", output)

    return replace(kernels, embedding_layer_norm=embedding_layer_norm)


def _watch_attention(kernels: KernelSet, taps: Taps, name: str) -> KernelSet:
    scores_name, probabilities_name = f"{name}.scores", f"{name}.probabilities"

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sequences: PackedSequences,
        dropout: Any = None,
    ) -> Tensor:
        query = taps.show(f"{name}.query", query)
        key = taps.show(f"{name}.key", key)
        value = taps.show(f"{name}.value", value)
        if sequences.lengths and taps.want(scores_name, probabilities_name):
            scores = _padded_scores(query, key, sequences)
            seen_scores = taps.show(scores_name, scores, True)
            probabilities = _softmax(seen_scores, sequences).to(query.dtype)
            seen = taps.show(probabilities_name, probabilities, True)
            if seen is not probabilities or seen_scores is not scores:
                return taps.show(f"{name}.context", _weigh(seen, value, sequences), True)
        context = kernels.attention(query, key, value, sequences, dropout)
        return taps.show(f"{name}.context", context)

    watched = replace(kernels, attention=attention)
    return _watch_add_layer_norm(watched, taps, name, f"{name}.normalised")


def _watch_feed_forward(kernels: KernelSet, taps: Taps, layer: str) -> KernelSet:
    name = f"{layer}.feed_forward"
    return _watch_add_layer_norm(
        _watch_bias_gelu(kernels, taps, name), taps, name, f"{layer}.output"
    )


def _watch_mlm_head(kernels: KernelSet, taps: Taps) -> KernelSet:
    def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return taps.show("mlm_head.normalised", kernels.layer_norm(x, weight, bias, eps))

    return _watch_bias_gelu(replace(kernels, layer_norm=layer_norm), taps, "mlm_head")


def _watch_bias_gelu(kernels: KernelSet, taps: Taps, name: str) -> KernelSet:
    def bias_gelu(x: Tensor, bias: Tensor, form: GeluForm = "erf") -> Tensor:
        x, bias = _show_sum(taps, f"{name}.pre_activation", x, bias)
        return taps.show(f"{name}.post_activation", kernels.bias_gelu(x, bias, form))

    return replace(kernels, bias_gelu=bias_gelu)


def _watch_add_layer_norm(
    kernels: KernelSet, taps: Taps, name: str, normalised_name: str
) -> KernelSet:
    def add_layer_norm(
        x: Tensor,
        x_bias: Tensor,
        residual: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        dropout: Any = None,
    ) -> tuple[Tensor, Tensor]:
        x, x_bias = _show_sum(taps, f"{name}.output", x, x_bias)
        normalised, total = kernels.add_layer_norm(x, x_bias, residual, weight, bias, eps, dropout)
        seen = taps.show(f"{name}.residual", total)
        if seen is not total:
            normalised = kernels.layer_norm(seen, weight, bias, eps)
        return taps.show(normalised_name, normalised), seen

    return replace(kernels, add_layer_norm=add_layer_norm)


def _show_sum(taps: Taps, name: str, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Show x + bias, which the kernel adds up by itself; an edited sum has no bias any more."""
    if not taps.want(name):
        return x, bias
    total = (x + bias).to(x.dtype)
    seen = taps.show(name, total, True)
    return (x, bias) if seen is total else (seen, torch.zeros_like(bias))


# --- what a fused attention never makes ------------------------------------------------------


def _rows(sequences: PackedSequences) -> list[slice]:
    return [slice(*ends) for ends in zip(sequences.offsets, sequences.offsets[1:], strict=False)]


def _squares(padded: Tensor, sequences: PackedSequences) -> list[Tensor]:
    """Take each sequence's [heads, length, length]."""
    return [padded[i, :, :n, :n] for i, n in enumerate(sequences.lengths)]


def _pad(squares: list[Tensor], sequences: PackedSequences) -> Tensor:
    """Put them into one tensor, with zeros past a sequence's end."""
    longest = sequences.max_seqlen
    margins = [longest - length for length in sequences.lengths]
    return torch.stack(
        [F.pad(square, (0, m, 0, m)) for square, m in zip(squares, margins, strict=True)]
    )


def _padded_scores(query: Tensor, key: Tensor, sequences: PackedSequences) -> Tensor:
    rows = _rows(sequences)
    return _pad([attention_scores(query[part], key[part]) for part in rows], sequences)


def _softmax(scores: Tensor, sequences: PackedSequences) -> Tensor:
    return _pad([square.softmax(-1) for square in _squares(scores, sequences)], sequences)


def _weigh(probabilities: Tensor, value: Tensor, sequences: PackedSequences) -> Tensor:
    parts = zip(_squares(probabilities, sequences), _rows(sequences), strict=True)
    return torch.cat([weigh(square, value[part]) for square, part in parts])


def _edited(name: str, before: Tensor, edit: Edit) -> Tensor:
    """Apply an edit; return the very tensor where it returns what it was given, unchanged."""
    given = before.clone()  # one that writes in place must not write into the model's tensors
    after = edit(given)
    if after is given and torch.equal(given, before):
        return before
    wanted = f"a tensor of shape {list(before.shape)} and {before.dtype}"
    if not isinstance(after, Tensor):
        raise ValueError(f"{name}: expected from the edit {wanted}, got {type(after).__name__}")
    if after.shape != before.shape or after.dtype != before.dtype:
        raise ValueError(
            f"{name}: expected from the edit {wanted}, "
            f"got shape {list(after.shape)} and {after.dtype}"
        )
    return after
