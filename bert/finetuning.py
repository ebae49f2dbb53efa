"""The encoder with a fine-tuning head: a linear map on the pooled vector or on each token."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from bert.config import BertConfig
from bert.model import Bert, init_weights
from bert.packing import PackedBatch, unpack
from kernels import KernelSet


class BertForSequenceClassification(nn.Module):
    """Classify, or rate, a sequence or a pair (Devlin et al. 2018, section 4.1)."""

    def __init__(self, config: BertConfig, kernels: KernelSet | None = None) -> None:
        super().__init__()
        self.config = config
        self.bert = Bert(config, kernels)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        init_weights(self.classifier, config)

    def forward(
        self,
        input_ids: Int64[Tensor, "batch seq"],
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Float[Tensor, "batch labels"]:
        """Return each sequence's logits."""
        batch, _ = self.bert.pack(input_ids, attention_mask, token_type_ids)
        return self.logits(batch)

    def logits(
        self, batch: PackedBatch, dropout_seed: Tensor | None = None
    ) -> Float[Tensor, "seqs labels"]:
        """Return each sequence's logits, from a packed batch."""
        seed = self.bert.dropout_seed(dropout_seed)
        pooled = self.bert.encode(batch, seed).pooled
        assert pooled is not None
        return self.classifier(self.bert.kernels.dropout(pooled, self.bert.head_dropout(seed)))


class BertForTokenClassification(nn.Module):
    """Classify each token, as for named entities (Devlin et al. 2018, section 5.3)."""

    def __init__(self, config: BertConfig, kernels: KernelSet | None = None) -> None:
        super().__init__()
        self.config = config
        self.bert = Bert(config, kernels, pooler=False)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        init_weights(self.classifier, config)

    def forward(
        self,
        input_ids: Int64[Tensor, "batch seq"],
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Float[Tensor, "batch seq labels"]:
        """Return each token's logits; zeros at the padding."""
        batch, kept = self.bert.pack(input_ids, attention_mask, token_type_ids)
        return unpack(self.logits(batch), kept, *input_ids.shape)

    def logits(
        self, batch: PackedBatch, dropout_seed: Tensor | None = None
    ) -> Float[Tensor, "tokens labels"]:
        """Return each token's logits, from a packed batch."""
        seed = self.bert.dropout_seed(dropout_seed)
        hidden = self.bert.encode(batch, seed).last_hidden_state
        return self.classifier(self.bert.kernels.dropout(hidden, self.bert.head_dropout(seed)))


class BertForMultipleChoice(nn.Module):
    """Choose among texts, such as a question with each of its answers (Devlin et al. 2018, 4.4).

    Each choice is a sequence of its own and gets one logit. How many choices a question has is
    not the model's business: a packed batch may hold questions with two and with five.
    """

    def __init__(self, config: BertConfig, kernels: KernelSet | None = None) -> None:
        super().__init__()
        self.config = config
        self.bert = Bert(config, kernels)
        self.classifier = nn.Linear(config.hidden_size, 1)
        init_weights(self.classifier, config)

    def forward(
        self,
        input_ids: Int64[Tensor, "batch choices seq"],
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Float[Tensor, "batch choices"]:
        """Return each choice's logit; −inf for one without a token, which is no choice."""
        if input_ids.ndim != 3:
            raise ValueError(
                f"input_ids: expected shape [batch, choices, seq], got {list(input_ids.shape)}"
            )
        rows = [x if x is None else x.flatten(0, 1) for x in (attention_mask, token_type_ids)]
        batch, _ = self.bert.pack(input_ids.flatten(0, 1), *rows)
        is_choice = batch.sequences.cu_seqlens.diff() > 0
        logits = torch.where(is_choice, self.logits(batch).squeeze(1), float("-inf"))
        return logits.view(input_ids.shape[:2])

    def logits(
        self, batch: PackedBatch, dropout_seed: Tensor | None = None
    ) -> Float[Tensor, "seqs 1"]:
        """Return each choice's logit, from a packed batch."""
        seed = self.bert.dropout_seed(dropout_seed)
        pooled = self.bert.encode(batch, seed).pooled
        assert pooled is not None
        return self.classifier(self.bert.kernels.dropout(pooled, self.bert.head_dropout(seed)))


@dataclass(frozen=True)
class SpanLogits:
    """Where an answer starts and ends: logits over a sequence's tokens."""

    start_logits: Float[Tensor, "batch seq"]
    end_logits: Float[Tensor, "batch seq"]


class BertForQuestionAnswering(nn.Module):
    """Find the span that answers a question (Devlin et al. 2018, section 4.2)."""

    def __init__(self, config: BertConfig, kernels: KernelSet | None = None) -> None:
        super().__init__()
        self.config = config
        self.bert = Bert(config, kernels, pooler=False)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        init_weights(self.qa_outputs, config)

    def forward(
        self,
        input_ids: Int64[Tensor, "batch seq"],
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> SpanLogits:
        """Return start and end logits; −inf at the padding, where no answer can lie."""
        batch, kept = self.bert.pack(input_ids, attention_mask, token_type_ids)
        logits = self.logits(batch)
        padded = logits.new_full((input_ids.numel(), 2), float("-inf"))
        padded = padded.index_copy(0, kept, logits).view(*input_ids.shape, 2)
        return SpanLogits(padded[..., 0], padded[..., 1])

    def logits(
        self, batch: PackedBatch, dropout_seed: Tensor | None = None
    ) -> Float[Tensor, "tokens 2"]:
        """Return each token's start and end logit, from a packed batch."""
        return self.qa_outputs(self.bert.encode(batch, dropout_seed).last_hidden_state)
