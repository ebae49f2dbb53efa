"""Logits of segments that lie one after another: the choices of questions, the tokens of windows.

A softmax goes over a segment, however many members the others have; there is no padding in it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor


def segment_cross_entropy(
    logits: Float[Tensor, " members"],
    sizes: Sequence[int],
    targets: Int64[Tensor, " segments"],
) -> Float[Tensor, ""]:
    """Sum −log softmax(a segment's logits)[target] over the segments.

    Args:
        logits: float32 or float64.
        sizes: the members of each segment, one at least.
        targets: the right member of each, from 0.
    """
    places = torch.arange(max(sizes), device=logits.device)
    is_member = places < torch.tensor(sizes, device=logits.device)[:, None]
    beside = logits.new_full(is_member.shape, float("-inf")).masked_scatter(is_member, logits)
    return F.cross_entropy(beside, targets, reduction="sum")
