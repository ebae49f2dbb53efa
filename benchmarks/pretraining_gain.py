"""What a few minutes of pretraining are worth on film reviews, over several seeds.

    python -m benchmarks.pretraining_gain --budget 6min --seeds 3

Runs the demo for each seed, all of it: vocabulary, word vectors, pretraining and both
fine-tunings. Then it fine-tunes the same pretrained networks in other ways, each for as long as
the demo's own: with fewer of their layers drawn anew, with all labels, and each of the demo's two
networks with the other's dropout. Prints and writes down
the accuracy on the test set of each, its mean and standard deviation over the seeds, and how far
the demo's two networks are apart beside their spread.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from bert.config import read_json
from bert.training.log import read_log
from bert.training.progress import say
from demo import recipe
from demo.config import DemoConfig
from demo.report import machine
from demo.run import run as run_demo
from finetune.config import FinetuneConfig
from finetune.run import finetune

RESULTS = Path(__file__).parent / "results" / "pretraining_gain.json"


@dataclass(frozen=True)
class GainBenchmark:
    """Run the demo over several seeds, and other fine-tunings of what it pretrained."""

    budget: str = "6min"
    """Wall clock of a demo."""
    seeds: int = 3
    """Seeds 0, 1, …"""
    runs: Path = Path("runs/pretraining_gain")
    """Where the runs lie; an interrupted benchmark goes on there."""
    out: Path = RESULTS
    """Where to write the result."""


def variants(demo: FinetuneConfig) -> dict[str, FinetuneConfig]:
    """List the fine-tunings beside the demo's own, given that of its pretrained network."""
    layers = recipe.SHAPE.num_hidden_layers
    kept = {
        f"{layers - redrawn} of {layers} layers kept": replace(demo, redrawn_layers=redrawn)
        for redrawn in range(layers)
    }
    budget = demo.training.budget or ""
    scratch = recipe.finetuning(Path(demo.model), demo.out, demo.seed, budget, from_scratch=True)
    return kept | {
        "pretrained, scratch's dropout": replace(demo, dropout=recipe.SCRATCH_DROPOUT),
        "scratch, pretrained's dropout": replace(scratch, dropout=recipe.PRETRAINED_DROPOUT),
        "all labels, pretrained": replace(demo, train_rows=None),
        "all labels, scratch": replace(scratch, train_rows=None),
    }


def measure(config: GainBenchmark, seed: int) -> dict[str, Any]:
    """Run one seed; return the accuracies on the test set, and pretraining's figures."""
    out = config.runs / f"seed-{seed}"
    if run_demo(DemoConfig(out, config.budget, seed)) != 0:
        raise SystemExit("interrupted; the same command goes on")
    pretrained = out / "pretrain" / "model"
    budget = read_json(out / "demo.json")["budgets"]["finetuning"]
    demo = recipe.finetuning(pretrained, out, seed, f"{budget:.1f}s", from_scratch=False)
    directories = {name: out / f"finetune-{name}" for name in ("pretrained", "scratch")}
    for number, (name, variant) in enumerate(variants(demo).items()):
        say(f"\nseed {seed}, {name}")
        directories[name] = out / f"variant-{number}"
        finetune(replace(variant, out=directories[name]))
    *_, judged = read_log(out / "pretrain" / "log.jsonl", "evaluation")
    return {
        "accuracy": {
            name: read_json(path / "metrics.json")["test"]["accuracy"]
            for name, path in directories.items()
        },
        "pretraining": judged,
    }


def summarise(accuracies: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Give each fine-tuning's mean and standard deviation, and the demo's gap."""
    table = {
        name: {
            "seeds": [row[name] for row in accuracies],
            "mean": statistics.mean(row[name] for row in accuracies),
            "sd": statistics.stdev(row[name] for row in accuracies),
        }
        for name in accuracies[0]
    }
    gaps = [row["pretrained"] - row["scratch"] for row in accuracies]
    spread = max(
        max(table[name]["seeds"]) - min(table[name]["seeds"]) for name in ("pretrained", "scratch")
    )
    return {"table": table, "gaps": gaps, "mean_gap": statistics.mean(gaps), "spread": spread}


def main() -> None:
    """Run the benchmark from the command line."""
    config = tyro.cli(GainBenchmark)
    if config.seeds < 2:
        raise SystemExit(f"error: seeds: expected 2 or more, got {config.seeds}")
    measured = [measure(config, seed) for seed in range(config.seeds)]
    summary = summarise([one["accuracy"] for one in measured])
    result = {
        "budget": config.budget,
        "machine": machine(),
        **summary,
        "pretraining": [one["pretraining"] for one in measured],
    }
    config.out.write_text(json.dumps(result, indent=1) + "\n")
    for name, row in summary["table"].items():
        seeds = " ".join(f"{accuracy:.3f}" for accuracy in row["seeds"])
        print(f"{name:30}  {row['mean']:.3f} ± {row['sd']:.3f}   {seeds}")
    print(f"gap {summary['mean_gap']:+.3f}; greatest spread of the seeds {summary['spread']:.3f}")


if __name__ == "__main__":
    main()
