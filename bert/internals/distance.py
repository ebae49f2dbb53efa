"""How far a backend's tensors stand from REFERENCE's, place by place."""

import copy
from collections.abc import Iterable
from typing import NamedTuple

import torch

from bert.architectures import Model
from bert.internals.capture import run_captured
from bert.internals.watching import watched
from bert.packing import PackedBatch
from kernels import REFERENCE


class Distance(NamedTuple):
    """How far one tensor stands from the reference's."""

    difference: float
    """The largest absolute difference of an element."""
    largest: float
    """The largest absolute value of the reference's elements, to judge the difference by."""


def distance_from_reference(
    model: Model,
    batch: PackedBatch,
    names: str | Iterable[str] | None = None,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Distance]:
    """Run a model on its own backend and a copy of it on REFERENCE, and compare the tensors.

    Args:
        model: in evaluation mode, with no capture or edit open.
        batch: on the model's device.
        names: see `capture`.
        dtype: what the copy computes in. In float64 the differences are the backend's whole
            error: of its dtype's rounding, and of its kernels. The copy takes that memory.

    Returns:
        A distance for each name, in the order of the computation.

    Raises:
        ValueError: see `capture`; or the model is being watched.
    """
    if watched(model) is not None:
        raise ValueError("model: expected no capture or edit around it, got one")
    ours = run_captured(model, batch, names)
    reference = copy.deepcopy(model).to(dtype)
    for module in reference.modules():
        if "kernels" in vars(module):
            vars(module)["kernels"] = REFERENCE
    theirs = run_captured(reference, batch, names)
    return {name: _distance(ours[name], theirs[name]) for name in ours}


def _distance(ours: torch.Tensor, theirs: torch.Tensor) -> Distance:
    if not ours.numel():
        return Distance(0.0, 0.0)
    theirs = theirs.double()
    return Distance((ours.double() - theirs).abs().max().item(), theirs.abs().max().item())
