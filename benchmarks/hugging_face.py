"""Hugging Face's side of a fine-tuning: their model in a plain loop, on the batches of ours.

A packed batch is padded to its longest sequence. The losses are those that their models compute
from labels, but for question answering: their softmax goes over the padding too, so that a loss
would depend on which windows share a batch, and here the padding is masked out of it.
"""

import tempfile
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from bert.packing import PackedBatch
from bert.saving import save_pretrained
from bert.training.schedule import learning_rate, progress_at
from bert.training.span import Place
from finetune.entities.rows import UNLABELLED
from finetune.prepare import Prepared


class Theirs(nn.Module):
    """Their model, with the weights of one of ours; `Task.evaluate` takes it for one.

    Args:
        model: ours.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        kind = getattr(transformers, type(model).__name__)
        with tempfile.TemporaryDirectory() as directory:
            save_pretrained(model, directory)
            self.theirs = kind.from_pretrained(directory, dtype=torch.float32)
        self.config = model.config
        self.kind = kind.__name__
        is_span = self.kind == "BertForQuestionAnswering"
        self.classifier = self.theirs.qa_outputs if is_span else self.theirs.classifier

    def logits(self, packed: PackedBatch) -> Tensor:
        """Return what our model's `logits` would: of each sequence, or of each token."""
        inputs, is_token = pad(packed)
        if self.kind == "BertForMultipleChoice":  # each sequence as a question of one choice
            return self.theirs(**{name: value[:, None] for name, value in inputs.items()}).logits
        if self.kind == "BertForQuestionAnswering":
            output = self.theirs(**inputs)
            return torch.stack([output.start_logits, output.end_logits], -1)[is_token]
        logits = self.theirs(**inputs).logits
        return logits[is_token] if self.kind == "BertForTokenClassification" else logits

    def loss(self, batch: Any) -> Tensor:
        """Return the mean loss of a micro-batch of the task's."""
        inputs, is_token = pad(batch.packed)
        if self.kind == "BertForQuestionAnswering":
            output = self.theirs(**inputs)
            sides = (output.start_logits, output.end_logits)
            losses = [
                F.cross_entropy(logits.masked_fill(~is_token, -torch.inf), batch.targets[:, side])
                for side, logits in enumerate(sides)
            ]
            return (losses[0] + losses[1]) / 2
        labels = batch.labels
        if self.kind == "BertForMultipleChoice":  # theirs wants the same number of all questions
            shape = (len(batch.sizes), batch.sizes[0], -1)
            inputs = {name: value.view(shape) for name, value in inputs.items()}
        elif self.kind == "BertForTokenClassification":
            padded = torch.full(is_token.shape, UNLABELLED)
            labels = padded.masked_scatter(is_token, labels)
        return self.theirs(**inputs, labels=labels).loss


def pad(packed: PackedBatch) -> tuple[dict[str, Tensor], Tensor]:
    """Return their models' arguments, [seqs, longest], and where in them the tokens are."""
    lengths = torch.tensor(packed.sequences.lengths)
    is_token = torch.arange(int(lengths.max())) < lengths[:, None]
    zeros = torch.zeros(is_token.shape, dtype=torch.int64)
    return {
        "input_ids": zeros.masked_scatter(is_token, packed.input_ids),
        "token_type_ids": zeros.masked_scatter(is_token, packed.token_type_ids),
        "attention_mask": is_token.long(),
    }, is_token


def train(model: Theirs, prepared: Prepared) -> Iterator[float]:
    """Train with AdamW, as `prepared` says; yield each step's loss."""
    config = prepared.config.training
    decayed = [p for p in model.theirs.parameters() if p.ndim >= 2]
    others = [p for p in model.theirs.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        betas=config.betas,
        eps=config.eps,
        fused=True,  # as ours is
    )
    total = config.total()
    assert total.steps is not None and config.accumulation == 1
    model.train()
    for step in range(total.steps):
        rate = learning_rate(config, progress_at(total, Place(step, 0, 0.0), 0.0))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = model.loss(prepared.batches[step])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.theirs.parameters(), config.max_grad_norm or torch.inf)
        optimizer.step()
        yield loss.item()
