"""Which optimiser learns most from a short budget, each at several rates and over several seeds.

    python -m benchmarks.optimizers --budget 60s --seeds 3 --candidates adamw:2e-3 muon:4e-3

Prepares the demo's books once, then pretrains the demo's network on them, by the demo's recipe but
without its film reviews, once for each candidate and seed. The budget is CPU seconds of one
thread, so what else the machine does costs a run no step. Prints and writes down each run's
losses on the held-out book, and their mean and standard deviation over the seeds.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import tyro

from bert.training.config import Optimizer
from bert.training.log import read_log
from bert.training.progress import say
from demo import recipe
from demo.report import machine
from demo.run import write_shape
from pretrain.config import PretrainConfig
from pretrain.prepare import prepare_files
from pretrain.prepare_config import PrepareConfig
from pretrain.run import pretrain

RESULTS = Path(__file__).parent / "results" / "optimizers.json"
SHOWN = ("mlm_loss", "masked_loss", "mlm_accuracy", "nsp_loss")
EVALUATION_TOKENS = 50_000


@dataclass(frozen=True)
class OptimizerBenchmark:
    """Pretrain with several optimisers, rates and seeds at an equal budget."""

    budget: str = "60s"
    """CPU seconds of a run, on one thread."""
    seeds: int = 3
    """Seeds 0, 1, …"""
    candidates: tuple[str, ...] = (
        "adamw:1e-3", "adamw:2e-3", "adamw:4e-3",
        "muon:2e-3", "muon:4e-3", "muon:8e-3",
        "bert_adam:5e-4", "bert_adam:1e-3", "bert_adam:2e-3",
        "lamb:5e-3", "lamb:1e-2", "lamb:2e-2",
    )  # fmt: skip
    """Optimisers, each with its highest learning rate."""
    runs: Path = Path("runs/optimizers")
    """Where the runs lie; an interrupted benchmark goes on there."""
    out: Path = RESULTS
    """Where to write the result."""


class Candidate(NamedTuple):
    """An optimiser at a rate."""

    name: str
    """As it was given."""
    optimizer: Optimizer
    rate: float


def parse_candidate(text: str) -> Candidate:
    """Read "muon:4e-3".

    Raises:
        ValueError: it isn't an optimiser and a positive number.
    """
    name, _, number = text.partition(":")
    known = {optimizer: optimizer for optimizer in get_args(Optimizer)}
    try:
        rate = float(number)
    except ValueError:
        rate = 0.0
    if name not in known or not 0 < rate < float("inf"):
        raise ValueError(
            f"candidates: expected one of {', '.join(known)}, and :RATE, got {text!r}"
        )
    return Candidate(text, known[name], rate)


def books() -> tuple[Path, ...]:
    """Return the texts that are trained on."""
    return tuple(sorted((recipe.DATA / "books").glob("train-*.txt.xz")))


def prepare_books(home: Path) -> Path:
    """Prepare the books for all runs, unless that is done."""
    data = home / "data"
    if not data.exists():
        size = recipe.SHAPE.vocab_size
        prepare_files(PrepareConfig(files=books(), out=data, vocab_size=size, workers=1))
    return data


def configure(
    benchmark: OptimizerBenchmark, data: Path, candidate: Candidate, seed: int
) -> PretrainConfig:
    """Configure one run: the demo's, but for the optimiser, its rate, and what the clock needs."""
    shape = write_shape(benchmark.runs / "shape" / "config.json")
    out = benchmark.runs / benchmark.budget / f"{candidate.name}-seed-{seed}"
    plain = recipe.pretraining(shape, Path(), out, seed, benchmark.budget)
    return replace(
        plain,
        files=(),
        data=data,
        domain_files=(),
        evaluation_tokens=EVALUATION_TOKENS,
        training=replace(
            plain.training,
            optimizer=candidate.optimizer,
            learning_rate=candidate.rate,
            threads=1,
            device="cpu",
            evaluate_every=None,  # one evaluation, after the budget
            checkpoint_every=None,
        ),
    )


def measure(
    config: PretrainConfig, clock: Callable[[], float] = time.process_time
) -> dict[str, Any]:
    """Run it, unless that is done, and return what it came to."""
    if not (config.out / "model").exists():
        trained = pretrain(config, clock=clock).training
        if trained.interrupted is not None:
            raise SystemExit("interrupted; the same command goes on")
    *_, step = read_log(config.out / "log.jsonl", "step")
    *_, judged = read_log(config.out / "log.jsonl", "evaluation")
    return {"steps": step["step"], "tokens": step["tokens"], **judged["results"]}


def summarise(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """Give each candidate's mean and standard deviation over the seeds, the best loss first."""
    table = {
        name: {
            "seeds": list(seeds),
            "steps": statistics.mean(run["steps"] for run in seeds),
            **{f"{key}_mean": statistics.mean(run[key] for run in seeds) for key in SHOWN},
            **{f"{key}_sd": statistics.stdev(run[key] for run in seeds) for key in SHOWN},
        }
        for name, seeds in runs.items()
    }
    return dict(sorted(table.items(), key=lambda item: item[1]["mlm_loss_mean"]))


def render(table: Mapping[str, Mapping[str, Any]]) -> str:
    """Write the table for people."""
    lines = [f"{'':16}{'steps':>8}" + "".join(f"{key:>20}" for key in SHOWN)]
    for name, row in table.items():
        cells = [f"{row[f'{key}_mean']:.3f} ± {row[f'{key}_sd']:.3f}" for key in SHOWN]
        lines.append(f"{name:16}{row['steps']:>8.0f}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


def run(benchmark: OptimizerBenchmark) -> dict[str, Any]:
    """Run all, seed by seed, and return what is written down.

    Raises:
        ValueError: fewer than two seeds, or what is no candidate.
    """
    if benchmark.seeds < 2:
        raise ValueError(f"seeds: expected 2 or more, got {benchmark.seeds}")
    candidates = [parse_candidate(text) for text in benchmark.candidates]
    data = prepare_books(benchmark.runs)
    runs: dict[str, list[dict[str, Any]]] = {candidate.name: [] for candidate in candidates}
    for seed in range(benchmark.seeds):
        for candidate in candidates:
            say(f"\n{candidate.name}, seed {seed}")
            runs[candidate.name].append(measure(configure(benchmark, data, candidate, seed)))
    recipe_of_all = configure(benchmark, data, candidates[0], 0)
    same = ("max_length", "tokens_per_batch", "mask_rate", "dropout", "initializer_range")
    return {
        "cpu_seconds": benchmark.budget,
        "machine": machine(),
        "recipe": {name: getattr(recipe_of_all, name) for name in same}
        | {name: getattr(recipe_of_all.training, name) for name in ("warmup", "betas", "eps")},
        "table": summarise(runs),
    }


def main() -> None:
    """Run the benchmark from the command line."""
    benchmark = tyro.cli(OptimizerBenchmark)
    try:
        result = run(benchmark)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    benchmark.out.write_text(json.dumps(result, indent=1) + "\n")
    print(render(result["table"]))


if __name__ == "__main__":
    main()
