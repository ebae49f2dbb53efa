"""Pictures: what is taken for what, what confidences are worth, numbers over numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from finetune.evaluation.calibration import Bin, Calibration

BLUE, RED, GREY = "#2f6db3", "#c0392b", "#8a8f98"
MOST_NUMBERED = 24
"""Classes up to which each cell has its number; with more there is no room."""
MOST_NAMED = 60
"""Classes up to which each has its name on the axes."""
LONGEST_NAME = 24


def draw_confusion(
    confusion: Int64[np.ndarray, "true predicted"],
    names: tuple[str, ...],
    picture: Path,
    unit: str = "rows",
    title: str | None = None,
) -> None:
    """Draw the confusion matrix: shares of each true class as shades, `unit` as numbers."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    classes = len(names)
    side = min(12.0, 2.6 + 0.55 * classes)
    figure: Any = Figure(figsize=(side + 1.4, side), layout="constrained")
    axis = figure.subplots()
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    edges = np.arange(classes + 1) - 0.5
    gap = min(1.5, 20 / classes)
    cells = axis.pcolormesh(
        edges, edges, shares, cmap="Blues", vmin=0, edgecolors="white", linewidth=gap
    )
    axis.set_aspect("equal")
    axis.invert_yaxis()
    if classes <= MOST_NUMBERED:
        _number(axis, confusion, shares)
    _name(axis, [_short(name) for name in names] if classes <= MOST_NAMED else [])
    axis.set(xlabel="predicted", ylabel="true")
    right = f"{np.trace(confusion):,} of {confusion.sum():,} {unit} right"
    axis.set_title(title or right, fontsize=12)
    axis.spines[:].set_visible(False)
    bar = figure.colorbar(cells, ax=axis, shrink=0.8, format=PercentFormatter(1, decimals=0))
    bar.set_label(f"of the true class's {unit}")
    bar.outline.set_visible(False)
    figure.savefig(picture, dpi=150)


def _number(
    axis: Any,
    confusion: Int64[np.ndarray, "true predicted"],
    shares: Float[np.ndarray, "true predicted"],
) -> None:
    """Write each cell's rows into it, light on a dark shade."""
    size = max(5.0, min(12.0, 130 / (len(confusion) + 6)))
    for true, predicted in np.ndindex(confusion.shape):
        is_dark = shares[true, predicted] > 0.55 * shares.max()
        axis.text(
            predicted, true, f"{confusion[true, predicted]:,}", ha="center", va="center",
            fontsize=size, color="white" if is_dark else "0.15",
        )  # fmt: skip


def _name(axis: Any, names: list[str]) -> None:
    """Write the classes' names along both axes, turned where they would meet."""
    longest = max(map(len, names), default=0)
    if len(names) > 12:
        how = {"rotation": 90}
    elif longest * len(names) > 36:
        how = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    else:
        how = {}
    axis.set_xticks(range(len(names)), names, **how)
    axis.set_yticks(range(len(names)), names)
    axis.tick_params(length=0)


def draw_calibration(calibration: Calibration, classes: int, picture: Path) -> None:
    """Draw accuracy over confidence with Wilson's intervals, and below how many rows there are."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure: Any = Figure(figsize=(5.6, 6.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    _draw_reliability(above, calibration.bins)
    left = 0.9 / classes  # no prediction is less sure than one of so many classes
    bottom = min(left, *(each.interval.low for each in calibration.bins))
    above.set(xlim=(left, 1.005), ylim=(bottom - 0.01, 1.015), ylabel="right")
    error, chance = calibration.error, calibration.by_chance
    above.set_title(
        f"Expected calibration error {error:.3f} (by chance alone {chance:.3f})", fontsize=11
    )
    below.bar(
        [each.low for each in calibration.bins],
        [each.rows for each in calibration.bins],
        [each.high - each.low for each in calibration.bins],
        **{"align": "edge", "color": BLUE, "alpha": 0.55, "edgecolor": "white"},
    )
    below.set(xlabel="confidence", ylabel="rows")
    for axis in (above, below):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.set_axisbelow(True)
    for axis in (above.yaxis, below.xaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    figure.savefig(picture, dpi=150)


def _draw_reliability(axis: Any, bins: Sequence[Bin]) -> None:
    """Draw the bins' accuracies, and what lies between them and a calibrated model's."""
    sure, right = [each.confidence for each in bins], [each.accuracy for each in bins]
    lows, highs = ([each.interval[end] for each in bins] for end in (0, 1))
    axis.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="calibrated")
    axis.fill_between(sure, sure, right, color=RED, alpha=0.13, linewidth=0, label="the error")
    axis.vlines(sure, lows, highs, color=BLUE, linewidth=1.2)
    label = "the model, with 95% intervals"
    axis.plot(sure, right, "o-", color=BLUE, markersize=5, linewidth=1.5, label=label)
    axis.legend(frameon=False, loc="upper left")


def draw_scatter(
    labels: Float[np.ndarray, " rows"], predicted: Float[np.ndarray, " rows"], picture: Path
) -> None:
    """Draw predicted numbers over the true ones, and the line on which they are the same."""
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(5.6, 5.6), layout="constrained")
    axis = figure.subplots()
    ends = [min(labels.min(), predicted.min()), max(labels.max(), predicted.max())]
    axis.plot(ends, ends, color=GREY, linestyle="--", linewidth=1, label="right")
    faint = float(np.clip(60 / len(labels), 0.08, 0.6))  # so that many points show as a density
    axis.scatter(labels, predicted, s=14, color=BLUE, alpha=faint, linewidths=0)
    axis.set(xlabel="true", ylabel="predicted")
    off = float(np.abs(predicted - labels).mean())
    axis.set_title(f"{len(labels):,} rows, off by {off:.3g} on average", fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.legend(frameon=False, loc="upper left")
    figure.savefig(picture, dpi=150)


def _short(name: str) -> str:
    """Cut a name; a dollar sign begins no formula."""
    cut = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
    return cut.replace("$", r"\$")
