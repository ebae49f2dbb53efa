"""What the demo found: a report on the terminal, report.md, and the curves as a picture."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bert.checkpoint import load_pretrained
from bert.fill_mask import fill_mask
from bert.parity import compare
from bert.parity_table import Row
from bert.tokenization import Tokenizer
from bert.training.log import read_log
from demo import recipe
from demo.config import DemoConfig
from finetune.run import FinetuneResult
from pretrain.report import add_losses
from pretrain.run import PretrainResult

SENTENCES = (
    "he opened the [MASK] and went out .",
    "the old [MASK] looked at her with a smile .",
    "i do not [MASK] what you mean .",
)


@dataclass(frozen=True)
class Outcome:
    """All that the report tells."""

    out: Path
    config: DemoConfig
    pretrained: PretrainResult
    finetuned: Mapping[str, FinetuneResult]
    """pretrained and scratch."""
    parity: Mapping[str, Sequence[Row]]
    """By model directory."""
    examples: Sequence[str]
    seconds: float
    """Wall clock of the demo so far, over all its starts."""


def compare_with_transformers(directories: Sequence[Path]) -> dict[str, list[Row]]:
    """Load each directory with transformers, and compare every tensor on a random batch."""
    return {str(directory): compare(str(directory)) for directory in directories}


def fill_in(model: Path) -> list[str]:
    """Let the pretrained network guess a word of each sentence."""
    loaded, tokenizer = load_pretrained(model), Tokenizer.load(model)
    lines = []
    for sentence in SENTENCES:
        guesses = fill_mask(loaded, tokenizer, sentence, 5)[0]
        words = ", ".join(f"{guess.token} {guess.probability:.2f}" for guess in guesses)
        lines.append(f"{sentence} → {words}")
    return lines


def write_report(outcome: Outcome) -> str:
    """Write report.md and losses.png; return what a terminal shows of it."""
    draw_curves(outcome)
    accuracy = {name: f.scores["test"].summary()["accuracy"] for name, f in
                outcome.finetuned.items()}  # fmt: skip
    gain = 100 * (accuracy["pretrained"] - accuracy["scratch"])
    trained = outcome.pretrained.training
    judged = trained.evaluation or {}
    parts = [
        "# The demo's report",
        f"Budget {outcome.config.budget}, seed {outcome.config.seed}; "
        f"{outcome.seconds:.0f} s in all. {machine()}",
        "![The losses of pretraining, and the accuracy while fine-tuning](losses.png)",
        "## Pretraining",
        f"{trained.step:,} steps, {trained.tokens:,} tokens in {trained.elapsed:.0f} s "
        f"({trained.tokens / max(trained.elapsed, 1e-9):,.0f} tokens/s, evaluations included). "
        f"On held-out books: masked words {judged.get('mlm_loss', float('nan')):.3f} nats, "
        f"{judged.get('mlm_accuracy', float('nan')):.1%} right "
        f"(a guess by frequency: {judged.get('unigram_loss', float('nan')):.3f} nats); "
        f"next sentences {judged.get('nsp_accuracy', float('nan')):.1%} right "
        f"(the commoner answer: {judged.get('nsp_majority', float('nan')):.1%}).",
        "\n".join(f"    {line}" for line in outcome.examples),
    ]
    for name, result in outcome.finetuned.items():
        title = {
            "pretrained": f"Fine-tuned on {recipe.LABELS} labelled film reviews after pretraining",
            "scratch": "The same network on the same reviews, without pretraining",
        }[name]
        steps = f"{result.training.step:,} steps in {result.training.elapsed:.0f} s."
        parts += [f"## {title}: test set", steps, fenced(result.scores["test"].text)]
    parts += [
        "## In one line",
        f"Right on the test set: {accuracy['pretrained']:.1%} with pretraining, "
        f"{accuracy['scratch']:.1%} without: {gain:+.1f} points. What carries over from minutes "
        "of pretraining are the embeddings; both networks' layers begin at random.",
        "## In transformers",
        "Greatest differences between our tensors and theirs, on the saved directories:",
        fenced("\n".join(parity_lines(outcome))),
    ]
    text = "\n\n".join(parts) + "\n"
    (outcome.out / "report.md").write_text(text, encoding="utf-8")
    return text


def parity_lines(outcome: Outcome) -> list[str]:
    """Say for each directory the row that is furthest off, by its tolerance, and every failure."""
    lines = []
    for directory, rows in outcome.parity.items():
        worst = max(rows, key=lambda row: row.difference / row.tolerance)
        verdict = "agree" if all(row.ok for row in rows) else "DIFFER"
        lines.append(
            f"{Path(directory).relative_to(outcome.out)}: {len(rows)} tensors {verdict}; "
            f"worst {worst.name}, {worst.difference:.1e} (allowed {worst.tolerance:.0e})"
        )
        lines += [f"  {row.name}: {row.difference:.1e}" for row in rows if not row.ok]
    return lines


def fenced(text: str) -> str:
    """Set text apart as it is."""
    return f"```\n{text.rstrip()}\n```"


def machine() -> str:
    """Name the machine that the figures come from."""
    names = [line.partition(":")[2].strip() for line in cpu_lines() if "model name" in line]
    cpu = names[0] if names else platform.processor() or platform.machine()
    return f"{cpu}, {torch.get_num_threads()} threads, torch {version('torch')}."


def cpu_lines() -> list[str]:
    """Return what Linux says of the processor."""
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def draw_curves(outcome: Outcome) -> None:
    """Draw pretraining's losses above, and the accuracy on the validation file below."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MultipleLocator, PercentFormatter

    figure = Figure(figsize=(9, 6.6), layout="constrained")
    parts: Any = figure.subfigures(2, 1)
    above, below = parts
    add_losses(above, outcome.pretrained.run_dir / "log.jsonl")
    axis: Any = below.subplots()
    colors = {"pretrained": "tab:blue", "scratch": "0.5"}
    for name, result in outcome.finetuned.items():
        lines = list(read_log(result.run_dir / "log.jsonl", "evaluation"))
        axis.plot(
            [line["elapsed"] for line in lines],
            [line["results"]["accuracy"] for line in lines],
            "o-",
            color=colors[name],
            markersize=4,
            label=name,
        )
    axis.axhline(0.5, color="tab:red", linestyle=":", label="a guess")
    axis.set(title="Film reviews: accuracy on the validation set", xlabel="seconds")
    low, high = axis.get_ylim()
    axis.set(xlim=(0, None), ylim=(min(low, 0.45), max(high, 0.65)))
    axis.yaxis.set_major_locator(MultipleLocator(0.05))
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(outcome.out / "losses.png", dpi=150)
