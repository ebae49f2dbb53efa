"""Muon for the encoder's matrices, AdamW for all the rest."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bert.training.sharding import cut_like, whole

# Newton and Schulz's iteration x ← a·x + (b·g + c·g²)·x with g = x·xᵀ. These coefficients bring
# small singular values up fast, and leave all of them near 1 instead of at it.
A, B, C = 3.4445, -4.7750, 2.0315
ITERATIONS = 5
MOMENTUM = 0.95
RMS = 0.2


def orthogonalise(matrices: Float[Tensor, "parts rows columns"]) -> Tensor:
    """Set all singular values of each matrix to about 1, from 0.7 to 1.2 (Jordan et al. 2024)."""
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    is_tall = matrices.shape[1] > matrices.shape[2]
    if is_tall:
        x = x.mT
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = A * x + (B * gram + C * gram @ gram) @ x
    return x.mT if is_tall else x


class MuonAdamW(torch.optim.AdamW):
    """Muon (Jordan et al. 2024) where a group has `parts`, AdamW where it has None.

        m ← 0.95·m + 0.05·g
        u ← orthogonalise(0.05·g + 0.95·m)
        x ← x − rate · (0.2·√max(rows, columns) · u + decay · x)

    The factor gives a step the root mean square that AdamW's usually has, so both take the same
    rate and decay (Liu et al. 2025, section 2.2). A matrix that holds several maps one above
    another, as query's, key's and value's, is orthogonalised in so many `parts`. torch.optim.Muon
    knows no parts, and computes in bfloat16 on every device; this keeps to the parameter's dtype.
    """

    def step(self, closure: Any = None) -> Any:
        """Move every parameter that has a gradient."""
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if group["parts"] is None]
            result = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group["parts"] is not None:
                self._step_orthogonally(group)
        return result

    @torch.no_grad()
    def _step_orthogonally(self, group: dict[str, Any]) -> None:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                # Nothing reads the count, but AdamW refuses to load a state without one.
                state["step"] = torch.zeros(())
                state["exp_avg"] = torch.zeros_like(parameter)
            state["step"] += 1
            state["exp_avg"].lerp_(parameter.grad, 1 - MOMENTUM)
            # Of a cut matrix each process orthogonalises all, and keeps its own rows.
            update = whole(parameter.grad.lerp(state["exp_avg"], MOMENTUM))
            parts = update.view(group["parts"], -1, update.shape[1])
            scale = RMS * math.sqrt(max(parts.shape[1:]))
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            step = orthogonalise(parts).reshape(parameter.shape)
            parameter.add_(cut_like(step, parameter), alpha=-group["lr"] * scale)
