"""How fast each operation of TRITON is on this GPU, against stock PyTorch and the roofline.

    python -m benchmarks.kernel_speed --json benchmarks/results/kernels_h100.json
    python -m benchmarks.kernel_speed --dry     on a CPU: checks the benchmark, measures nothing

Each operation is verified before it is timed: outputs and every gradient, within the tests'
tolerance of REFERENCE in float64 (rivals that draw other masks: without dropout). Then forward,
with all that it keeps for the gradients, and backward are timed apart, in turns with their rivals
(`benchmarks/harness.py`), at the shapes of `benchmarks/roofline.py`. The rivals are TORCH, the
best stock operations, and PyTorch's own calls where one computes the same thing.

The dry mode holds TORCH against REFERENCE at tiny shapes. Its times say nothing about kernels.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from benchmarks.harness import Clock, GpuClock, Spread, cpu_clock, in_turns, ratio
from benchmarks.roofline import CARDS, SHAPES, Shape, predict, read_record
from kernels import REFERENCE, TORCH, Dropout, KernelSet, PackedSequences
from kernels.kernel_set import EmbeddingIndices, EmbeddingTables, LambSettings
from tests.tolerance import assert_near

TINY = Shape("tiny", 32, 2, 2048, 4, 16)
DROPPED = 0.1
Operation = Callable[..., Any]


@dataclass(frozen=True)
class Workload:
    """An operation at a shape: what to call it with, and who else computes the same."""

    name: str
    """As in `benchmarks/roofline.py`."""
    operation: str
    """The field of `KernelSet`."""
    inputs: Callable[[], list[Any]]
    """Float64 tensors where they are floating, so that any dtype rounds the same values."""
    peers: dict[str, Operation] = field(default_factory=dict)
    dtype: torch.dtype = torch.bfloat16


def in_place(step: Operation) -> Operation:
    """Let a step of the optimiser return what it moved."""

    def call(*lists_and_settings: Any) -> list[Tensor]:
        detached = tree_map(
            lambda x: x.detach() if isinstance(x, Tensor) else x, lists_and_settings
        )
        step(*detached)
        return detached[0]

    return call


def operation_of(kernels: KernelSet, work: "Workload") -> Operation:
    """Find a workload's operation in a set."""
    operation = getattr(kernels, work.operation)
    return in_place(operation) if work.operation == "lamb_step" else operation


def workloads(shape: Shape, device: torch.device) -> list[Workload]:
    """List every operation at a shape, with inputs that are the same each time."""
    sequences = PackedSequences.from_lengths([shape.length] * shape.sequences, device)
    tokens, hidden, head_dim = shape.tokens, shape.hidden, shape.hidden // shape.heads
    vocab = 30522 if tokens > 1000 else 97

    def normal(*sizes: int, seed: int = 0) -> Tensor:
        generator = torch.Generator(device).manual_seed(seed)
        return torch.randn(sizes, generator=generator, device=device, dtype=torch.float64)

    def whole(high: int, count: int) -> Tensor:
        generator = torch.Generator(device).manual_seed(high)
        return torch.randint(high, (count,), generator=generator, device=device)

    dropout = Dropout(DROPPED, torch.tensor(1, device=device), 0)
    vectors = lambda count, width: [normal(width, seed=s) for s in range(count)]  # noqa: E731
    qkv = lambda: [normal(tokens, shape.heads, head_dim, seed=s) for s in range(3)]  # noqa: E731
    row = lambda seed=0: normal(tokens, hidden, seed=seed)  # noqa: E731

    def add_norm() -> list[Any]:
        return [row(), normal(hidden), row(1), *vectors(2, hidden), 1e-12]

    def embedding() -> list[Any]:
        indices = EmbeddingIndices(whole(vocab, tokens), whole(512, tokens), whole(2, tokens))
        tables = EmbeddingTables(normal(vocab, hidden), normal(512, hidden), normal(2, hidden))
        return [indices, tables, *vectors(2, hidden), 1e-12, 0]

    def loss() -> list[Any]:
        rows = [normal(shape.masked, hidden), normal(vocab, hidden) / hidden**0.5, normal(vocab)]
        return [*rows, whole(vocab, shape.masked)]

    def dense(x: Tensor) -> Tensor:
        return x.view(shape.sequences, shape.length, shape.heads, head_dim).transpose(1, 2)

    def dense_attention(query, key, value, _, dropout=None):  # every sequence is as long
        p = DROPPED if dropout else 0.0
        output = F.scaled_dot_product_attention(*map(dense, (query, key, value)), dropout_p=p)
        return output.transpose(1, 2).reshape(tokens, shape.heads, head_dim)

    def step() -> list[Any]:
        count = shape.parameters // 128
        parameters, gradients, means = ([normal(count, seed=s)] * 128 for s in range(3))
        squares = [normal(count).square()] * 128
        steps = [torch.ones((), device=device)] * 128
        rate = torch.tensor(1e-3, device=device)
        settings = LambSettings(rate, (0.9, 0.999), 1e-6, 0.01, True)
        return [parameters, gradients, means, squares, steps, settings]

    return [
        Workload("layer_norm", "layer_norm", lambda: [row(), *vectors(2, hidden), 1e-12]),
        Workload("add_layer_norm", "add_layer_norm", add_norm, {}),
        Workload(
            "add_layer_norm, dropout", "add_layer_norm", lambda: [*add_norm(), dropout]
        ),
        *(
            Workload(
                f"bias_gelu{suffix}", "bias_gelu",
                lambda form=form: [normal(tokens, 4 * hidden), normal(4 * hidden), form],
                {"F.gelu": lambda x, bias, form: F.gelu(x + bias, approximate=approximate(form))},
            )
            for form, suffix in (("erf", ""), ("tanh", ", tanh"))
        ),
        Workload(
            "dropout", "dropout", lambda: [row(), dropout],
            {"F.dropout": lambda x, d: F.dropout(x, d.p if d else 0.0)},
        ),
        Workload(
            "embedding_layer_norm, dropout", "embedding_layer_norm",
            lambda: [*embedding(), dropout],
        ),
        *(
            Workload(
                f"attention{suffix}", "attention", lambda more=more: [*qkv(), sequences, *more],
                {"F.scaled_dot_product_attention": dense_attention},
            )
            for suffix, more in (("", []), (", dropout", [dropout]))
        ),
        Workload(
            "linear_cross_entropy, gradient", "linear_cross_entropy", loss, loss_peers()
        ),
        Workload("lamb_step", "lamb_step", step, dtype=torch.float32),
    ]  # fmt: skip


def approximate(form: str) -> str:
    """Give PyTorch's word for a form of GELU."""
    return "tanh" if form == "tanh" else "none"


def loss_peers() -> dict[str, Operation]:
    """Name PyTorch's own fused loss where this PyTorch has one."""
    fused = getattr(F, "linear_cross_entropy", None)
    if fused is None:
        return {}

    def call(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
        return fused(hidden, weight, labels, linear_bias=bias, reduction="sum")

    return {"F.linear_cross_entropy": call}


def cast(inputs: list[Any], dtype: torch.dtype, given: torch.dtype | None = None) -> list[Any]:
    """Round floating tensors to `given`, then hold them in `dtype`, as leaves of a graph."""

    def leaf(x: Any) -> Any:
        if isinstance(x, Tensor) and x.is_floating_point():
            return x.to(given or dtype).to(dtype, copy=True).requires_grad_()
        return x

    return tree_map(leaf, inputs)


def outputs_of(operation: Operation, inputs: list[Any]) -> list[Tensor]:
    """Run an operation forward."""
    return tree_leaves(operation(*inputs))


def parameters_of(inputs: list[Any]) -> list[Tensor]:
    """List the tensors that gradients are asked for."""
    return [x for x in tree_leaves(inputs) if isinstance(x, Tensor) and x.requires_grad]


def upstream_of(outputs: list[Tensor]) -> list[Tensor]:
    """Give gradients of ones and minus ones in a pattern, exact in any dtype."""
    return [
        1 - 2 * (torch.arange(o.numel(), device=o.device) % 3 % 2).to(o.dtype).view(o.shape)
        for o in outputs
    ]


def values(operation: Operation, inputs: list[Any]) -> list[Tensor]:
    """Outputs, then gradients."""
    outputs = outputs_of(operation, inputs)
    if not outputs[0].requires_grad:
        return outputs
    gradients = torch.autograd.grad(outputs, parameters_of(inputs), upstream_of(outputs))
    return [o.detach() for o in outputs] + list(gradients)


def verify(work: Workload, candidate: Operation, same_masks: bool = False) -> None:
    """Hold outputs and gradients against REFERENCE in float64.

    Without dropout, unless the candidate draws the same masks as REFERENCE.
    """
    inputs = [None if isinstance(x, Dropout) and not same_masks else x for x in work.inputs()]
    reference, dtype = operation_of(REFERENCE, work), work.dtype
    truth = values(reference, cast(inputs, torch.float64, dtype))
    baseline = values(reference, cast(inputs, dtype))
    got = values(candidate, cast(inputs, dtype))
    for index, (g, t, b) in enumerate(zip(got, truth, baseline, strict=True)):
        assert_near(f"{work.name}, value {index}", g, t, b, dtype)


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


def against_model(
    operation: str, direction: str, shape: Shape, seconds: list[float]
) -> tuple[float | None, float | None, float | None]:
    """Give the model's time on this card, our share of it, and the megabytes that must move."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    card = next((name for name in CARDS if name in device), None)
    if card is None or shape not in SHAPES:
        return None, None, None
    parts = [
        p
        for p in predict(shape, card, read_record())
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
    """Verify, time, print, write down; exit code 2 on a machine without a GPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the times to this file")
    parser.add_argument("--rounds", type=int, default=50, help="timed calls of each rival")
    parser.add_argument("--dry", action="store_true", help="check this benchmark on the CPU")
    options = parser.parse_args(arguments)
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
    measured = []
    for shape in shapes:
        for work in workloads(shape, device):
            rivals = {k.name: operation_of(k, work) for k in (ours, theirs)} | work.peers
            for name, operation in rivals.items():
                verify(work, operation, same_masks=name in ("TRITON", "REFERENCE"))
            for found in measure(work, rivals, shape, clock, options.rounds):
                measured.append(found)
                print(line(found), flush=True)
    if options.json:
        written = {
            "dry": options.dry,
            **environment(device),
            "measured": [asdict(found) for found in measured],
        }
        options.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    return 0


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
