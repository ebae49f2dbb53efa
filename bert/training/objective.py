"""What a task must offer so that the loop can train it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


@runtime_checkable
class MicroBatch(Protocol):
    """What one forward pass eats; any object that can move to a device."""

    def to(self, device: torch.device, /) -> "MicroBatch":
        """Return the same micro-batch on `device`."""
        ...


BatchT = TypeVar("BatchT", bound=MicroBatch)


@runtime_checkable
class Batches(Protocol[BatchT]):
    """An endless list of micro-batches: the same index gives the same one in any process."""

    def __getitem__(self, index: int, /) -> BatchT:
        """Return micro-batch `index`, on the CPU; a pure function of the index."""
        ...

    def tokens(self, batch: BatchT, /) -> int:
        """Return the real tokens of a micro-batch on the CPU; padding is not counted."""
        ...


class Objective(nn.Module, Generic[BatchT], ABC):
    """A model together with the losses that it is trained on.

    Between optimiser steps only parameters may change: a window that is abandoned half-way,
    or whose loss is NaN, must leave no trace in the buffers.
    """

    @abstractmethod
    def counts(self, batch: BatchT) -> Mapping[str, int | float]:
        """Return what each loss's sum is divided by, for a batch that is still on the CPU.

        The number of its terms; or, where they count unequally, the sum of their weights.
        """

    @abstractmethod
    def forward(
        self, batch: BatchT, dropout_seed: Int64[Tensor, ""]
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the sum (not the mean) of each loss, under the names of `counts`.

        Args:
            batch: on the device of the parameters.
            dropout_seed: all randomness of the pass; the same seed gives the same masks.

        Returns:
            Sums in float32 (float64 for a float64 model).
        """

    def operations(self, batch: BatchT) -> int:
        """Return what a forward and a backward pass take on a batch that is still on the CPU.

        Floating-point operations, as throughput.py counts them. Where nobody has counted them,
        as here, the log tells no utilization.
        """
        return 0

    def study(self, batch: BatchT) -> Mapping[str, Any]:
        """Return more for a line of statistics, as JSON, from a look at a batch.

        Args:
            batch: on the device of the parameters; the objective is in evaluation mode, and
                nothing may change.
        """
        return {}
