"""What `kernel_speed.py` times and the GPU's tests hold to account: every operation, with inputs.

A candidate is held against REFERENCE in float64, outputs and gradients, within the tolerance that
all tests have (`tests/tolerance.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from benchmarks.roofline import Shape
from kernels import REFERENCE, Dropout, KernelSet, PackedSequences
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
