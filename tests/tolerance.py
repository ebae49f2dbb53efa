"""How close is close enough: derived from the reference's own error, never tuned by hand.

The truth is REFERENCE in float64 on the very inputs that the candidate gets. The candidate's
greatest error may be twice the one that REFERENCE makes in the candidate's dtype, plus eight
roundings of the greatest true value in that dtype.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

ROUNDINGS = 8


def bound(truth: Tensor, baseline: Tensor, dtype: torch.dtype) -> float:
    """The greatest error that a candidate may make."""
    if truth.numel() == 0:
        return 0.0
    error = (baseline.double() - truth).abs().max().item()
    return 2 * error + ROUNDINGS * torch.finfo(dtype).eps * truth.abs().max().item()


def assert_near(name: str, got: Tensor, truth: Tensor, baseline: Tensor, dtype: torch.dtype):
    assert got.shape == truth.shape, f"{name}: shape {got.shape}, expected {truth.shape}"
    assert torch.isfinite(got).all(), f"{name}: not finite"
    if got.numel() == 0:
        return
    error = (got.double() - truth).abs().max().item()
    allowed = bound(truth, baseline, dtype)
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


def run(function: Callable, arguments: Sequence[Any], upstream: Sequence[Tensor]) -> list[Tensor]:
    """Outputs, then the gradient of each floating argument, at a copy of the inputs."""
    leaves = [
        a.detach().clone().requires_grad_()
        if isinstance(a, Tensor) and a.is_floating_point()
        else a
        for a in arguments
    ]
    result = function(*leaves)
    outputs = list(result) if isinstance(result, tuple) else [result]
    inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    gradients = torch.autograd.grad(
        outputs, inputs, [u.to(o.dtype) for u, o in zip(upstream, outputs, strict=True)],
        allow_unused=True,
    )  # fmt: skip
    zeros = (torch.zeros_like(i) for i in inputs)
    return [o.detach() for o in outputs] + [
        z if g is None else g for g, z in zip(gradients, zeros, strict=True)
    ]


def assert_parity(
    candidate: Callable,
    reference: Callable,
    arguments: Sequence[Any],
    dtype: torch.dtype,
    strided_upstream: bool = False,
):
    """Hold a candidate's outputs and gradients against the reference's.

    `arguments` are the operation's; floating tensors among them are cast to `dtype`.
    """

    def cast(to: torch.dtype) -> list[Any]:
        return [
            a.to(dtype).to(to) if isinstance(a, Tensor) and a.is_floating_point() else a
            for a in arguments
        ]

    shapes = reference(*cast(torch.float64))
    shapes = shapes if isinstance(shapes, tuple) else (shapes,)
    generator = torch.Generator().manual_seed(7)
    upstream = []
    for output in shapes:
        wide = torch.randn((*output.shape, 2), generator=generator, dtype=torch.float64).to(dtype)
        upstream.append(wide[..., 0] if strided_upstream else wide[..., 0].contiguous())
    truth = run(reference, cast(torch.float64), [u.double() for u in upstream])
    baseline = run(reference, cast(dtype), upstream)
    got = run(candidate, cast(dtype), upstream)
    for index, (g, t, b) in enumerate(zip(got, truth, baseline, strict=True)):
        kind = "output" if index < len(shapes) else "gradient"
        assert_near(f"{kind} {index}", g, t, b, dtype)
