"""How far each weight matrix has moved between two states of a model."""

from collections.abc import Mapping

import torch
from torch import Tensor

from bert.architectures import Model
from bert.weight_names import to_theirs


def matrices(model: Model) -> dict[str, Tensor]:
    """List a model's matrices under Hugging Face's names: query, key and value each by itself.

    Biases and LayerNorms are left out. The tensors are the model's own, not copies.
    """
    found = {}
    for name, weight in model.state_dict().items():
        if weight.ndim == 2:
            names = to_theirs(name)
            found |= dict(zip(names, weight.detach().chunk(len(names)), strict=True))
    return found


@torch.no_grad()
def drift(now: Mapping[str, Tensor], then: Mapping[str, Tensor]) -> dict[str, float | None]:
    """Measure each matrix's way from one state to another: ‖now − then‖ / ‖then‖ (Frobenius).

    Args:
        now: of `matrices`.
        then: of the same model in another state.

    Returns:
        0 where nothing has moved, 1 where it has moved as far as it was long; None where it was
        all zeros.
    """
    ratios = {}
    for name, weight in now.items():
        before = then[name].double()
        length = float(before.norm())
        ratios[name] = float((weight.double() - before).norm()) / length if length else None
    return ratios
