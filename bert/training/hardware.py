"""Where a run computes, in which precision and with which kernels: chosen once, and said."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from bert.training.config import TrainingConfig
from kernels import TORCH, KernelSet, choose


@dataclass(frozen=True)
class Hardware:
    """The device, the precision and the kernels that were picked.

    `precision` is "float32", "bfloat16" or "float16": the latter two are for matrix products, by
    autocast, while parameters, gradients and optimiser stay as they are; float16, whose smallest
    number is 6e-8, takes a scaled loss (Micikevicius et al. 2018).
    """

    device: torch.device
    precision: str
    reason: str
    kernels: KernelSet = TORCH

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context that a forward pass runs in."""
        dtype = torch.float16 if self.precision == "float16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.precision != "float32")


def choose_hardware(config: TrainingConfig, local_rank: int | None = None) -> Hardware:
    """Pick the device, the precision and the kernels that the configuration asks for.

    Args:
        config: asks for them.
        local_rank: of several processes on this machine, which takes the GPU of that number.

    Raises:
        ValueError: a device that torch can't use here, bfloat16 on a GPU without it, or kernels
            that the device can't run.
    """
    device = _device(config.device, local_rank)
    kernels = choose(config.kernels, device)
    native, reason = _has_native_bfloat16(device)
    if config.precision == "auto":
        return Hardware(device, "bfloat16" if native else "float32", reason, kernels)
    if config.precision == "bfloat16" and device.type == "cuda" and not native:
        raise ValueError(f"precision: expected float32 or float16, got bfloat16: {reason}")
    return Hardware(device, config.precision, "as asked", kernels)


def _device(name: str, local_rank: int | None) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and local_rank is not None:
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if (device.index or 0) >= count:
        raise ValueError(f"device: expected one of the {count} GPUs that torch sees, got {name!r}")
    return device


def _has_native_bfloat16(device: torch.device) -> tuple[bool, str]:
    """Say whether bfloat16 is a gain, and why.

    A CPU needs AVX512-BF16 or AMX. `torch.ops.mkldnn._is_mkldnn_bf16_supported()` says yes on
    AVX2 alone too, where bfloat16 matrix products were measured 7 times slower than float32.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        name = torch.cuda.get_device_name(device)
        return native, f"{name} {'has' if native else 'has no'} bfloat16"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return native, f"this CPU {'has' if native else 'has no'} AVX512-BF16 or AMX"
