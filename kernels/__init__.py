"""The operations that BERT is made of, as values: `REFERENCE`, `TORCH`, `TRITON`.

Nothing is imported until it is asked for, so that a tool which looks for another library of the
name `kernels` finds a plain package without a version.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernels.kernel_set import Dropout as Dropout
    from kernels.kernel_set import KernelSet as KernelSet
    from kernels.kernel_set import PackedSequences as PackedSequences
    from kernels.reference import REFERENCE as REFERENCE
    from kernels.selection import best_for as best_for
    from kernels.selection import choose as choose
    from kernels.torch_set import TORCH as TORCH
    from kernels.triton_set import TRITON as TRITON

_HOME = {
    "Dropout": "kernels.kernel_set",
    "KernelSet": "kernels.kernel_set",
    "PackedSequences": "kernels.kernel_set",
    "REFERENCE": "kernels.reference",
    "TORCH": "kernels.torch_set",
    "TRITON": "kernels.triton_set",
    "best_for": "kernels.selection",
    "choose": "kernels.selection",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'kernels' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOME)
