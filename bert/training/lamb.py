"""LAMB as a torch optimiser: the state it keeps, around the kernels that take the step."""

from typing import Any

import torch
from torch import Tensor

from kernels import KernelSet
from kernels.kernel_set import LambSettings


class Lamb(torch.optim.Optimizer):
    """LAMB (You et al. 2020, algorithm 2): for batches of many thousands of sequences.

    Groups with `is_adapted` scale each tensor's step by its trust ratio. The state has AdamW's
    names, and each parameter counts its own steps: one without a gradient takes none.

    The learning rate and the counts are tensors on the parameters' device, as in torch's
    capturable optimisers, so that a CUDA graph can replay a step. Take one before the capture,
    with the gradients where the graph will have them (`zero_grad(set_to_none=False)` leaves them
    there); between replays `set_learning_rate` sets the rate that the graph reads.
    """

    def __init__(
        self,
        groups: list[dict],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        kernels: KernelSet,
    ) -> None:
        """Take groups with `params`, `weight_decay` and `is_adapted`."""
        # torch's word for counts on the device, which load_state_dict puts there.
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "capturable": True})
        for group in self.param_groups:
            device = group["params"][0].device
            group["lr"] = torch.tensor(lr, dtype=torch.float64, device=device)
        self.kernels = kernels

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            gradients = {p: p.grad for p in group["params"] if p.grad is not None}
            if not gradients:
                continue
            states = [self._state_of(parameter) for parameter in gradients]
            steps = [state["step"] for state in states]
            torch._foreach_add_(steps, 1)
            self.kernels.lamb_step(
                list(gradients),
                list(gradients.values()),
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                steps,
                LambSettings(
                    group["lr"],
                    group["betas"],
                    group["eps"],
                    group["weight_decay"],
                    group["is_adapted"],
                ),
            )

    def _state_of(self, parameter: Tensor) -> dict[str, Any]:
        """Return a parameter's state, which begins at zero."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state
