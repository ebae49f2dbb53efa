"""What two models differ by, as rows of a table."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


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
