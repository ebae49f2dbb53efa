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
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Sum −log softmax(a segment's logits)[target] over the segments.

    With smoothing ε the sum has 1 − ε of that, and ε of the mean over the segment's members.

    Args:
        logits: float32 or float64.
        sizes: the members of each segment, one at least.
        targets: the right member of each, from 0.
        label_smoothing: ε, in [0, 1).
    """
    places = torch.arange(max(sizes), device=logits.device)
    is_member = places < torch.tensor(sizes, device=logits.device)[:, None]
    beside = logits.new_full(is_member.shape, float("-inf")).masked_scatter(is_member, logits)
    true = F.cross_entropy(beside, targets, reduction="sum")
    if label_smoothing == 0:
        return true
    # Not torch's own, for which what isn't there is a member as well, of an infinite loss.
    alike = -torch.log_softmax(beside, 1).masked_fill(~is_member, 0).sum(1) / is_member.sum(1)
    return (1 - label_smoothing) * true + label_smoothing * alike.sum()
