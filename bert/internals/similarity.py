"""How alike layers represent the same tokens: linear CKA, within a model or between two.

For the states X [tokens, width] and Y [tokens, other width] of the same tokens, each column of
mean 0 (Kornblith et al. 2019, section 3):

    CKA = ‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖)        norms of Frobenius

It is 1 for states that a rotation and a factor turn into each other, and doesn't ask which neuron
is which: so it compares layers, and models of other widths or seeds. It says nothing about single
tokens, and takes many more tokens than a state has dimensions: with few, even random states are
alike (of two Gaussian ones of width d about d / tokens, if that is small).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from bert.architectures import Model
from bert.model import Bert
from bert.packing import PackedBatch


@torch.no_grad()
def layer_states(
    model: Model, batches: Iterable[PackedBatch]
) -> list[Float64[Tensor, "tokens hidden"]]:
    """Run texts through a model and keep the embeddings' and each layer's output.

    Args:
        model: in evaluation mode.
        batches: packed texts; two models that are to be compared get the same.

    Raises:
        ValueError: the model is in training mode, or there are no tokens.
    """
    if model.training:
        raise ValueError("model: expected evaluation mode (model.eval()), got training mode")
    trunk = model if isinstance(model, Bert) else model.bert
    device = trunk.embeddings.word.weight.device
    runs = [
        [state.double().cpu() for state in trunk.encode(batch.to(device)).hidden_states]
        for batch in batches
    ]
    if not sum(len(run[0]) for run in runs):
        raise ValueError("batches: expected a token or more, got none")
    return [torch.cat(states) for states in zip(*runs, strict=True)]


def linear_cka(
    first: Float64[Tensor, "tokens width"], second: Float64[Tensor, "tokens other_width"]
) -> float:
    """Compare two representations of the same tokens: 0, nothing in common, to 1.

    Raises:
        ValueError: they are not of the same tokens, or of fewer than two.
    """
    return float(layer_similarity([first], [second]))


@torch.no_grad()
def layer_similarity(
    first: Sequence[Float64[Tensor, "tokens width"]],
    second: Sequence[Float64[Tensor, "tokens other_width"]],
) -> Float64[Tensor, "layers other_layers"]:
    """Compare each layer of one model with each layer of another, or of the same, by linear CKA.

    Args:
        first: of `layer_states`.
        second: of the same batches.

    Raises:
        ValueError: they are not of the same tokens, or of fewer than two.
    """
    counts = {len(states) for states in (*first, *second)}
    if len(counts) != 1 or min(counts) < 2:
        raise ValueError(
            f"states: expected those of the same tokens, two or more, got {sorted(counts)} rows"
        )
    ours, others = ([states - states.mean(0) for states in side] for side in (first, second))
    squared = torch.stack([torch.stack([_squared(x, y) for y in others]) for x in ours])
    lengths, other_lengths = (
        torch.stack([_squared(x, x) for x in side]).sqrt() for side in (ours, others)
    )
    return squared / torch.outer(lengths, other_lengths)


def _squared(first: Tensor, second: Tensor) -> Tensor:
    """Square the Frobenius norm of firstᵀ second."""
    return (first.T @ second).square().sum()


def draw_similarity(
    similarity: Float64[Tensor, "layers other_layers"],
    picture: Path,
    names: tuple[str, str] = ("layer", "layer"),
) -> None:
    """Draw the layers against each other; 0 is the embeddings.

    Args:
        similarity: of `layer_similarity`.
        picture: the file to write; its name says the format.
        names: of the two axes, down and across.

    Raises:
        ModuleNotFoundError: matplotlib is not installed (extra report).
    """
    from matplotlib.figure import Figure

    rows, columns = similarity.shape
    figure: Any = Figure(figsize=(2.4 + 0.38 * columns, 1.6 + 0.38 * rows), layout="constrained")
    axis = figure.subplots()
    cells = axis.imshow(similarity.numpy(), origin="lower", cmap="magma", vmin=0, vmax=1)
    for row in range(rows):
        for column in range(columns):
            value = float(similarity[row, column])
            color = "white" if value < 0.6 else "black"
            axis.text(
                column, row, f"{value:.2f}", ha="center", va="center", color=color, fontsize=6.5
            )
    axis.set(xticks=range(columns), yticks=range(rows), ylabel=names[0], xlabel=names[1])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    bar = figure.colorbar(cells, ax=axis, shrink=0.85, label="linear CKA")
    bar.outline.set_visible(False)
    figure.savefig(picture, dpi=150)
