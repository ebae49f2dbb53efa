"""Which attention kernels `aot.py` compiles: BERT-base's heads, and others with their own tiles.

A loop's round is counted. What it divides by is the scores of one round, queries times keys.
(Exact float32 has loops and tails of one size. Of equal loops the one with more instructions
counts, which is the masked one.)
"""

import itertools
import math
from typing import Any, NamedTuple

import torch

from kernels import (
    attention,
    attention_backward,
    attention_dkdv,
    attention_dq,
    attention_forward,
    attention_probabilities,
    attention_short_backward,
)
from kernels.aot_cases import Case


class Heads(NamedTuple):
    """What the heads are of, and what a case's name says about it."""

    head_dim: int = 64
    dtype: torch.dtype = torch.bfloat16
    label: str = ""


BASE = Heads()
WIDE = Heads(head_dim=128, label=", head_dim 128")
NARROW = Heads(head_dim=32, label=", head_dim 32")
NARROWEST = Heads(head_dim=16, label=", head_dim 16")
EXACT = Heads(dtype=torch.float32, label=", float32")

ELEMENTS = {torch.bfloat16: "bf16", torch.float32: "fp32"}
POINTERS = (
    "query_ptr key_ptr value_ptr output_ptr doutput_ptr dquery_ptr dkey_ptr dvalue_ptr "
    "query_source key_source value_source doutput_source"
)
STRIDES = (
    "query_stride query_head_stride key_stride key_head_stride value_stride value_head_stride"
)
FLOAT32_COST = 8
"""MI300X's matrix units make 163 TFLOP/s of float32, an eighth; NVIDIA's make none."""


def types(heads: Heads) -> dict[str, str]:
    """Give Triton's types of the arguments."""
    return {
        POINTERS: f"*{ELEMENTS[heads.dtype]}",
        "lse_ptr delta_ptr": "*fp32",
        "cu_seqlens_ptr": "*i32",
        "seed_ptr": "*i64",
        STRIDES: "i32:16",
        "tokens heads tiles stream threshold": "i32",
    }


def constants(heads: Heads, has_dropout: bool | None = None) -> dict[str, Any]:
    """Give the compile-time arguments that don't depend on the tile; None: no such argument."""
    given = {
        "SCALE": math.log2(math.e) / math.sqrt(heads.head_dim),
        "HEAD_DIM": heads.head_dim,
        "PRECISION": "ieee",
    }
    if has_dropout is None:
        return given
    return given | {"HAS_DROPOUT": has_dropout} | ({} if has_dropout else {"seed_ptr": None})


def name(kernel: str, heads: Heads, has_dropout: bool, end: str = "") -> str:
    """Name a case, as the record and the roofline do."""
    return f"attention {kernel}{heads.label}{', dropout' if has_dropout else ''}{end}"


def described(heads: Heads, rows: int, names: str, descriptors: bool) -> dict[str, str]:
    """Say which arguments are descriptors of tiles of so many rows, if there are any."""
    kind = f"tensordesc<{ELEMENTS[heads.dtype]}[{rows}, {heads.head_dim}]>"
    return {names: kind} if descriptors else {}


def work(heads: Heads, products: int, per: str = "loop") -> dict[str, Any]:
    """Say what so many matrix products cost, of a loop's round or of a program."""
    return {
        "per": per,
        "matrix_flops_per_element": 2 * products * heads.head_dim,
        "matrix_cost": FLOAT32_COST if heads.dtype == torch.float32 else 1,
    }


def forward_cases(architecture: str, heads: Heads, has_dropout: bool) -> list[Case]:
    """Build the forward kernel's cases: of long sequences, and of short ones that differ."""
    cases = {}
    for end, longest in (("", 512), (", short", 128)):
        tile = attention.forward_tile(
            architecture, heads.head_dim, heads.dtype, has_dropout, longest
        )
        key = tuple(tile.items())
        if not tile["DESCRIPTORS"]:
            tile = {**tile, "key_tiles": None, "value_tiles": None}
        case = Case(
            name("forward", heads, has_dropout, end),
            attention_forward.attention_forward_kernel,
            types(heads)
            | described(heads, tile["KEYS"], "key_tiles value_tiles", tile["DESCRIPTORS"]),
            constants(heads, has_dropout) | tile,
            tile["QUERIES"] * tile["KEYS"] * tile["TILES"],
            **work(heads, products=2),
        )
        cases.setdefault(key, case)
    return list(cases.values())


def probabilities_case() -> Case:
    """Build the case of the kernel for study, whose loop writes two bytes a score."""
    tile = attention_probabilities.probabilities_tile(BASE.dtype)
    return Case(
        "attention probabilities",
        attention_probabilities.attention_probabilities_kernel,
        types(BASE) | {"probabilities_ptr": "*bf16", "longest": "i32"},
        constants(BASE) | tile,
        tile["QUERIES"] * tile["KEYS"],
        bytes_per_element=2,
        **work(BASE, products=1),
    )


def dq_case(architecture: str, heads: Heads, has_dropout: bool) -> Case:
    """Build the case of dquery's kernel."""
    tile = attention_backward.dq_tile(architecture, heads.head_dim, heads.dtype)
    return Case(
        name("dq", heads, has_dropout),
        attention_dq.attention_dq_kernel,
        types(heads)
        | described(heads, tile["KEYS"], "key_source value_source", tile["DESCRIPTORS"]),
        constants(heads, has_dropout) | tile,
        tile["QUERIES"] * tile["KEYS"],
        **work(heads, products=3),
    )


def dkdv_case(architecture: str, heads: Heads, has_dropout: bool) -> Case:
    """Build the case of the kernel for dkey and dvalue."""
    tile = attention_backward.dkdv_tile(architecture, heads.head_dim, heads.dtype, has_dropout)
    return Case(
        name("dkdv", heads, has_dropout),
        attention_dkdv.attention_dkdv_kernel,
        types(heads)
        | described(heads, tile["QUERIES"], "query_source doutput_source", tile["DESCRIPTORS"]),
        constants(heads, has_dropout) | tile,
        tile["QUERIES"] * tile["KEYS"],
        **work(heads, products=4),
    )


def short_backward_case(architecture: str, heads: Heads, has_dropout: bool) -> Case:
    """Build the case of the kernel for sequences of up to 128 tokens, which has no loop."""
    tile = attention_backward.short_tile(
        architecture, attention_backward.longest_short(architecture)
    )
    return Case(
        name("short backward", heads, has_dropout),
        attention_short_backward.attention_short_backward_kernel,
        types(heads),
        constants(heads, has_dropout) | tile,
        tile["BLOCK"] ** 2,
        **work(heads, products=5, per="program"),
    )


def attention_cases(architecture: str) -> list[Case]:
    """List the attention kernels in the configurations that ship for this architecture.

    Of heads of 32, as MiniLM has, and of 16 those with dropout alone: it takes the most registers.
    """
    cases = [probabilities_case()]
    both = itertools.product((BASE, WIDE, EXACT), (False, True))
    for heads, dropped in (*both, (NARROW, True), (NARROWEST, True)):
        cases += [
            *forward_cases(architecture, heads, dropped),
            dq_case(architecture, heads, dropped),
            dkdv_case(architecture, heads, dropped),
        ]
        if heads.head_dim <= 64 and heads.dtype.itemsize == 2:  # the others have no such kernel
            cases.append(short_backward_case(architecture, heads, dropped))
    return cases
