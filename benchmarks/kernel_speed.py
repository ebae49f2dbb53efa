"""How fast each operation of TRITON is on this GPU, against stock PyTorch and the roofline.

    python -m benchmarks.kernel_speed --json benchmarks/results/kernels_h100.json
    python -m benchmarks.kernel_speed --dry     on a CPU: checks the benchmark, measures nothing

Each operation is verified before it is timed: outputs and every gradient, within the tests'
tolerance of REFERENCE in float64 (rivals that draw other masks: without dropout). Then forward,
with all that it keeps for the gradients, and backward are timed apart, in turns with their rivals
(`benchmarks/harness.py`), at the shapes of `benchmarks/roofline.py`. The rivals are TORCH, the
best stock operations, and PyTorch's own calls where one computes the same thing. An operation of
which one is wrong, or that the GPU's memory doesn't hold, is named and not timed; the others are.

The dry mode holds TORCH against REFERENCE at tiny shapes. Its times say nothing about kernels.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness import Clock, GpuClock, Spread, cpu_clock, in_turns, ratio
from benchmarks.roofline import CARDS, RECORD, SHAPES, Shape, predict
from benchmarks.workloads import (
    TINY,
    Operation,
    Workload,
    cast,
    operation_of,
    outputs_of,
    parameters_of,
    upstream_of,
    verify,
    workloads,
)
from kernels import REFERENCE, TORCH
from kernels.aot import read_record


@dataclass(frozen=True)
class Measured:
    """One direction of one operation."""

    operation: str
    direction: str
    shape: str
    microseconds: dict[str, Spread]
    times_faster: dict[str, Spread]
    """Than each rival."""
    roofline_microseconds: float | None
    """At least, by the model; None where it doesn't know the card."""
    roofline_share: float | None
    megabytes: float | None


def measure(
    work: Workload,
    rivals: dict[str, Operation],
    shape: Shape,
    clock: Clock,
    rounds: int,
) -> list[Measured]:
    """Time both directions of the first rival, which is ours, and of the others."""
    inputs = cast(work.inputs(), work.dtype)
    graphs = {name: outputs_of(operation, inputs) for name, operation in rivals.items()}
    upstream = upstream_of(next(iter(graphs.values())))

    def forward(operation: Operation) -> Callable[[], object]:
        return lambda: operation(*inputs)

    def backward(outputs: list[Tensor]) -> Callable[[], object]:
        parameters = parameters_of(inputs)
        return lambda: torch.autograd.grad(outputs, parameters, upstream, retain_graph=True)

    calls = {"forward": {name: forward(operation) for name, operation in rivals.items()}}
    if all(graph[0].requires_grad for graph in graphs.values()):
        calls["backward"] = {name: backward(outputs) for name, outputs in graphs.items()}
    found = []
    for direction, both in calls.items():
        seconds = in_turns(both, clock, rounds)
        ours, *others = seconds
        found.append(
            Measured(
                work.name, direction, shape.name,
                {name: Spread.of(sample).scaled(1e6) for name, sample in seconds.items()},
                {name: ratio(seconds[ours], seconds[name]) for name in others},
                *against_model(work.name, direction, shape, seconds[ours]),
            )
        )  # fmt: skip
    return found


def card_of(device: str) -> str | None:
    """Find the model's card by the name that a GPU reports.

    An A100 or H100 for a PCIe slot, an H100 NVL and an A100 of 40 GB have other memory: no card's.
    """
    if any(other in device for other in ("PCI", "NVL", "40GB")):
        return None
    return next((name for name in CARDS if name in device), None)


def against_model(
    operation: str, direction: str, shape: Shape, seconds: list[float]
) -> tuple[float | None, float | None, float | None]:
    """Give the model's time on this card, our share of it, and the megabytes that must move."""
    card = card_of(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    if card is None or shape not in SHAPES:
        return None, None, None
    parts = [
        p
        for p in predict(shape, card, read_record(RECORD))
        if (p.operation, p.direction) == (operation, direction)
    ]
    least = sum(p.microseconds for p in parts)
    share = least / Spread.of(seconds).scaled(1e6).median if parts else None
    return least or None, share, sum(p.megabytes for p in parts) or None


def environment(device: torch.device) -> dict[str, str | None]:
    """Say on what the times were taken."""
    is_gpu = device.type == "cuda"
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = None
    return {
        "device": torch.cuda.get_device_name(device) if is_gpu else platform.processor(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or torch.version.hip,
        "triton": triton,
    }


def main(arguments: list[str] | None = None) -> int:
    """Verify, time, print, write down.

    Returns: the exit code: 1 if an operation was wrong or didn't fit, 2 where there is no GPU.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the times to this file")
    parser.add_argument("--rounds", type=int, default=50, help="timed calls of each rival")
    parser.add_argument("--dry", action="store_true", help="check this benchmark on the CPU")
    options = parser.parse_args(arguments)
    if options.rounds < 2:
        parser.error(f"--rounds: expected at least 2, got {options.rounds}")
    if options.json and not options.json.parent.is_dir():
        parser.error(f"--json: expected a file in a folder that is there, got {options.json}")
    if not options.dry and not torch.cuda.is_available():
        print("kernel_speed: expected a GPU, got none (--dry checks the benchmark on a CPU)",
              file=sys.stderr)  # fmt: skip
        return 2
    if options.dry:
        device, ours, theirs, shapes = torch.device("cpu"), TORCH, REFERENCE, (TINY,)
        clock: Clock = cpu_clock
        print("dry mode: TORCH against REFERENCE on the CPU; the times say nothing about kernels")
    else:
        from kernels import TRITON

        device, ours, theirs, shapes = torch.device("cuda", 0), TRITON, TORCH, SHAPES
        clock = GpuClock(device)
    measured, untimed = [], {}
    for shape, work in ((s, w) for s in shapes for w in workloads(s, device)):
        rivals = {k.name: operation_of(k, work) for k in (ours, theirs)} | work.peers
        try:
            for name, operation in rivals.items():
                verify(work, operation, same_masks=name in ("TRITON", "REFERENCE"))
            for found in measure(work, rivals, shape, clock, options.rounds):
                measured.append(found)
                print(line(found), flush=True)
        except (AssertionError, torch.OutOfMemoryError) as error:
            untimed[f"{work.name}, {shape.name}"] = str(error)
            print(f"{shape.name:11} {work.name}: NOT TIMED: {error}", flush=True)
    if options.json:
        written = {
            "dry": options.dry,
            **environment(device),
            "measured": [asdict(found) for found in measured],
            "untimed": untimed,
        }
        options.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    return 1 if untimed else 0


def line(found: Measured) -> str:
    """Format one row of the table."""
    times = ", ".join(f"{name} {t.median:.1f} µs" for name, t in found.microseconds.items())
    ratios = ", ".join(
        f"{r.median:.2f} ({r.low:.2f} to {r.high:.2f})" for r in found.times_faster.values()
    )
    share = f"; {found.roofline_share:.0%} of the roofline" if found.roofline_share else ""
    return f"{found.shape:11} {found.operation} {found.direction}: {times}; {ratios}{share}"


if __name__ == "__main__":
    sys.exit(main())
