"""What pretraining minimises: masked words, and a question about the two segments of a pair.

The loss of a step is the mean over its masked tokens plus the mean over its pairs (Devlin et al.
2018, A.2), or one of the two. The question is whether B follows A ("nsp"), or in which order they
stood ("sop"); either is answered by the next-sentence head.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor

from bert.attention_entropy import attention_entropy
from bert.pretraining import BertForPreTraining
from bert.training.objective import Objective
from bert.training.throughput import training_operations
from pretrain.batches import PretrainingBatch


class PretrainingObjective(Objective[PretrainingBatch]):
    """The model with both heads, and the sums of the losses that it is trained on.

    Args:
        model: the model; a head that no loss reaches stays as it is.
        tasks: "mlm", and "nsp" or "sop".
    """

    def __init__(self, model: BertForPreTraining, tasks: Sequence[str] = ("mlm", "nsp")) -> None:
        super().__init__()
        self.model = model
        self.is_masked = "mlm" in tasks
        self.pair_task = next((task for task in tasks if task != "mlm"), None)

    def counts(self, batch: PretrainingBatch) -> dict[str, int]:
        """Count the masked tokens and the pairs."""
        counts = {"mlm": len(batch.masked_labels)} if self.is_masked else {}
        if self.pair_task is not None:
            assert batch.next_sentence_label is not None
            counts[self.pair_task] = len(batch.next_sentence_label)
        return counts

    def forward(
        self, batch: PretrainingBatch, dropout_seed: Int64[Tensor, ""]
    ) -> dict[str, Float[Tensor, ""]]:
        """Sum each loss over the batch."""
        sums = self.model.losses(
            batch.packed,
            batch.masked_positions,
            batch.masked_labels if self.is_masked else None,
            batch.next_sentence_label if self.pair_task else None,
            dropout_seed,
        )
        if self.pair_task is not None:
            sums[self.pair_task] = sums.pop("nsp")
        return sums

    def operations(self, batch: PretrainingBatch) -> int:
        """Count the matrix products: the masked-word head's at the masked tokens alone."""
        return training_operations(
            self.model.config,
            batch.packed.sequences.lengths,
            classes=2 if self.pair_task else 0,
            decoded=len(batch.masked_labels) if self.is_masked else 0,
        )

    def study(self, batch: PretrainingBatch) -> Mapping[str, Any]:
        """Measure how widely the heads look."""
        return attention_entropy(self.model.bert, batch.packed)
