"""Which kernel set a device gets when nobody names one."""

from importlib.util import find_spec

import torch

from kernels.kernel_set import KernelSet
from kernels.torch_set import TORCH


def best_for(device: torch.device | str) -> KernelSet:
    """Pick the fastest set that is made for this device.

    That is TRITON on a GPU of AMD, or of NVIDIA from the A100 on, if Triton is installed and
    compiles its kernels (TRITON_INTERPRET isn't set); TORCH anywhere else.
    """
    device = torch.device(device)  # a name that isn't a device's raises here, before any work
    if device.type != "cuda" or find_spec("triton") is None:
        return TORCH
    from kernels import device as devices
    from kernels.triton_set import TRITON

    can_compile = torch.cuda.get_device_capability(device) >= (8, 0) and not devices.INTERPRETED
    return TRITON if can_compile else TORCH
