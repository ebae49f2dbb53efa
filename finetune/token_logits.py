"""What a model says of each token of some rows."""

import numpy as np
import torch
from jaxtyping import Float

from bert.finetuning import BertForQuestionAnswering, BertForTokenClassification
from finetune.batches import EVALUATION_TOKENS, TokenRows
from finetune.sequences import at_least_float32


@torch.inference_mode()
def predict_token_logits(
    model: BertForTokenClassification | BertForQuestionAnswering,
    rows: TokenRows,
    token_budget: int = EVALUATION_TOKENS,
) -> Float[np.ndarray, "tokens labels"]:
    """Return the logits of each token, in the rows' order.

    Memory for the model doesn't grow with the rows: a batch has at most `token_budget` tokens.

    Returns:
        float32, or float64 from a float64 model.
    """
    assert not model.training
    is_span = isinstance(model, BertForQuestionAnswering)
    weight = (model.qa_outputs if is_span else model.classifier).weight
    dtype = np.float64 if weight.dtype == torch.float64 else np.float32
    logits = np.empty((len(rows.input_ids), len(weight)), dtype)
    for chosen in rows.by_length(token_budget):
        found = model.logits(rows.batch(chosen).to(weight.device))
        logits[rows.places(chosen)] = at_least_float32(found).cpu().numpy()
    return logits
