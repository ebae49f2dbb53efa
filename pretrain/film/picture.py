"""The film of a run as one picture: a column for each snapshot, from the first to the last."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bert.training.progress import say

_SHORT = (
    ("attention.self.", ""),
    ("attention.output.dense", "attention output"),
    ("intermediate.dense", "up"),
    ("output.dense", "down"),
    ("embeddings.word_embeddings", "words"),
    ("embeddings.position_embeddings", "positions"),
    ("embeddings.token_type_embeddings", "segments"),
    ("pooler.dense", "pooler"),
    ("cls.predictions.transform.dense", "masked-word head"),
    ("cls.predictions.decoder", "decoder"),
    ("cls.seq_relationship", "next-sentence head"),
)
MOST_STEPS = 12
"""Steps up to which each has its number; with more every second or third has."""


def draw_film(film: Mapping[str, Any], picture: Path) -> None:
    """Draw what `bert pretrain film` has measured.

    Without matplotlib it says so and draws nothing.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        say("no picture of the film: install the extra report for matplotlib")
        return
    frames = film["frames"]
    names = list(frames[0]["drift"]["from_first"])
    height = max(8.4, 1.6 + 0.15 * len(names))
    figure: Any = Figure(figsize=(14, height), layout="constrained")
    panels = figure.subplot_mosaic("afp;bfp", width_ratios=(1.25, 1, 1))
    loss, heads, first, previous = (panels[name] for name in "abfp")
    _draw_losses(loss, film["bands"], frames)
    _draw_heads(heads, film["uniform_head"], frames)
    _draw_drift(figure, first, frames, "from_first", "Moved since the first snapshot")
    _draw_drift(figure, previous, frames, "from_previous", "Moved since the one before")
    first.set_yticks(range(len(names)), [short_name(name) for name in names], fontsize=7)
    previous.set_yticks([])
    for axis in (loss, heads, first, previous):
        _number_steps(axis, [frame["step"] for frame in frames])
    figure.savefig(picture, dpi=150)


def short_name(name: str) -> str:
    """Shorten a matrix's name: "3 down" for "bert.encoder.layer.3.output.dense.weight"."""
    short = name.removeprefix("bert.").removesuffix(".weight")
    for long, brief in _SHORT:
        short = short.replace(long, brief)
    return re.sub(r"encoder\.layer\.(\d+)\.", r"\1 ", short)


def _draw_losses(axis: Any, bands: Sequence[Mapping[str, Any]], frames: Sequence[Any]) -> None:
    """Draw the loss of each band, dark for frequent tokens, and what frequency alone costs."""
    from matplotlib import colormaps

    steps = range(len(frames))
    for index, band in enumerate(bands):
        color = colormaps["viridis"](0.88 * index / max(len(bands) - 1, 1))
        curve = [frame["band_losses"][index] for frame in frames]
        label = f"{band['name']}  ({band['tokens']:,} tokens)"
        axis.plot(steps, curve, "o-", color=color, markersize=3.5, label=label)
        axis.axhline(band["unigram_loss"], color=color, linestyle=":", linewidth=1)
    mean = [frame["loss"] for frame in frames]
    axis.plot(steps, mean, color="0.25", linewidth=2.2, label="all")
    axis.set(ylim=(0, None), ylabel="loss of a masked token, nats")
    axis.set_title("Loss by a token's share of the training text\n(dotted: by frequency alone)")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize="small")


def _draw_heads(axis: Any, uniform: Mapping[str, float], frames: Sequence[Any]) -> None:
    """Draw the best head's score for each type, and the level of a head that looks at all alike.

    The legend names the layer and the head, from 0, that is the best in the end.
    """
    for index, (name, level) in enumerate(uniform.items()):
        best = [max(map(max, frame["heads"][name])) for frame in frames]
        layers = frames[-1]["heads"][name]
        layer, head = next(
            (layer, row.index(best[-1])) for layer, row in enumerate(layers) if best[-1] in row
        )
        color = f"C{index}"
        label = f"{name.replace('_', ' ')}  (in the end {layer}.{head})"
        axis.plot(range(len(frames)), best, "o-", color=color, markersize=3.5, label=label)
        axis.axhline(level, color=color, linestyle=":", linewidth=1)
    axis.set(ylim=(0, None), ylabel="share of its attention")
    axis.set_title("The best head of each type\n(dotted: one that looks at all tokens alike)")
    axis.spines[["top", "right"]].set_visible(False)
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.25), "ncols": 2}
    axis.legend(frameon=False, fontsize="small", **below)


def _draw_drift(figure: Any, axis: Any, frames: Sequence[Any], since: str, title: str) -> None:
    """Draw how far each matrix has moved, as shades: a row a matrix."""
    columns = [frame["drift"][since].values() for frame in frames]
    cells = [[float("nan") if x is None else x for x in row] for row in zip(*columns, strict=True)]
    shades = axis.imshow(cells, aspect="auto", cmap="magma_r", vmin=0, interpolation="nearest")
    axis.set_title(title)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    bar = figure.colorbar(shades, ax=axis, shrink=0.6, label="‖Δw‖ / ‖w‖")
    bar.outline.set_visible(False)


def _number_steps(axis: Any, steps: Sequence[int]) -> None:
    every = -(-len(steps) // MOST_STEPS)
    places = range(0, len(steps), every)
    axis.set_xticks(places, [f"{steps[place]:,}" for place in places], rotation=45, ha="right")
    axis.set_xlabel("finished steps")
