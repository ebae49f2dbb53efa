"""What a healthy pretraining looks like: the recipes' curves over several seeds.

    python -m benchmarks.known_curves --wikitext2 train.txt.xz

Runs `bert pretrain --recipe NAME` with seeds 0, 1, … on the books that come with the repository
and, where it is given, on WikiText-2 beside them; the books alone are then run once, with the
first recipe, to see whether they lie in the same band. Held out are always the books' own
validation pages. Writes every evaluation of every run to known_curves.json, the bands over the
seeds to known_curves.md and .png.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from bert.command import command_line
from bert.config import read_json
from bert.training.log import read_log
from bert.training.progress import say
from demo.report import machine
from pretrain.recipes import RECIPES

RESULTS = Path(__file__).parent / "results"
CURVES = ("mlm_loss", "masked_loss", "mlm_accuracy", "nsp_accuracy")
POINTS = 10
"""Lines of a recipe's table."""


@dataclass(frozen=True)
class CurvesBenchmark:
    """Run the recipes over several seeds; write down what each evaluation found."""

    wikitext2: Path | None = None
    """Training text of WikiText-2, an article between blank lines, beside the books."""
    recipes: tuple[str, ...] = ("tiny-books", "mini-books")
    """Which recipes."""
    seeds: int = 3
    """Seeds 0, 1, …"""
    budget: str | None = None
    """Of each run; None: the recipe's own."""
    runs: Path = Path("runs/known_curves")
    """Where the runs lie; an interrupted benchmark goes on there."""
    out: Path = RESULTS
    """Directory of what is written."""


@dataclass(frozen=True)
class Run:
    """One command, and how far it got."""

    recipe: str
    text: str
    """What it was trained on: "books" or "books + WikiText-2"."""
    seed: int
    budget: str
    files: tuple[Path, ...]
    """Beside --recipe; none: the recipe's."""

    @property
    def arguments(self) -> list[str]:
        """What stands behind `bert pretrain`, without --out."""
        chosen = [] if self.budget == "" else ["--training.budget", self.budget]
        return [
            *map(str, self.files), "--recipe", self.recipe, "--seed", str(self.seed), *chosen,
        ]  # fmt: skip


def planned(config: CurvesBenchmark) -> list[Run]:
    """List the runs."""
    budget = config.budget or ""
    alone = [
        Run(recipe, "books", seed, budget, ())
        for recipe in config.recipes
        for seed in range(config.seeds)
    ]
    if config.wikitext2 is None:
        return alone
    both = [
        Run(
            recipe, "books + WikiText-2", seed, budget,
            (*RECIPES[recipe]["files"], config.wikitext2),
        )
        for recipe in config.recipes
        for seed in range(config.seeds)
    ]  # fmt: skip
    return both + alone[:1]


def measure(run: Run, out: Path) -> dict[str, Any]:
    """Run the command, unless it has ended already, and read its log."""
    if not (out / "model").exists():
        command = [sys.executable, "-m", "pretrain", *run.arguments, "--out", str(out)]
        subprocess.run(command, check=True)
    tokens_at = {line["step"]: line["tokens"] for line in read_log(out / "log.jsonl", "step")}
    evaluations = [
        {
            "seconds": line["elapsed"],
            "step": line["step"],
            "tokens": tokens_at.get(line["step"], 0),
            **line["results"],
        }
        for line in read_log(out / "log.jsonl", "evaluation")
    ]
    return {
        "recipe": run.recipe,
        "text": run.text,
        "seed": run.seed,
        "budget": read_json(out / "run.json")["config"]["budget"],
        "evaluations": evaluations,
    }


@dataclass(frozen=True)
class Band:
    """Where runs that differ in their seed lay at one evaluation."""

    seconds: float
    """Mean of the runs, as `tokens`."""
    tokens: float
    ranges: Mapping[str, tuple[float, float]]
    """Of each number: the least and the greatest."""


def bands(runs: Sequence[Mapping[str, Any]]) -> list[Band]:
    """Put the runs' evaluations beside each other: the first ones, the second ones, … the last.

    Runs that are bound by the clock may have made one evaluation more or fewer; the last ones
    always belong together.
    """
    together = list(zip(*(run["evaluations"][:-1] for run in runs), strict=False))
    together.append(tuple(run["evaluations"][-1] for run in runs))
    names = together[-1][0].keys()
    return [
        Band(
            statistics.mean(one["seconds"] for one in ones),
            statistics.mean(one["tokens"] for one in ones),
            {name: (min(o[name] for o in ones), max(o[name] for o in ones)) for name in names},
        )
        for ones in together
    ]


def groups(runs: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Sort the runs by recipe and text."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in runs:
        found.setdefault((run["recipe"], run["text"]), []).append(run)
    return found


def table(result: Mapping[str, Any]) -> str:
    """Write the bands as a page."""
    lines = [
        "# Known curves: is my pretraining healthy?",
        "",
        f"By `{result['command']}`, on {result['machine']} Held out: the books' validation pages. "
        "Losses in nats a masked token; `[MASK]` are the tokens that show [MASK], whose loss says "
        "whether the unigram plateau is left. From the least to the greatest of the seeds. In the "
        "same time another machine sees another number of tokens: compare at the same share of "
        "the budget, and expect lower losses where there were more tokens.",
    ]
    for (recipe, text), runs in groups(result["runs"]).items():
        rows = bands(runs)
        chosen = sorted({round(i * (len(rows) - 1) / (POINTS - 1)) for i in range(POINTS)})
        last = rows[-1].ranges
        lines += [
            "",
            f"## {recipe}: {text}, {runs[0]['budget']}, {_count(runs)}",
            "",
            f"By frequency alone {_span(last['unigram_loss'], 3)} nats; the commoner answer about "
            f"the next sentence is right for {_span(last['nsp_majority'], 3)} of the pairs.",
            "",
            "| seconds | tokens | loss | of `[MASK]` | words right | next sentences right |",
            "| --- | --- | --- | --- | --- | --- |",
            *(
                f"| {row.seconds:.0f} | {row.tokens / 1e6:.2f} M | "
                + " | ".join(_span(row.ranges[name], 3 if "acc" in name else 2) for name in CURVES)
                + " |"
                for row in (rows[i] for i in chosen)
            ),
        ]
    return "\n".join(lines) + "\n"


def _count(runs: Sequence[object]) -> str:
    return "one seed" if len(runs) == 1 else f"{len(runs)} seeds"


def _span(of: tuple[float, float], digits: int) -> str:
    low, high = (f"{value:.{digits}f}" for value in of)
    return low if low == high else f"{low}–{high}"


def draw(result: Mapping[str, Any], picture: Path) -> None:
    """Draw each recipe's bands, masked words above and next sentences below."""
    from matplotlib.figure import Figure

    recipes = list(dict.fromkeys(run["recipe"] for run in result["runs"]))
    figure: Any = Figure(figsize=(4.6 * len(recipes), 6), layout="constrained")
    axes = figure.subplots(2, len(recipes), squeeze=False, sharey="row")
    for (recipe, text), runs in groups(result["runs"]).items():
        column, rows = recipes.index(recipe), bands(runs)
        color = "tab:blue" if len(runs) > 1 else "tab:orange"
        label = f"{text}, {_count(runs)}"
        for axis, name in zip(axes[:, column], ("masked_loss", "nsp_accuracy"), strict=True):
            tokens = [row.tokens / 1e6 for row in rows]
            low, high = zip(*(row.ranges[name] for row in rows), strict=True)
            axis.fill_between(tokens, low, high, color=color, alpha=0.25, linewidth=0)
            middle = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
            axis.plot(tokens, middle, "-", color=color, linewidth=1.4, label=label)
        last = rows[-1].ranges
        axes[0, column].axhline(last["unigram_loss"][1], color="0.4", linestyle=":", linewidth=1)
        axes[1, column].axhline(last["nsp_majority"][1], color="0.4", linestyle=":", linewidth=1)
        axes[0, column].set_title(f"{recipe}, {runs[0]['budget']}")
    for axis in axes.flat:
        axis.set(xlabel="million tokens", xlim=(0, None))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("held-out loss of [MASK] tokens, nats\n(dotted: by frequency alone)")
    axes[1, 0].set_ylabel("next sentences right\n(dotted: the commoner answer)")
    axes[0, 0].legend(frameon=False, fontsize="small")
    figure.savefig(picture, dpi=110)


def main() -> None:
    """Run the benchmark from the command line."""
    config = tyro.cli(CurvesBenchmark)
    if config.seeds < 1:
        raise SystemExit(f"error: seeds: expected 1 or more, got {config.seeds}")
    if unknown := set(config.recipes) - set(RECIPES):
        raise SystemExit(f"error: recipes: expected any of {', '.join(RECIPES)}, got {unknown}")
    measured = []
    for run in planned(config):
        say(f"\nbert pretrain {' '.join(run.arguments)}")
        name = f"{run.recipe}-{run.text.replace(' ', '')}-{run.seed}"
        measured.append(measure(run, config.runs / name))
    result = {"command": _command(config), "machine": machine(), "runs": measured}
    (config.out / "known_curves.json").write_text(json.dumps(result, indent=1) + "\n")
    (config.out / "known_curves.md").write_text(table(result))
    draw(result, config.out / "known_curves.png")
    print(table(result))


def _command(config: CurvesBenchmark) -> str:
    """Write the command as somebody else would type it."""
    plain = replace(config, runs=CurvesBenchmark.runs, out=RESULTS)
    if config.wikitext2 is not None:
        plain = replace(plain, wikitext2=Path("train.txt.xz"))
    return command_line("python -m benchmarks.known_curves", plain)


if __name__ == "__main__":
    main()
