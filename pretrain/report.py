"""What a pretraining run leaves for people: the loss as a picture, and the model's card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bert.command import command_line
from bert.training.log import read_log
from bert.training.progress import say
from bert.training.result import TrainingResult
from pretrain.config import PretrainConfig

# Steps that one point of the drawn training loss averages, as a share of all.
SMOOTHING = 0.01


def draw_losses(log: Path, picture: Path) -> None:
    """Draw the masked-word and next-sentence losses over the run's tokens.

    Without matplotlib it says so and draws nothing.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        say("no picture of the loss: install the extra report for matplotlib")
        return
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    add_losses(figure, log)
    figure.savefig(picture, dpi=150)


def add_losses(figure: Any, log: Path) -> None:
    """Draw into a figure: masked words on the left, next sentences on the right."""
    steps = list(read_log(log, "step"))
    evaluations = list(read_log(log, "evaluation"))
    tokens_at = {line["step"]: line["tokens"] / 1e6 for line in steps}
    panels = zip(
        figure.subplots(1, 2),
        ("mlm", "nsp"),
        ("Masked words", "Next sentences"),
        ("unigram_loss", None),
        strict=True,
    )
    for axis, name, title, floor in panels:
        x = [line["tokens"] / 1e6 for line in steps]
        y = _smooth([line["losses"][name] for line in steps])
        axis.plot(x, y, color="0.6", linewidth=1, label="training")
        judged = [line for line in evaluations if line["step"] in tokens_at]
        if judged:
            axis.plot(
                [tokens_at[line["step"]] for line in judged],
                [line["results"][f"{name}_loss"] for line in judged],
                "o-",
                color="tab:blue",
                markersize=4,
                label="held out",
            )
            if floor is not None:
                level = judged[-1]["results"][floor]
                axis.axhline(level, color="tab:red", linestyle=":", label="unigram")
        axis.set(title=title, xlabel="million tokens", ylabel="loss, nats")
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)


def _smooth(values: list[float]) -> list[float]:
    """Average each value with those before it, so that the curve can be read."""
    weight = 1 / max(SMOOTHING * len(values), 1)
    smoothed: list[float] = []
    for value in values:
        last = smoothed[-1] if smoothed else value
        smoothed.append(last + weight * (value - last))
    return smoothed


def model_card(
    config: PretrainConfig,
    model: Any,
    manifest: Mapping[str, Any],
    trained: TrainingResult,
) -> str:
    """Write the README.md beside the saved weights: data, results, command.

    Args:
        config: the run, resolved.
        model: the model's configuration.
        manifest: the prepared corpus's.
        trained: how the run ended.
    """
    results = trained.evaluation or {}
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: fill-mask",
            "tags: [bert, plainbert]",
            "---",
            "",
            "# BERT pretrained on masked words and next sentences",
            "",
            f"{model.num_hidden_layers} layers of width {model.hidden_size}, "
            f"{model.parameter_count():,} parameters, trained with plainbert from "
            f"{'random weights' if config.is_drawn else f'`{config.model}`'}: "
            f"{trained.step:,} steps, {trained.tokens:,} tokens, {trained.elapsed:,.0f} s.",
            "",
            "## Data",
            "",
            "| file | bytes | SHA-256 |",
            "| --- | --- | --- |",
            *(f"| {s['name']} | {s['bytes']} | {s['sha256']} |" for s in manifest["sources"]),
            "",
            f"{manifest['documents']:,} documents, {manifest['sentences']:,} sentences, "
            f"{manifest['tokens']:,} tokens.",
            "",
            "## Results on the held-out text",
            "",
            *(
                ["| | |", "| --- | --- |", *(f"| {k} | {v:.4f} |" for k, v in results.items())]
                if results
                else ["None: there were no validation files."]
            ),
            "",
            "## How it was made",
            "",
            "```",
            command_line("bert pretrain", config, positional=("files",)),
            "```",
            "",
        ]
    )
