"""Run a model of ours and Hugging Face's on one batch, and compare everything that both compute.

| theirs                         | ours                                         |
| ------------------------------ | -------------------------------------------- |
| embeddings                     | Embeddings' output                           |
| layer.*.attention.self         | what SelfAttention's output projection takes |
| layer.*.attention.probabilities| `Bert.attentions`                            |
| layer.*.attention.output       | SelfAttention's output                       |
| layer.*.intermediate           | what FeedForward's down projection takes     |
| layer.*.output                 | FeedForward's output                         |
| pooler, cls, classifier …      | what the model's own methods return          |

Padded tensors of theirs are compared at the tokens; at the padding they hold what nobody reads.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from bert.architectures import Model
from bert.finetuning import BertForMultipleChoice, BertForQuestionAnswering
from bert.model import Bert, Encoded
from bert.packing import PackedBatch
from bert.parity_table import Row
from bert.pretraining import BertForMaskedLM, BertForPreTraining
from bert.weight_names import to_theirs

# Absolute, for activations; of the largest value, for gradients.
ACTIVATION = {torch.float32: 1e-5, torch.float64: 1e-10}
GRADIENT = {torch.float32: 1e-4, torch.float64: 1e-9}
# Activations of a hundred can't agree to 1e-5 in float32: their last place is worth as much.
ROUNDINGS = 16

# Within a layer, theirs: the module of ours, and which end of it.
_POINTS = {
    "attention.self": ("attention.output", "input"),
    "attention.output": ("attention", "output"),
    "intermediate": ("feed_forward.down", "input"),
    "output": ("feed_forward", "output"),
}


@dataclass(frozen=True)
class PaddedBatch:
    """What both models are given."""

    input_ids: Int64[Tensor, "batch seq"]
    attention_mask: Int64[Tensor, "batch seq"] | None
    token_type_ids: Int64[Tensor, "batch seq"]
    labels: Int64[Tensor, "batch seq"]
    """Masked-word labels: −100 where there is nothing to predict."""
    next_sentence_label: Int64[Tensor, " batch"]

    @property
    def inputs(self) -> dict[str, Any]:
        """The arguments of both models' forward."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "token_type_ids": self.token_type_ids,
        }


def compare_models(
    ours: Model, theirs: Any, batch: PaddedBatch, gradients: bool = False
) -> list[Row]:
    """Compare two models that have the same weights: activations, then gradients if asked for."""
    trunk = ours if isinstance(ours, Bert) else ours.bert
    dtype = trunk.embeddings.word.weight.dtype
    packed, kept = trunk.pack(batch.input_ids, batch.attention_mask, batch.token_type_ids)
    with ExitStack() as hooks, torch.no_grad():
        our_values = _record_ours(trunk, hooks)
        encoded = trunk.encode(packed)
        attentions = trunk.attentions(packed, kept, batch.input_ids.shape[1], encoded)
    with torch.no_grad():
        for number, probabilities in enumerate(attentions):
            our_values[f"encoder.layer.{number}.attention.probabilities"] = probabilities
        our_values |= _head_outputs(ours, trunk, packed, encoded)
    with ExitStack() as hooks, torch.no_grad():
        their_values = _record_theirs(theirs, our_values, hooks)
        theirs(**_their_inputs(ours, batch))
    is_token = torch.zeros(batch.input_ids.numel(), dtype=torch.bool).index_fill(0, kept, True)
    is_token = is_token.view(batch.input_ids.shape)
    rows = []
    for name in their_values:
        value, other = our_values[name], their_values[name]
        if name.endswith("probabilities"):
            other = other * is_token[:, None, :, None]
        elif other.ndim == 3:
            other = other[is_token]
        rows.append(_row(name, value, other, dtype))
    return rows + _losses(ours, theirs, trunk, batch, packed, is_token, gradients)


def _record_ours(trunk: Bert, hooks: ExitStack) -> dict[str, Tensor]:
    """Keep, from the next forward pass on, what the table at the top names."""
    values: dict[str, Tensor] = {}

    def keep(module: nn.Module, end: str, name: str) -> None:
        def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values[name] = inputs[0]

        def after(_: nn.Module, __: Any, output: Tensor) -> None:
            values[name] = output

        handle = (
            module.register_forward_pre_hook(before)
            if end == "input"
            else module.register_forward_hook(after)
        )
        hooks.callback(handle.remove)

    keep(trunk.embeddings, "output", "embeddings")
    for number, layer in enumerate(trunk.encoder.layers):
        for point, (module, end) in _POINTS.items():
            keep(layer.get_submodule(module), end, f"encoder.layer.{number}.{point}")
    return values


def _head_outputs(
    ours: Model, trunk: Bert, packed: PackedBatch, encoded: Encoded
) -> dict[str, Tensor]:
    """Compute what stands on the encoder, under the names of the modules of theirs."""
    values: dict[str, Tensor] = {}
    if encoded.pooled is not None:
        values["pooler"] = encoded.pooled
    if isinstance(ours, BertForMaskedLM):
        hidden, head = encoded.last_hidden_state, ours.mlm_head
        values["cls.predictions.transform"] = head.transform(hidden)
        values["cls.predictions"] = head(hidden, trunk.embeddings.word.weight)
        if isinstance(ours, BertForPreTraining):
            values["cls.seq_relationship"] = ours.nsp_head(encoded.pooled)
    elif not isinstance(ours, Bert):
        head = "qa_outputs" if isinstance(ours, BertForQuestionAnswering) else "classifier"
        values[head] = ours.logits(packed)
    return values


def _their_inputs(ours: Model, batch: PaddedBatch) -> dict[str, Any]:
    """Give the arguments of their forward: for multiple choice, the choices of one question."""
    if not isinstance(ours, BertForMultipleChoice):
        return batch.inputs
    return {name: x if x is None else x[None] for name, x in batch.inputs.items()}


def _record_theirs(theirs: nn.Module, names: Iterable[str], hooks: ExitStack) -> dict[str, Tensor]:
    """Keep, from the next forward pass on, what these modules of theirs return, in order."""
    values: dict[str, Tensor] = {}

    def keep(path: str, name: str, index: int) -> None:
        def after(_: nn.Module, __: Any, output: Any) -> None:
            values[name] = output[index] if isinstance(output, tuple) else output

        hooks.callback(theirs.get_submodule(path).register_forward_hook(after).remove)

    for name in names:
        in_trunk = name.startswith(("embeddings", "encoder", "pooler"))
        path = f"bert.{name}" if in_trunk and hasattr(theirs, "bert") else name
        if name.endswith("attention.probabilities"):
            keep(path.replace("probabilities", "self"), name, 1)
        else:
            keep(path, name, 0)
    return values


def _losses(
    ours: Model,
    theirs: Any,
    trunk: Bert,
    batch: PaddedBatch,
    packed: PackedBatch,
    is_token: Tensor,
    gradients: bool,
) -> list[Row]:
    """Compare the pretraining loss, and each parameter's gradient.

    A model without a loss of its own gets one: its outputs, weighed at random.
    """
    dtype = trunk.embeddings.word.weight.dtype
    if isinstance(ours, BertForMaskedLM):
        labels = {"labels": batch.labels}
        if isinstance(ours, BertForPreTraining):
            labels["next_sentence_label"] = batch.next_sentence_label
        our_loss = ours(**batch.inputs, **labels).loss
        their_loss = theirs(**batch.inputs, **labels).loss
        rows = [_row("loss", our_loss.detach(), their_loss.detach(), dtype)]
    elif gradients:
        our_outputs, their_outputs = _outputs(ours, theirs, batch, packed, is_token)
        our_loss, their_loss = (
            sum((_weigh(value) for value in outputs), start=torch.zeros((), dtype=dtype))
            for outputs in (our_outputs, their_outputs)
        )
        rows = []
    else:
        return []
    if not gradients:
        return rows
    for model, loss in ((ours, our_loss), (theirs, their_loss)):
        model.zero_grad()
        loss.backward()
    return rows + _gradient_rows(ours, theirs, dtype)


def _outputs(
    ours: Model, theirs: Any, batch: PaddedBatch, packed: PackedBatch, is_token: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Run both models up to their outputs, without the padding."""
    output = theirs(**_their_inputs(ours, batch))
    if isinstance(ours, Bert):
        encoded = ours.encode(packed)
        mine = [encoded.last_hidden_state, encoded.pooled]
        other = [output.last_hidden_state, output.pooler_output]
    elif isinstance(ours, BertForQuestionAnswering):
        mine = list(ours.logits(packed).unbind(-1))
        other = [output.start_logits, output.end_logits]
    else:
        assert not isinstance(ours, BertForMaskedLM)
        mine, other = [ours.logits(packed)], [output.logits]
        if isinstance(ours, BertForMultipleChoice):
            other = [output.logits.T]
    return (
        [value for value in mine if value is not None],
        [
            value[is_token] if value.shape[:2] == is_token.shape else value
            for value in other
            if value is not None
        ],
    )


def _weigh(value: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(value.shape[0])
    return (value * torch.randn(value.shape, generator=generator, dtype=value.dtype)).sum()


def _gradient_rows(ours: Model, theirs: nn.Module, dtype: torch.dtype) -> list[Row]:
    """Compare the gradients of all parameters, under their names."""

    def gradient(parameter: Tensor) -> Tensor:
        return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad

    their_gradients = {name: gradient(p) for name, p in theirs.named_parameters()}
    if (untied := their_gradients.pop("cls.predictions.decoder.bias", None)) is not None:
        # Where the matrices are untied this bias is the one that is added.
        their_gradients["cls.predictions.bias"] = untied
    rows, query_bias = [], torch.zeros(1)
    for name, parameter in ours.named_parameters():
        names = to_theirs(name)
        for part, value in zip(names, gradient(parameter).chunk(len(names)), strict=True):
            other = their_gradients.pop(part)
            # A key's bias moves all scores of a row alike, which softmax doesn't see: its
            # gradient is rounding alone, and measured by the query's.
            measure = query_bias if part.endswith(".key.bias") else other
            query_bias = other if part.endswith(".query.bias") else query_bias
            largest = measure.abs().max().item()
            difference = (value - other).abs().max().item()
            tolerance = GRADIENT[dtype] * largest
            shape = tuple(value.shape)
            rows.append(Row(f"grad {part}", shape, difference, largest, tolerance))
    assert not their_gradients, f"parameters of theirs alone: {sorted(their_gradients)}"
    return rows


def _row(name: str, ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> Row:
    largest = theirs.abs().max().item()
    tolerance = max(ACTIVATION[dtype], ROUNDINGS * torch.finfo(dtype).eps * largest)
    difference = (ours - theirs).abs().max().item()
    return Row(name, tuple(ours.shape), difference, largest, tolerance)
