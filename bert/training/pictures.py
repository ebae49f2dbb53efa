"""The lines of statistics as one picture: a curve for each layer, from dark to light."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bert.training.log import read_log
from bert.training.progress import say

_LAYER = re.compile(r"\blayers\.(\d+)\.")
_EMBEDDINGS, _OTHERS = -1, 1_000_000  # they stand before the layers, and after
Curves = dict[int, list[float]]


def draw_statistics(log: Path, picture: Path) -> None:
    """Draw a run's lines of statistics; nothing where there are none.

    Without matplotlib it says so and draws nothing.
    """
    lines = list(read_log(log, "statistics"))
    if not lines:
        return
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        say("no picture of the statistics: install the extra report for matplotlib")
        return
    figure: Any = Figure(figsize=(10, 6.6), layout="constrained")
    axes = figure.subplots(2, 2).flat
    steps = [line["step"] for line in lines]
    panels = (
        ("Norm of the gradient", [by_layer(line["gradient_norm"]) for line in lines], True),
        ("Norm of the parameters", [by_layer(line["parameter_norm"]) for line in lines], False),
        ("Update ratio ‖Δw‖ / ‖w‖", [update_ratios(line) for line in lines], True),
    )
    for axis, (title, values, is_log) in zip(axes, panels, strict=False):
        _draw(axis, steps, values)
        axis.set(title=title, yscale="log" if is_log else "linear")
    if "attention_entropy" in lines[0]:
        _draw_entropy(axes[3], steps, lines)
    else:
        axes[3].set_axis_off()
    for axis in axes:
        axis.set_xlabel("steps")
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    figure.savefig(picture, dpi=150)


def by_layer(norms: Mapping[str, Any]) -> dict[int, float]:
    """Put tensors' norms together: by layer from 0; −1 the embeddings; 1,000,000 the heads."""
    squares: dict[int, float] = {}
    for name, norm in norms.items():
        found = _LAYER.search(name)
        part = int(found[1]) if found else _EMBEDDINGS if "embeddings" in name else _OTHERS
        squares[part] = squares.get(part, 0.0) + float(norm) ** 2
    return {part: math.sqrt(square) for part, square in sorted(squares.items())}


def update_ratios(line: Mapping[str, Any]) -> dict[int, float]:
    """Return the ratios of the layers as wholes; tensors that are zero are left out."""
    ratios = {name: ratio for name, ratio in line["update_ratio"].items() if ratio is not None}
    lengths = {name: float(line["parameter_norm"][name]) for name in ratios}
    changes = by_layer({name: float(ratios[name]) * lengths[name] for name in ratios})
    wholes = by_layer(lengths)
    return {part: change / wholes[part] for part, change in changes.items()}


def _draw(axis: Any, steps: list[int], values: list[dict[int, float]]) -> None:
    parts = sorted({part for value in values for part in value})
    layers = [part for part in parts if part not in (_EMBEDDINGS, _OTHERS)]
    for part in parts:
        curve = [value.get(part, math.nan) for value in values]
        axis.plot(steps, curve, **_style(part, len(layers)))


def _style(part: int, layers: int) -> dict[str, Any]:
    if part == _EMBEDDINGS:
        return {"color": "0.45", "linestyle": "--", "label": "embeddings"}
    if part == _OTHERS:
        return {"color": "tab:red", "linestyle": ":", "label": "heads"}
    return {"color": _color(part, layers), "label": f"layer {part + 1}"}


def _color(layer: int, layers: int) -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"](0.9 * layer / max(layers - 1, 1))


def _draw_entropy(axis: Any, steps: list[int], lines: list[dict[str, Any]]) -> None:
    """Draw each head's entropy thin, the mean of a layer's heads thick."""
    layers = len(lines[0]["attention_entropy"])
    for layer in range(layers):
        heads = [[float(head) for head in line["attention_entropy"][layer]] for line in lines]
        color = _color(layer, layers)
        axis.plot(steps, heads, color=color, linewidth=0.6, alpha=0.5)
        axis.plot(steps, [sum(head) / len(head) for head in heads], color=color, linewidth=1.8)
    axis.plot(
        steps, [line["log_length"] for line in lines], color="0.45", linestyle=":",
        label="log length",
    )  # fmt: skip
    axis.set(title="Entropy of the attention: heads thin, their mean thick", ylabel="nats")
    axis.legend(frameon=False)
