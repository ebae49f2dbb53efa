"""`bert parity`: hold a model of ours against Hugging Face's on the same weights and batch.

What is compared is in comparison.py; here are the command and its table. No torch is imported,
so that `--help` answers at once.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

    from kernels import KernelSet

# With more rows than this the layers of one kind share a row.
SUMMARY_FROM = 60


@dataclass(frozen=True)
class Row:
    """One tensor of ours beside theirs."""

    name: str
    """As Hugging Face calls the module or the parameter; `grad` is put before a gradient."""
    shape: tuple[int, ...]
    difference: float
    """The greatest absolute difference."""
    largest: float
    """The greatest absolute value of theirs."""
    tolerance: float
    """The greatest difference allowed."""

    @property
    def ok(self) -> bool:
        """Whether the two agree; never where a difference is NaN."""
        return self.difference <= self.tolerance

    @property
    def kind(self) -> str:
        """The name without the layer's number."""
        return re.sub(r"(?<=\blayer\.)\d+", "*", self.name)


@dataclass(frozen=True)
class Parity:
    """Compare a model with Hugging Face's on the same weights and a random, ragged batch.

    Exits with 1 where a difference is over its tolerance: 1e-5 in float32 and 1e-10 in float64
    (or 16 roundings of the largest value, where that is more), for gradients 1e-4 and 1e-9 of
    the largest value.
    """

    model: str
    """A model's directory, or a preset (tiny … large) with random weights."""
    dtype: Literal["float32", "float64"] = "float32"
    """What both compute in."""
    kernels: Literal["torch", "reference"] = "torch"
    """The operations that ours runs on."""
    gradients: bool = False
    """Compare every parameter's gradient too."""
    length: int = 48
    """The longest sequence of the batch, in tokens."""
    seed: int = 0
    """Draws the batch, and a preset's weights."""
    all: bool = False
    """Print a row for every layer, however many there are."""

    def __post_init__(self) -> None:
        """Refuse what can't be run, naming the field."""
        if self.length < 2:
            raise ValueError(f"length: expected at least 2, got {self.length}")


def compare(
    source: str,
    dtype: "torch.dtype | None" = None,
    kernels: "KernelSet | None" = None,
    gradients: bool = False,
    length: int = 48,
    seed: int = 0,
) -> list[Row]:
    """Compare a directory's or a preset's model with Hugging Face's.

    Args:
        source: the directory, or the preset.
        dtype: what both compute in; float32 where it is None.
        kernels: see `Bert`.
        gradients: whether to compare each parameter's gradient too.
        length: of the longest sequence, in tokens.
        seed: draws the batch, and a preset's weights.

    Raises:
        ValueError: neither a directory nor a preset, or a directory that can't be loaded.
        ModuleNotFoundError: transformers isn't there; it is the extra `parity`.
    """
    from bert.comparison import compare_source

    return compare_source(source, dtype, kernels, gradients, length, seed)


def run(command: Parity) -> int:
    """Compare, print the table, and return the exit code: 1 where something is over tolerance."""
    import torch

    from kernels import REFERENCE, TORCH

    rows = compare(
        command.model,
        {"float32": torch.float32, "float64": torch.float64}[command.dtype],
        {"torch": TORCH, "reference": REFERENCE}[command.kernels],
        command.gradients,
        command.length,
        command.seed,
    )
    print(table(rows if command.all or len(rows) <= SUMMARY_FROM else worst_of_each_kind(rows)))
    failed = sum(not row.ok for row in rows)
    print(f"{len(rows)} compared in {command.dtype}, {failed} over tolerance")
    return 1 if failed else 0


def worst_of_each_kind(rows: Sequence[Row]) -> list[Row]:
    """Keep the row of each kind that comes closest to its tolerance, or goes furthest over."""
    worst: dict[str, Row] = {}
    for row in rows:
        if row.kind not in worst or _excess(row) > _excess(worst[row.kind]):
            worst[row.kind] = row
    return list(worst.values())


def _excess(row: Row) -> float:
    if row.difference != row.difference:
        return float("inf")
    return row.difference / row.tolerance if row.tolerance else row.difference * float("inf")


def table(rows: Iterable[Row]) -> str:
    """Lay the rows out in columns."""
    cells = [("name", "shape", "max difference", "largest value", "tolerance", "")]
    cells += [
        (
            row.name,
            "×".join(map(str, row.shape)) or "scalar",
            f"{row.difference:.2e}",
            f"{row.largest:.2e}",
            f"{row.tolerance:.1e}",
            "ok" if row.ok else "FAIL",
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(6)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in (0, 1, 5) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )
