"""What the network of a speedrun is worth to a classifier, over several seeds.

    python -m benchmarks.speedrun_labels runs/speedrun/best-8192-30min-0/model \
        --files ../shared/data/sst2 --epochs 6

Fine-tunings of the pretrained network and of one drawn at random, of the same shape and with the
same vocabulary, for as many epochs and over the same seeds (of what is drawn, of the order of the
rows, of dropout). The best evaluation on the validation file picks the weights, and the test file
judges them. Prints and appends, as lines of JSON, each one's accuracy, and the gap.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from bert.checked import Checked
from bert.config import read_json
from bert.training.progress import say
from demo.report import machine
from finetune.config import CONFIG_DEFAULTS, FinetuneConfig
from finetune.run import finetune

RESULTS = Path(__file__).parent / "results" / "speedrun_labels.jsonl"


@dataclass(frozen=True)
class LabelsBenchmark(Checked):
    """Fine-tune a pretrained network and a fresh one, over several seeds."""

    model: Annotated[Path, tyro.conf.Positional]
    """Directory of the pretrained network."""
    files: Path
    """Directory of train.tsv.xz, validation.tsv.xz and test.tsv.xz."""
    epochs: float = 6.0
    """Passes over the train file, of either network."""
    learning_rate: float = 5e-4
    """Of either network."""
    dropout: float = 0.1
    """Of the pretrained network."""
    scratch_dropout: float = 0.1
    """Of the fresh one."""
    redrawn_layers: int = 0
    """Upper layers of the pretrained network to draw anew."""
    seeds: int = 3
    """Seeds 0, 1, …"""
    threads: int = 2
    """CPU threads of torch."""
    runs: Path = Path("runs/speedrun/labels")
    """Where the runs lie."""
    out: Path = RESULTS
    """A file of JSON lines, to append to."""

    def __post_init__(self) -> None:
        """Check what the fine-tunings don't."""
        self._require("seeds", "2 or more", self.seeds >= 2)


def configure(config: LabelsBenchmark, seed: int, from_scratch: bool) -> FinetuneConfig:
    """Return what `bert finetune` is told."""
    name = f"{'scratch' if from_scratch else 'pretrained'}-{seed}"
    return FinetuneConfig(
        model=str(config.model),
        from_scratch=from_scratch,
        train_file=config.files / "train.tsv.xz",
        validation_file=config.files / "validation.tsv.xz",
        test_file=config.files / "test.tsv.xz",
        out=config.runs / name,
        max_length=64,
        epochs=config.epochs,
        dropout=config.scratch_dropout if from_scratch else config.dropout,
        redrawn_layers=0 if from_scratch else config.redrawn_layers,
        seed=seed,
        resume="none",
        overwrite=True,
        training=replace(
            CONFIG_DEFAULTS,
            learning_rate=config.learning_rate,
            checkpoint_every=None,
            threads=config.threads,
            device="cpu",
        ),
    )


def accuracy(config: FinetuneConfig) -> float:
    """Fine-tune, and return the share of the test file that is right."""
    finetune(config)
    return read_json(config.out / "metrics.json")["test"]["accuracy"]


def summarise(pretrained: Sequence[float], scratch: Sequence[float]) -> dict[str, Any]:
    """Give each network's mean and standard deviation, and how far they lie apart.

    The standard error of the gap takes the seeds of the two as drawn apart from each other.
    """
    count = len(pretrained)
    spread = [statistics.stdev(each) for each in (pretrained, scratch)]
    return {
        "pretrained": list(pretrained),
        "scratch": list(scratch),
        "means": [statistics.mean(pretrained), statistics.mean(scratch)],
        "standard_deviations": spread,
        "gap": statistics.mean(pretrained) - statistics.mean(scratch),
        "standard_error": (sum(s**2 for s in spread) / count) ** 0.5,
    }


def describe(result: Mapping[str, Any]) -> str:
    """Put the figures of a result into three lines."""
    lines = []
    for place, name in enumerate(("pretrained", "scratch")):
        seeds = " ".join(f"{100 * accuracy:.1f}" for accuracy in result[name])
        mean, deviation = result["means"][place], result["standard_deviations"][place]
        lines.append(f"{name:10}  {100 * mean:.1f} ± {100 * deviation:.1f} %   {seeds}")
    error = 100 * result["standard_error"]
    lines.append(f"gap {100 * result['gap']:+.1f} points, standard error {error:.1f}")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark from the command line."""
    try:
        config = tyro.cli(LabelsBenchmark)
        scores: dict[bool, list[float]] = {False: [], True: []}
        for seed in range(config.seeds):
            for from_scratch, found in scores.items():
                say(f"\nseed {seed}, {'from scratch' if from_scratch else 'pretrained'}")
                found.append(accuracy(configure(config, seed, from_scratch)))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    result = {**asdict(config), **summarise(scores[False], scores[True]), "machine": machine()}
    with config.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result, default=str) + "\n")
    print(describe(result))


if __name__ == "__main__":
    main()
