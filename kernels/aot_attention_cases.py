"""Which attention kernels `aot.py` compiles: bfloat16, 12 heads of 64, as BERT-base has them.

A loop's round is counted. What it divides by is the scores of one round, queries times keys.
"""

import math
from typing import Any

import torch

from kernels import (
    attention,
    attention_backward,
    attention_dkdv,
    attention_dq,
    attention_probabilities,
    attention_short_backward,
)
from kernels.aot_cases import Case

HEAD_DIM = 64
POINTERS = (
    "query_ptr key_ptr value_ptr output_ptr doutput_ptr dquery_ptr dkey_ptr dvalue_ptr "
    "query_source key_source value_source doutput_source"
)
STRIDES = (
    "query_stride query_head_stride key_stride key_head_stride value_stride value_head_stride"
)
TYPES = {
    POINTERS: "*bf16",
    "lse_ptr delta_ptr": "*fp32",
    "cu_seqlens_ptr": "*i32",
    "seed_ptr": "*i64",
    STRIDES: "i32:16",
    "tokens heads tiles stream threshold": "i32",
}
CONSTANTS = {
    "SCALE": math.log2(math.e) / math.sqrt(HEAD_DIM),
    "HEAD_DIM": HEAD_DIM,
    "PRECISION": "ieee",
}


def flags(has_dropout: bool) -> dict[str, Any]:
    """Say whether there is dropout, as a launcher does."""
    return {"HAS_DROPOUT": has_dropout} | ({} if has_dropout else {"seed_ptr": None})


def forward_cases(architecture: str, has_dropout: bool) -> list[Case]:
    """Build the forward kernel's cases: of long sequences, and of short ones that differ."""
    cases = {}
    for name, longest in (("", 512), (", short", 128)):
        tile = attention.forward_tile(architecture, HEAD_DIM, torch.bfloat16, has_dropout, longest)
        key = tuple(tile.items())
        descriptor = f"tensordesc<bf16[{tile['KEYS']}, {HEAD_DIM}]>"
        described = {"key_tiles value_tiles": descriptor}
        if not tile["DESCRIPTORS"]:
            described, tile = {}, {**tile, "key_tiles": None, "value_tiles": None}
        case = Case(
            f"attention forward{', dropout' if has_dropout else ''}{name}",
            attention.attention_forward_kernel,
            TYPES | described,
            CONSTANTS | flags(has_dropout) | tile,
            tile["QUERIES"] * tile["KEYS"] * tile["TILES"],
            per="loop",
            matrix_flops_per_element=4 * HEAD_DIM,
        )
        cases.setdefault(key, case)
    return list(cases.values())


def probabilities_case() -> Case:
    """Build the case of the kernel for study, whose loop writes two bytes a score."""
    tile = attention_probabilities.probabilities_tile(torch.bfloat16)
    return Case(
        "attention probabilities",
        attention_probabilities.attention_probabilities_kernel,
        TYPES | {"probabilities_ptr": "*bf16", "longest": "i32"},
        CONSTANTS | tile,
        tile["QUERIES"] * tile["KEYS"],
        per="loop",
        bytes_per_element=2,
        matrix_flops_per_element=2 * HEAD_DIM,
    )


def dq_case(architecture: str, has_dropout: bool) -> Case:
    """Build the case of dquery's kernel."""
    tile = attention_backward.dq_tile(architecture, HEAD_DIM, torch.bfloat16)
    descriptor = f"tensordesc<bf16[{tile['KEYS']}, {HEAD_DIM}]>"
    described = {"key_source value_source": descriptor} if tile["DESCRIPTORS"] else {}
    return Case(
        f"attention dq{', dropout' if has_dropout else ''}",
        attention_dq.attention_dq_kernel,
        TYPES | described,
        CONSTANTS | flags(has_dropout) | tile,
        tile["QUERIES"] * tile["KEYS"],
        per="loop",
        matrix_flops_per_element=6 * HEAD_DIM,
    )


def dkdv_case(architecture: str, has_dropout: bool) -> Case:
    """Build the case of the kernel for dkey and dvalue."""
    tile = attention_backward.dkdv_tile(architecture, HEAD_DIM, torch.bfloat16, has_dropout)
    descriptor = f"tensordesc<bf16[{tile['QUERIES']}, {HEAD_DIM}]>"
    described = {"query_source doutput_source": descriptor} if tile["DESCRIPTORS"] else {}
    return Case(
        f"attention dkdv{', dropout' if has_dropout else ''}",
        attention_dkdv.attention_dkdv_kernel,
        TYPES | described,
        CONSTANTS | flags(has_dropout) | tile,
        tile["QUERIES"] * tile["KEYS"],
        per="loop",
        matrix_flops_per_element=8 * HEAD_DIM,
    )


def short_backward_case(architecture: str, has_dropout: bool) -> Case:
    """Build the case of the kernel for sequences of up to 128 tokens, which has no loop."""
    tile = attention_backward.short_tile(architecture, attention_backward.SHORT)
    return Case(
        f"attention short backward{', dropout' if has_dropout else ''}",
        attention_short_backward.attention_short_backward_kernel,
        TYPES,
        CONSTANTS | flags(has_dropout) | tile,
        tile["BLOCK"] ** 2,
        matrix_flops_per_element=10 * HEAD_DIM,
    )


def attention_cases(architecture: str) -> list[Case]:
    """List the attention kernels in the configurations that ship for this architecture."""
    forward = [case for dropped in (False, True) for case in forward_cases(architecture, dropped)]
    backward = [
        case(architecture, has_dropout)
        for case in (dq_case, dkdv_case, short_backward_case)
        for has_dropout in (False, True)
    ]
    return [*forward, *backward, probabilities_case()]
