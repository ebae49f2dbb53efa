"""Which kernels `aot.py` compiles: each one that ships, as its launcher would call it.

Dtypes and sizes are BERT-base's in bfloat16; the tiles come from the launchers' own tables.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from kernels import (
    add_layer_norm,
    bias_gelu,
    column_sums,
    cross_entropy,
    dropout,
    embedding,
    lamb,
    layer_norm,
    row_norm,
    segment_sum,
)

HIDDEN = 768
VOCAB = 30522


@dataclass(frozen=True)
class Case:
    """One kernel with the types of its arguments, and what is known of the work it must do."""

    name: str
    kernel: Any
    types: dict[str, str]
    """Triton's type of each argument; a key may list several names."""
    constants: dict[str, Any]
    """Compile-time arguments and the options num_warps and num_stages."""
    elements: int
    """Elements of one program, or of one round of its loop: what instructions are divided by."""
    per: Literal["program", "loop"] = "program"
    bytes_per_element: float | int = 0
    """What must move between the GPU's memory and its processors."""
    matrix_flops_per_element: int = 0
    """What the mathematics asks of the tensor cores: more than that in the binary is waste."""
    matrix_cost: int = 1
    """Of one of those operations, over one of bfloat16."""
    options: tuple[str, ...] = field(default=("num_warps", "num_stages"), repr=False)


def layer_norm_cases() -> list[Case]:
    """LayerNorm, alone and with what goes before it."""
    forward, backward = row_norm.forward_tile(HIDDEN), row_norm.backward_tile(HIDDEN)
    rows = "x_ptr residual_ptr y_ptr sum_ptr dy_ptr dsum_ptr dx_ptr dresidual_ptr".split()
    vectors = "x_bias_ptr weight_ptr bias_ptr".split()
    types = {
        **dict.fromkeys([*rows, *vectors], "*bf16"),
        "mean_ptr rstd_ptr partials_ptr": "*fp32",
        "seed_ptr": "*i64",
        "stream threshold tokens rows_per_program": "i32",
    }
    eps = {"EPS": 1e-12, "HIDDEN": HIDDEN}
    cases = [
        Case(
            "layer_norm forward",
            layer_norm.layer_norm_forward_kernel,
            types,
            eps | forward,
            forward["BLOCK_ROWS"] * HIDDEN,
            bytes_per_element=4,
        ),
        Case(
            "layer_norm backward",
            layer_norm.layer_norm_backward_kernel,
            types,
            {"HIDDEN": HIDDEN} | backward,
            backward["BLOCK_ROWS"] * HIDDEN,
            per="loop",
            bytes_per_element=6,
        ),
    ]
    for name, dropped in (("", False), (", dropout", True)):
        flags = {"HIDDEN": HIDDEN, "HAS_DROPOUT": dropped} | (
            {} if dropped else {"seed_ptr": None}
        )
        cases += [
            Case(
                f"add_layer_norm forward{name}",
                add_layer_norm.add_layer_norm_forward_kernel,
                types,
                eps | flags | forward,
                forward["BLOCK_ROWS"] * HIDDEN,
                bytes_per_element=8,
            ),
            Case(
                f"add_layer_norm backward{name}",
                add_layer_norm.add_layer_norm_backward_kernel,
                types,
                {"HAS_DSUM": False, "dsum_ptr": None} | flags | backward,
                backward["BLOCK_ROWS"] * HIDDEN,
                per="loop",
                bytes_per_element=8 if dropped else 6,
            ),
        ]
    return cases


def bias_gelu_cases() -> list[Case]:
    """Both forms of GELU, over the features inside a feed-forward network."""
    tile = bias_gelu.tile(4 * HIDDEN)
    elements = tile["BLOCK_ROWS"] * tile["BLOCK_COLUMNS"]
    types = {
        "x_ptr y_ptr dy_ptr dx_ptr bias_ptr": "*bf16",
        "partials_ptr": "*fp32",
        "tokens rows_per_program": "i32",
    }
    cases = []
    for form in ("erf", "tanh"):
        constants = {"TANH": form == "tanh", "FEATURES": 4 * HIDDEN} | tile
        cases += [
            Case(
                f"bias_gelu forward, {form}",
                bias_gelu.bias_gelu_forward_kernel,
                types,
                constants,
                elements,
                bytes_per_element=4,
            ),
            Case(
                f"bias_gelu backward, {form}",
                bias_gelu.bias_gelu_backward_kernel,
                types,
                constants,
                elements,
                per="loop",
                bytes_per_element=6,
            ),
        ]
    return cases


def embedding_cases() -> list[Case]:
    """The embeddings' sum with its LayerNorm and dropout, and the gradients of its tables."""
    forward, backward = row_norm.forward_tile(HIDDEN), row_norm.backward_tile(HIDDEN)
    types = {
        "word_ptr position_ptr token_type_ptr weight_ptr bias_ptr y_ptr dy_ptr dsum_ptr": "*bf16",
        "mean_ptr rstd_ptr partials_ptr": "*fp32",
        "indices_ptr seed_ptr order_ptr index_ptr": "*i64",
        "begin_ptr end_ptr": "*i32",
        "stream threshold tokens rows_per_program skipped": "i32",
    }
    flags = {"HAS_DROPOUT": True, "HIDDEN": HIDDEN}
    sums = segment_sum.tile(HIDDEN) | {"COLUMNS": HIDDEN, "PIECE": segment_sum.PIECE}
    return [
        Case(
            "embedding forward, dropout",
            embedding.embedding_forward_kernel,
            types,
            {"EPS": 1e-12} | flags | forward,
            forward["BLOCK_ROWS"] * HIDDEN,
            bytes_per_element=4,
        ),
        Case(
            "embedding backward, dropout",
            embedding.embedding_backward_kernel,
            types,
            flags | backward,
            backward["BLOCK_ROWS"] * HIDDEN,
            per="loop",
            bytes_per_element=6,
        ),
    ] + [
        Case(
            f"segment_sum, {name}",
            segment_sum.segment_sum_kernel,
            types | {"rows_ptr": source, "sums_ptr": target},
            {"PIECES": second} | sums,
            sums["BLOCK_ROWS"] * sums["BLOCK_COLUMNS"],
            per="loop",
            bytes_per_element=moved,
        )
        for name, second, source, target, moved in (
            ("rows", False, "*bf16", "*fp32", 2),
            ("pieces", True, "*fp32", "*bf16", 4),
        )
    ]


def dropout_cases() -> list[Case]:
    """Dropout alone, as before a classifier."""
    tile = row_norm.forward_tile(HIDDEN)
    return [
        Case(
            "dropout",
            dropout.dropout_kernel,
            {"x_ptr y_ptr": "*bf16", "seed_ptr": "*i64", "stream threshold rows": "i32"},
            {"HIDDEN": HIDDEN} | tile,
            tile["BLOCK_ROWS"] * HIDDEN,
            bytes_per_element=4,
        )
    ]


def column_sums_cases() -> list[Case]:
    """The sums that the backward kernels leave to be added."""
    tile = {"BLOCK_ROWS": 32, "BLOCK_COLUMNS": column_sums.BLOCK_COLUMNS, "num_warps": 4}
    types = {"partials_ptr sums_ptr": "*fp32", "rows columns": "i32"}
    return [
        Case(
            "column_sums",
            column_sums.column_sums_kernel,
            types,
            tile,
            tile["BLOCK_ROWS"] * tile["BLOCK_COLUMNS"],
            per="loop",
            bytes_per_element=4,
        )
    ]


def cross_entropy_cases() -> list[Case]:
    """The masked-LM loss of a row; its logits don't leave the second level cache."""
    padded = cross_entropy.padded_vocab(VOCAB)
    tile = cross_entropy.tile(padded)
    constants = {
        "LOG2E": cross_entropy.LOG2E,
        "IGNORED": cross_entropy.IGNORED,
        "VOCAB": VOCAB,
        "PADDED": padded,
        **tile,
    }
    types = {"logits_ptr": "*bf16", "bias_ptr losses_ptr": "*fp32", "labels_ptr": "*i64"}
    return [
        Case(
            name,
            cross_entropy.cross_entropy_kernel,
            types,
            {"HAS_GRADIENT": has_gradient} | constants,
            tile["BLOCK"],
            per="loop",
        )
        for name, has_gradient in (("cross_entropy", False), ("cross_entropy, gradient", True))
    ]


def lamb_cases() -> list[Case]:
    """The two halves of an optimiser step, on a tensor whose size four divides."""
    types = {
        "table_ptr places_ptr": "*i64",
        "partials_ptr": "*fp32",
        "rate_ptr": "*fp64",
        "chunks": "i32",
        "rest1 rest2 eps decay": "fp32",
    }
    betas = {"LOG2_BETA1": math.log2(0.9), "LOG2_BETA2": math.log2(0.999)}
    tile = {"ALIGNED": True, "CHUNK": lamb.CHUNK, "BLOCK": lamb.BLOCK, "num_warps": 4}
    kernels = (
        ("lamb moments", lamb.lamb_moments_kernel, {}, 24),
        ("lamb apply", lamb.lamb_apply_kernel, {"ADAPTED": True}, 16),
    )
    return [
        Case(name, kernel, types, tile | betas | flags, lamb.BLOCK, "loop", moved)
        for name, kernel, flags, moved in kernels
    ]


FAMILIES: tuple[Callable[[], list[Case]], ...] = (
    layer_norm_cases,
    column_sums_cases,
    cross_entropy_cases,
    lamb_cases,
    bias_gelu_cases,
    embedding_cases,
    dropout_cases,
)


def cases(architecture: str) -> list[Case]:
    """List every kernel in the configurations that ship for this architecture."""
    return [case for family in FAMILIES for case in family()]
