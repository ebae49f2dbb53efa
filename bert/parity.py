"""`bert parity`: hold a model of ours against Hugging Face's on the same weights and batch.

What is compared is in comparison.py, and the table in parity_table.py. No torch is imported, so
that `--help` answers at once.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bert.parity_table import Row, table, worst_of_each_kind

if TYPE_CHECKING:
    import torch

    from kernels import KernelSet

# With more rows than this the layers of one kind share a row.
SUMMARY_FROM = 60


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
