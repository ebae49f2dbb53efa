"""What pretraining minimises, and how it is judged: masked words and next sentences.

The loss of a step is the mean over its masked tokens plus the mean over its pairs (Devlin et al.
2018, A.2). Judged on held-out text beside two baselines that know nothing of context: the unigram
loss, which is that of always saying how frequent each token is, and the majority of the
next-sentence labels. A run whose loss stays near the unigram loss hasn't begun to learn.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bert.pretraining import BertForPreTraining
from bert.training.objective import Objective
from pretrain.batches import PretrainingBatch

# Rows of logits that an evaluation holds at a time.
ROWS = 512


class PretrainingObjective(Objective[PretrainingBatch]):
    """The model with both heads, and the sums of its two losses."""

    def __init__(self, model: BertForPreTraining) -> None:
        super().__init__()
        self.model = model

    def counts(self, batch: PretrainingBatch) -> dict[str, int]:
        """Count the masked tokens and the pairs."""
        return {"mlm": len(batch.masked_labels), "nsp": len(batch.next_sentence_label)}

    def forward(
        self, batch: PretrainingBatch, dropout_seed: Int64[Tensor, ""]
    ) -> dict[str, Float[Tensor, ""]]:
        """Sum each loss over the batch."""
        return self.model.losses(
            batch.packed,
            batch.masked_positions,
            batch.masked_labels,
            batch.next_sentence_label,
            dropout_seed,
        )


def unigram_log_probabilities(counts: Int64[Tensor, " vocab"]) -> Float[Tensor, " vocab"]:
    """Turn how often each token occurs in the training text into log probabilities.

    Each count is raised by one, so that no token is impossible.
    """
    raised = counts.double() + 1
    return (raised / raised.sum()).log()


def evaluate(
    model: BertForPreTraining,
    batches: Iterable[PretrainingBatch],
    unigram: Float[Tensor, " vocab"],
) -> dict[str, float]:
    """Judge a model in evaluation mode on held-out batches.

    Args:
        model: the model.
        batches: at least one batch with a masked token.
        unigram: see `unigram_log_probabilities`.

    Returns:
        `mlm_loss` and `nsp_loss` in nats, `mlm_accuracy` and `nsp_accuracy`; beside them
        `unigram_loss`, on the same masked tokens, in nats, and `nsp_majority`.
    """
    device = model.bert.embeddings.word.weight.device
    totals = {"mlm_loss": 0.0, "mlm_right": 0.0, "nsp_loss": 0.0, "nsp_right": 0.0}
    labels, next_labels = [], []
    for batch in batches:
        batch = batch.to(device)
        encoded = model.bert.encode(batch.packed)
        assert encoded.pooled is not None
        masked = encoded.last_hidden_state.index_select(0, batch.masked_positions)
        for rows in torch.arange(len(masked), device=device).split(ROWS):
            logits = model.mlm_head(masked[rows], model.bert.embeddings.word.weight)
            _add(totals, "mlm", logits, batch.masked_labels[rows])
        _add(totals, "nsp", model.nsp_head(encoded.pooled), batch.next_sentence_label)
        labels.append(batch.masked_labels.cpu())
        next_labels.append(batch.next_sentence_label.cpu())
    tokens, pairs = torch.cat(labels), torch.cat(next_labels)
    is_random = pairs.double().mean().item()
    return {
        "mlm_loss": totals["mlm_loss"] / len(tokens),
        "mlm_accuracy": totals["mlm_right"] / len(tokens),
        "unigram_loss": -unigram[tokens].mean().item(),
        "nsp_loss": totals["nsp_loss"] / len(pairs),
        "nsp_accuracy": totals["nsp_right"] / len(pairs),
        "nsp_majority": max(is_random, 1 - is_random),
    }


def _add(totals: dict[str, float], task: str, logits: Tensor, labels: Tensor) -> None:
    """Add a batch's loss and right answers."""
    loss = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
    totals[f"{task}_loss"] += loss.item()
    totals[f"{task}_right"] += (logits.argmax(-1) == labels).sum().item()
