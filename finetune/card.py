"""The model card: the README.md beside saved weights, with what they learned and how well."""

from collections.abc import Mapping
from typing import Any

from bert.command import command_line
from bert.config import BertConfig
from finetune.config import FinetuneConfig
from finetune.task import Scores, Task


def model_card(
    task: Task[Any, Any],
    config: FinetuneConfig,
    model: BertConfig,
    data: Mapping[str, Mapping[str, Any]],
    scores: Mapping[str, Scores],
) -> str:
    """Write the card.

    Args:
        task: what was learned.
        config: the run, resolved.
        model: the trained model's configuration.
        data: `Rows.describe` of each file, by what it was for.
        scores: by the file that they were measured on.
    """
    start = "drawn at random" if config.draws_weights else f"taken from `{config.model}`"
    lines = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {task.pipeline}",
        "tags: [bert, plainbert]",
        "---",
        "",
        f"# BERT for {config.task}",
        "",
        f"{model.num_hidden_layers} layers of width {model.hidden_size}, weights {start}, "
        f"fine-tuned with plainbert {task.purpose(model)}.",
        "",
        "## Data",
        "",
        "| for | file | rows | SHA-256 |",
        "| --- | --- | --- | --- |",
    ]
    for purpose, rows in data.items():
        lines.append(f"| {purpose} | {rows['file']} | {rows['rows']} | {rows['sha256']} |")
    lines += [
        "",
        f"{task.when_long(config.max_length)} A literal `[MASK]` or `[SEP]` in a text was "
        "text in training; transformers reads it as the special token.",
        "",
        "## Results",
        "",
    ]
    for purpose, score in scores.items():
        lines += [f"On the {purpose} file:", "", "```", score.text.rstrip(), "```", ""]
    if not scores:
        lines += ["None: there was neither a validation nor a test file.", ""]
    lines += [
        "## How it was made",
        "",
        f"With the weights of the best {config.best_metric} on the validation file:"
        if "validation" in scores
        else "With the weights of the last step:",
        "",
        "```",
        command_line("bert finetune", config),
        "```",
        "",
    ]
    return "\n".join(lines)
