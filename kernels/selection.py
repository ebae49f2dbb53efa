"""Which kernel set a device gets: by name, or the best one when nobody names one."""

from importlib.util import find_spec

import torch

from kernels.kernel_set import KernelSet
from kernels.reference import REFERENCE
from kernels.torch_set import TORCH


def best_for(device: torch.device | str) -> KernelSet:
    """Pick the fastest set that is known to work on this device.

    That is TORCH, on a GPU too: TRITON was never run on one, so it is there for the asking.
    """
    torch.device(device)  # a name that isn't a device's raises here, before any work
    return TORCH


def choose(name: str, device: torch.device | str) -> KernelSet:
    """Find the set of that name, or with "auto" the best for the device.

    Raises:
        ValueError: no such set, or the device can't run it. TRITON needs Triton, and a GPU of AMD
            or of NVIDIA from the A100 on; Triton's interpreter (TRITON_INTERPRET=1) runs it
            anywhere, slowly.
    """
    sets = {"auto": best_for(device), "torch": TORCH, "reference": REFERENCE}
    if name in sets:
        return sets[name]
    if name != "triton":
        raise ValueError(f"kernels: expected auto, torch, triton or reference, got {name!r}")
    if find_spec("triton") is None:
        raise ValueError(
            "kernels: expected torch or reference, since Triton isn't installed, got triton"
        )
    from kernels import device as devices
    from kernels.triton_set import TRITON

    device = torch.device(device)
    is_able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    if not (is_able or devices.INTERPRETED):
        raise ValueError(
            f"kernels: expected torch or reference on {device}, since Triton's kernels need a GPU "
            "from the A100 on, got triton"
        )
    return TRITON
