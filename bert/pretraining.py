"""The encoder with its pretraining heads: masked words, and next sentences."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from bert.config import BertConfig
from bert.heads import MaskedLMHead, NextSentenceHead
from bert.model import Bert, init_weights
from bert.packing import PackedBatch, unpack
from kernels import KernelSet


@dataclass(frozen=True)
class PreTrainingOutput:
    """What the pretraining models return at the door."""

    loss: Float[Tensor, ""] | None
    prediction_logits: Float[Tensor, "batch seq vocab"] | None
    """None where labels were given: then only the masked positions were computed."""
    seq_relationship_logits: Float[Tensor, "batch 2"] | None = None


class BertForMaskedLM(nn.Module):
    """The encoder with the masked-word head; no pooler."""

    def __init__(
        self, config: BertConfig, kernels: KernelSet | None = None, pooler: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.bert = Bert(config, kernels, pooler)
        self.mlm_head = MaskedLMHead(config, self.bert.kernels)
        init_weights(self.mlm_head, config)

    def forward(
        self,
        input_ids: Int64[Tensor, "batch seq"],
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Int64[Tensor, "batch seq"] | None = None,
    ) -> PreTrainingOutput:
        """Return every token's logits, or the mean loss over the labels that aren't −100."""
        batch, kept = self.bert.pack(input_ids, attention_mask, token_type_ids)
        hidden = self.bert.encode(batch).last_hidden_state
        if labels is None:
            logits = self.mlm_head(hidden, self.bert.embeddings.word.weight)
            return PreTrainingOutput(None, unpack(logits, kept, *input_ids.shape))
        return PreTrainingOutput(self.mean_mlm_loss(hidden, labels, kept), None)

    def mean_mlm_loss(self, hidden: Tensor, labels: Tensor, kept: Tensor) -> Float[Tensor, ""]:
        """Average the loss over the labelled tokens; 0 where there are none."""
        packed = labels.flatten()[kept]
        masked = (packed != -100).nonzero().squeeze(1)
        total = self.mlm_loss(hidden, masked, packed[masked])
        return total / max(len(masked), 1)

    def mlm_loss(
        self,
        hidden: Float[Tensor, "tokens hidden"],
        masked_positions: Int64[Tensor, " masked"],
        masked_labels: Int64[Tensor, " masked"],
    ) -> Float[Tensor, ""]:
        """Sum the losses at the masked positions of a packed batch."""
        return self.mlm_head.loss(
            hidden.index_select(0, masked_positions),
            self.bert.embeddings.word.weight,
            masked_labels,
        )


class BertForPreTraining(BertForMaskedLM):
    """The encoder with both heads, as BERT was pretrained (Devlin et al. 2018, section 3.1)."""

    def __init__(self, config: BertConfig, kernels: KernelSet | None = None) -> None:
        super().__init__(config, kernels, pooler=True)
        self.nsp_head = NextSentenceHead(config)
        init_weights(self.nsp_head, config)

    def forward(
        self,
        input_ids: Int64[Tensor, "batch seq"],
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Int64[Tensor, "batch seq"] | None = None,
        next_sentence_label: Int64[Tensor, " batch"] | None = None,
    ) -> PreTrainingOutput:
        """Return the logits of both heads, or the sum of their mean losses.

        Raises:
            ValueError: one kind of label without the other.
        """
        if (labels is None) != (next_sentence_label is None):
            missing = "labels" if labels is None else "next_sentence_label"
            raise ValueError(f"{missing}: expected both kinds of label or neither, got None")
        batch, kept = self.bert.pack(input_ids, attention_mask, token_type_ids)
        encoded = self.bert.encode(batch)
        nsp_logits = self.nsp_head(encoded.pooled)
        if labels is None or next_sentence_label is None:
            logits = self.mlm_head(encoded.last_hidden_state, self.bert.embeddings.word.weight)
            return PreTrainingOutput(None, unpack(logits, kept, *input_ids.shape), nsp_logits)
        loss = self.mean_mlm_loss(encoded.last_hidden_state, labels, kept)
        loss = loss + nn.functional.cross_entropy(_widen(nsp_logits), next_sentence_label)
        return PreTrainingOutput(loss, None, nsp_logits)

    def losses(
        self,
        batch: PackedBatch,
        masked_positions: Int64[Tensor, " masked"],
        masked_labels: Int64[Tensor, " masked"] | None,
        next_sentence_label: Int64[Tensor, " seqs"] | None,
        dropout_seed: Tensor | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Sum each objective's loss over a packed batch, for a caller that knows the counts.

        Args:
            batch: the masked tokens.
            masked_positions: rows of the packed batch.
            masked_labels: the tokens that stood there; None: leave this loss out.
            next_sentence_label: 0 is next, 1 is random; None: leave this loss out.
            dropout_seed: see `Bert.encode`.

        Returns:
            "mlm" and "nsp", float32 at least.
        """
        encoded = self.bert.encode(batch, dropout_seed)
        sums = {}
        if masked_labels is not None:
            hidden = encoded.last_hidden_state
            sums["mlm"] = self.mlm_loss(hidden, masked_positions, masked_labels)
        if next_sentence_label is not None:
            logits = _widen(self.nsp_head(encoded.pooled))
            sums["nsp"] = nn.functional.cross_entropy(logits, next_sentence_label, reduction="sum")
        return sums


def _widen(logits: Tensor) -> Tensor:
    """Compute a loss in float32 at least."""
    return logits if logits.dtype == torch.float64 else logits.float()
