"""What a pretraining run leaves for people: the loss as a picture, and the model's card."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bert.command import command_line
from bert.training.log import read_log
from bert.training.progress import say
from bert.training.result import TrainingResult
from pretrain.config import PretrainConfig

# Steps that one point of the drawn training loss averages, as a share of all.
SMOOTHING = 0.03
# What each loss is of, in the order of the panels.
TITLES = {"mlm": "Masked words", "nsp": "Next sentences", "sop": "Sentence order"}
FATES = {"masked": "[MASK]", "random": "random token", "kept": "kept token"}
# What the numbers of an evaluation mean, by the first of them.
MEANINGS = {
    "mlm_loss": "Losses are in nats. `unigram_loss` is that of guessing each masked token by its "
    "frequency alone, on the same tokens. `masked`, `random` and `kept` are those that show "
    "[MASK], another token, and the token itself.",
    "loss_per_character": "`loss_per_character` and `unigram_per_character` divide by the "
    "characters of the masked tokens, without `##`, [UNK] left out: they compare vocabularies.",
    "nsp_loss": "`nsp_majority` is what always giving the commoner answer scores.",
    "sop_loss": "`sop`: in which of the two orders two neighbouring segments stood.",
}


def draw_losses(log: Path, picture: Path) -> None:
    """Draw the losses over the run's tokens.

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
    """Draw into a figure: a panel for each loss that was trained on, masked words on the left."""
    steps = list(read_log(log, "step"))
    tokens_at = {line["step"]: line["tokens"] / 1e6 for line in steps}
    judged = [line for line in read_log(log, "evaluation") if line["step"] in tokens_at]
    trained = [name for name in TITLES if any(name in line["losses"] for line in steps)]
    panels = figure.subplots(1, len(trained), squeeze=False)[0] if trained else []
    for axis, name in zip(panels, trained, strict=True):
        x = [line["tokens"] / 1e6 for line in steps]
        y = [line["losses"][name] for line in steps]
        axis.plot(x, y, color="0.87", linewidth=0.8)
        axis.plot(x, _smooth(y), color="0.45", linewidth=1.2, label="training, averaged")
        if judged:
            x = [tokens_at[line["step"]] for line in judged]
            _draw_held_out(axis, name, x, [line["results"] for line in judged])
        axis.set(title=TITLES[name], xlabel="million tokens", ylabel="loss, nats", xlim=(0, None))
        axis.legend(frameon=False, fontsize="small")
        axis.spines[["top", "right"]].set_visible(False)


def _draw_held_out(
    axis: Any, name: str, x: Sequence[float], results: Sequence[Mapping[str, float]]
) -> None:
    """Draw what evaluations found, of masked words also by what was shown in their place."""
    curves = {f"{name}_loss": "held out"}
    if name == "mlm":
        curves |= {f"{fate}_loss": f"held out, {shown}" for fate, shown in FATES.items()}
        level = results[-1]["unigram_loss"]
        axis.axhline(level, color="tab:red", linestyle=":", label="by frequency alone")
    for (key, label), style in zip(curves.items(), ("o-", ".--", ".-.", ".:"), strict=False):
        if key in results[-1]:
            y = [result[key] for result in results]
            axis.plot(x, y, style, color="tab:blue", markersize=4, linewidth=1, label=label)


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
            *(["pipeline_tag: fill-mask"] if config.is_masked else []),
            "tags: [bert, plainbert]",
            "---",
            "",
            f"# BERT pretrained on {' and '.join(TITLES[t].lower() for t in config.tasks)}",
            "",
            f"{model.num_hidden_layers} layers of width {model.hidden_size}, "
            f"{model.parameter_count():,} parameters, trained with plainbert from "
            f"{'random weights' if config.is_drawn else f'`{config.model}`'}: "
            f"{trained.step:,} steps, {trained.tokens:,} tokens, {trained.elapsed:,.0f} s.",
            *_untouched(config),
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
            *(_table(results) if results else ["None: no text was held out."]),
            "",
            "## How it was made",
            "",
            "```",
            command_line("bert pretrain", config, positional=("files",)),
            "```",
            "",
        ]
    )


def _untouched(config: PretrainConfig) -> list[str]:
    """Name the head that no loss reached."""
    if config.pair_task is None:
        return ["", "The next-sentence head was not trained."]
    return [] if config.is_masked else ["", "The masked-word head was not trained."]


def _table(results: Mapping[str, float]) -> list[str]:
    """Write an evaluation as a table, and what its numbers mean."""
    rows = [f"| {name} | {value:.4f} |" for name, value in results.items()]
    meanings = [text for name, text in MEANINGS.items() if name in results]
    return ["| | |", "| --- | --- |", *rows, "", *meanings]
