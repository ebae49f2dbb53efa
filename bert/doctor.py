"""`bert doctor`: what this machine has, what would be used of it, and whether it computes right.

Imports no torch, so that `--help` answers at once.
"""

import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kernels import KernelSet

LEAST_FREE = 10**9
"""Bytes of memory and of disk with less than which nothing is worth starting."""
TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4
"""The greatest differences from REFERENCE that are allowed in float32."""


@dataclass(frozen=True)
class Doctor:
    """Show what this machine and installation have, and check that they compute right.

    Exits with 1 where something is wrong. Nothing is written, nothing is asked of a network.
    """


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    text: str
    ok: bool = True


def run(command: Doctor) -> int:
    """Print the report line by line; return 1 where something is wrong."""
    wrong = 0
    for finding in examine():
        wrong += not finding.ok
        mark = "" if finding.ok else "PROBLEM: "
        print(f"{finding.name:<16}{mark}{finding.text}", flush=True)
    print(f"\n{wrong or 'no'} problem{'' if wrong == 1 else 's'} found")
    return 1 if wrong else 0


def examine() -> Iterator[Finding]:
    """Make every finding; an examination that fails is a finding too."""
    for name, look in EXAMINATIONS:
        try:
            yield from look()
        except Exception as error:  # whatever is broken is what the user wants to know
            yield Finding(name, f"{type(error).__name__}: {error}", ok=False)


def _system() -> Iterator[Finding]:
    yield Finding("python", f"{platform.python_version()} on {platform.platform()}")
    yield Finding("plainbert", f"{_version('plainbert') or 'not installed'}, in {_home()}")
    total, available = _memory()
    if total is not None and available is not None:
        text = f"{_gigabytes(available)} of {_gigabytes(total)} free"
        yield Finding("memory", text, available >= LEAST_FREE)
    free = shutil.disk_usage(Path.cwd()).free
    yield Finding("disk", f"{_gigabytes(free)} free in {Path.cwd()}", free >= LEAST_FREE)


def _packages() -> Iterator[Finding]:
    """Say which of the distributions that pyproject.toml names are there, extra by extra."""
    from importlib import metadata

    try:
        required = metadata.requires("plainbert") or []
    except metadata.PackageNotFoundError:
        return
    groups: dict[str, list[str]] = {}
    for line in required:
        extra = re.search(r"extra == [\"'](.+?)[\"']", line)
        groups.setdefault(extra[1] if extra else "", []).append(re.split(r"[^\w.-]", line)[0])
    for extra, names in groups.items():
        if extra == "dev":
            continue
        found = {name: _version(name) for name in names}
        text = ", ".join(f"{name} {found[name] or 'absent'}" for name in sorted(names))
        absent = None in found.values()
        if extra and absent:
            text += f" (pip install -e .[{extra}])"
        yield Finding(f"extra {extra}" if extra else "packages", text, bool(extra) or not absent)


def _hardware() -> Iterator[Finding]:
    import torch

    from bert.training.config import TrainingConfig
    from bert.training.hardware import choose_hardware
    from bert.training.throughput import matmul_speed

    can = ", ".join(
        f"{name} {'yes' if getattr(torch.cpu, f'_is_{test}_supported', bool)() else 'no'}"
        for name, test in (
            ("AVX2", "avx2"),
            ("AVX-512", "avx512"),
            ("AVX512-BF16", "avx512_bf16"),
            ("AMX", "amx_tile"),
        )
    )
    yield Finding("cpu", f"{_cpu_name()}, {os.cpu_count()} cores; {can}")
    yield Finding("torch", f"{torch.__version__}, {torch.get_num_threads()} threads")
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        text = f"{gpu.name}, {_gigabytes(gpu.total_memory)}, capability {gpu.major}.{gpu.minor}"
        yield Finding(f"gpu cuda:{index}", text)
    if not torch.cuda.is_available():
        yield Finding("gpu", "none that torch can use")
    chosen = choose_hardware(TrainingConfig())
    yield Finding("device", f"auto is {chosen.device}")
    yield Finding("precision", f"auto is {chosen.precision}: {chosen.reason}")
    yield Finding("kernels", f"{chosen.kernels.name} on {chosen.device}")
    speed = matmul_speed(chosen, 2048, 768, 3072) / 1e9
    yield Finding("speed", f"{speed:,.0f} GFLOP/s in matrix products, {chosen.precision}")


def _name_of_kernels() -> Iterator[Finding]:
    """Check that transformers doesn't take our package `kernels` for a library of that name."""
    from importlib.util import find_spec

    import kernels

    ours = _home() / "kernels" / "__init__.py"
    found = Path(kernels.__file__ or "").resolve()
    if found != ours:
        yield Finding("kernels package", f"expected {ours}, got {found}", ok=False)
        return
    if find_spec("transformers") is None:
        yield Finding("kernels package", "ours; transformers isn't installed")
        return
    import transformers
    from transformers.utils import is_kernels_available

    if is_kernels_available():
        text = "transformers takes it for the library of that name"
        yield Finding("kernels package", text, ok=False)
        return
    config = transformers.BertConfig(
        vocab_size=9, hidden_size=12, num_hidden_layers=1, intermediate_size=12
    )
    transformers.BertModel(config)
    yield Finding("kernels package", f"ours; transformers {transformers.__version__} unharmed")


def _self_check() -> Iterator[Finding]:
    from bert.training.config import TrainingConfig
    from bert.training.hardware import choose_hardware
    from kernels import REFERENCE, best_for

    device = choose_hardware(TrainingConfig()).device
    fast = best_for(device)
    values, gradients = greatest_differences(fast, REFERENCE, device)
    yield Finding(
        "self-check",
        f"{fast.name} against REFERENCE on a tiny BERT in float32: hidden states and losses "
        f"differ by {values:.0e} (allowed {TOLERANCE:.0e}), gradients by {gradients:.0e} "
        f"(allowed {GRADIENT_TOLERANCE:.0e})",
        values <= TOLERANCE and gradients <= GRADIENT_TOLERANCE,
    )


def greatest_differences(
    one: "KernelSet", other: "KernelSet", device: "torch.device"
) -> tuple[float, float]:
    """Run a tiny BERT on two kernel sets, without dropout, over sequences of uneven lengths.

    Returns:
        The greatest difference of a hidden state or loss, and of a gradient, each in shares of
        the tensor's largest value, or of 1 where that is less and it is no gradient. NaN where
        there is one.
    """
    import torch

    from bert.config import BertConfig
    from bert.packing import PackedBatch
    from bert.pretraining import BertForPreTraining

    config = BertConfig(
        vocab_size=101,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=160,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
    )
    draw = torch.Generator().manual_seed(0)
    rows = [torch.randint(1, 101, (length,), generator=draw).tolist() for length in (37, 1, 16)]
    batch = PackedBatch.from_lists(rows, device=device)
    masked = torch.tensor([3, 37, 50], device=device)
    labels = torch.tensor([7, 100, 5], device=device)
    order = torch.tensor([0, 1, 0], device=device)
    outcomes: list[tuple[list[Tensor], list[Tensor]]] = []
    for kernels in (one, other):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same weights for both
            model = BertForPreTraining(config, kernels).to(device).eval()
        losses = model.losses(batch, masked, labels, order)
        torch.stack(list(losses.values())).sum().backward()
        states = model.bert.encode(batch).hidden_states
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        outcomes.append(([*states, *losses.values()], gradients))
    (values, gradients), (true_values, true_gradients) = outcomes
    return (
        _greatest(values, true_values, floor=1.0),
        _greatest(gradients, true_gradients, floor=1e-6),
    )


def _greatest(found: "list[Tensor]", true: "list[Tensor]", floor: float) -> float:
    import torch

    return torch.stack(
        [
            (a - b).detach().abs().max() / b.detach().abs().max().clamp(min=floor)
            for a, b in zip(found, true, strict=True)
        ]
    ).max().item()  # fmt: skip


def _home() -> Path:
    """Return the directory that the packages lie in."""
    return Path(__file__).resolve().parents[1]


def _version(distribution: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        match = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        match = None
    return match[1] if match else platform.processor() or platform.machine()


def _memory() -> tuple[int | None, int | None]:
    """Return the machine's memory in bytes, all of it and what is free, where Linux tells."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None, None
    sizes = {name: int(kb) * 1024 for name, kb in re.findall(r"(\w+):\s+(\d+) kB", text)}
    return sizes.get("MemTotal"), sizes.get("MemAvailable")


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


EXAMINATIONS: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
    ("system", _system),
    ("packages", _packages),
    ("hardware", _hardware),
    ("kernels package", _name_of_kernels),
    ("self-check", _self_check),
)
