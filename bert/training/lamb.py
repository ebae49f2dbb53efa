"""LAMB as a torch optimiser: the state it keeps, around the kernels that take the step."""

from typing import cast

import torch
from torch import Tensor

from kernels import KernelSet
from kernels.kernel_set import LambSettings


class Lamb(torch.optim.Optimizer):
    """LAMB (You et al. 2020, algorithm 2): for batches of many thousands of sequences.

    Groups with `is_adapted` scale each tensor's step by its trust ratio. The state has AdamW's
    names, and each parameter counts its own steps: one without a gradient takes none.
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
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})
        self.kernels = kernels

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for step, parameters in self._count(group["params"]).items():
                states = [self.state[parameter] for parameter in parameters]
                self.kernels.lamb_step(
                    parameters,
                    [cast(Tensor, parameter.grad) for parameter in parameters],
                    [state["exp_avg"] for state in states],
                    [state["exp_avg_sq"] for state in states],
                    LambSettings(
                        group["lr"],
                        group["betas"],
                        group["eps"],
                        group["weight_decay"],
                        group["is_adapted"],
                        step,
                    ),
                )

    def _count(self, parameters: list[Tensor]) -> dict[int, list[Tensor]]:
        """Begin the next step of those with a gradient; return them by its number."""
        by_step: dict[int, list[Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros(())  # on the CPU: nothing waits for a GPU to read it
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            state["step"] += 1
            by_step.setdefault(int(state["step"]), []).append(parameter)
        return by_step
