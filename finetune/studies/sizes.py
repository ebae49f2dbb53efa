"""`bert finetune sizes … --sizes 50 200 1000`: how the score grows with the rows learned from.

Each seed draws rows of its own, a smaller size being part of a larger one, and in classification
with every class in proportion. So the spread is that of training and of the choice of rows.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert.training.progress import say
from finetune.studies.config import SizesConfig
from finetune.studies.cutting import cut_name, nested_order
from finetune.studies.folds import class_names, classes_of
from finetune.studies.study import ROWS, PlannedRun, Study, conduct
from finetune.studies.summary import Spread, as_json, read_scores, summarise

FEWEST = 50
"""Rows of the smallest size that is chosen where none are given."""
INTERVAL = (
    "95%: where the mean over many seeds and choices of rows lies, by Student's t; from all rows "
    "there is one choice."
)


def run(config: SizesConfig) -> int:
    """Run each size with each seed, and report; return the exit code."""
    return conduct(config, plan, report)


def sizes_of(study: Study[SizesConfig]) -> list[int]:
    """Return the sizes, the smallest first.

    Raises:
        ValueError: there are not as many rows.
    """
    rows, given = study.rows, study.config.sizes
    if given and max(given) > rows:
        raise ValueError(f"sizes: expected at most {rows}, the rows there are, got {max(given)}")
    found = [rows]
    while not given and found[-1] // 4 >= FEWEST:
        found.append(found[-1] // 4)
    return sorted(given or found)


def plan(study: Study[SizesConfig]) -> dict[str, PlannedRun]:
    """Draw the rows, and return the runs by their names."""
    config, names = study.config, class_names(study)
    classes = classes_of(study)
    classes = np.zeros(study.rows, dtype=np.int64) if classes is None else classes
    runs = {}
    for size in sizes_of(study):
        for seed in range(config.seed, config.seed + config.seeds):
            name = f"{size}-rows-seed-{seed}"
            path = config.out / ROWS / cut_name(config.train_file, name)
            chosen = np.sort(nested_order(classes, seed)[:size])
            runs[name] = PlannedRun(
                config.base(
                    train_file=path, train_rows=None, class_names=names, seed=seed,
                    out=config.out / name,
                ),
                {path: chosen},
            )  # fmt: skip
    return runs


def report(study: Study[SizesConfig], runs: Mapping[str, PlannedRun]) -> None:
    """Report on the finished runs, and draw the curve."""
    scores = {name: read_scores(planned.config.out) for name, planned in runs.items()}
    seeds = study.config.seeds
    sizes, found = sizes_of(study), list(scores.values())
    spreads = {size: summarise(found[i * seeds : (i + 1) * seeds]) for i, size in enumerate(sizes)}
    purposes = list(spreads[sizes[0]])
    parts = [
        f"{metric} on the {purpose} file\n\n"
        + table({size: spreads[size][purpose][metric] for size in sizes})
        + "\n"
        for purpose in purposes
        for metric in study.metrics
    ]
    metric = study.prepared.config.best_metric or study.metrics[0]
    curve = {size: spreads[size][purposes[-1]][metric] for size in sizes}
    draw(curve, f"{metric} on the {purposes[-1]} file", study.out / "learning_curve.png")
    study.report(
        "\n".join([*parts, INTERVAL]),
        {
            "runs": scores,
            "summary": {str(size): as_json(each) for size, each in spreads.items()},
            "interval": INTERVAL,
        },
    )


def table(spreads: Mapping[int, Spread]) -> str:
    """Write a line for each size, with all its values."""
    lines = [f"{'rows':>8}{'mean':>9}{'deviation':>11}   {'95%':<18}each seed"]
    for size, each in spreads.items():
        values = " ".join(f"{value:.4f}" for value in each.values)
        interval = f"{each.low:.4f} to {each.high:.4f}"
        lines.append(f"{size:8,}{each.mean:9.4f}{each.deviation:11.4f}   {interval:<18}{values}")
    return "\n".join(lines)


def draw(spreads: Mapping[int, Spread], what: str, picture: Path) -> None:
    """Draw each run's score over its rows, with the mean; without matplotlib say so."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        say("no learning curve: install the extra report for matplotlib")
        return
    figure: Any = Figure(figsize=(6.4, 4.4), layout="constrained")
    axis = figure.subplots()
    sizes = list(spreads)
    _draw_runs(axis, sizes, list(spreads.values()))
    axis.set_xscale("log")
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axis.set_xticks([], minor=True)
    axis.set(xlabel="rows learned from", ylabel=what)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.legend(frameon=False, loc="lower right")
    figure.savefig(picture, dpi=150)


def _draw_runs(axis: Any, sizes: Sequence[int], spreads: Sequence[Spread]) -> None:
    blue = "#2f6db3"
    for place in range(len(spreads[0].values)):
        values = [each.values[place] for each in spreads]
        label = "a run" if place == 0 else None
        axis.plot(sizes, values, "o", color=blue, alpha=0.35, markersize=4, label=label)
    means = [each.mean for each in spreads]
    low, high = ([each.mean + sign * each.deviation for each in spreads] for sign in (-1, 1))
    axis.fill_between(sizes, low, high, color=blue, alpha=0.13, linewidth=0)
    axis.plot(sizes, means, "o-", color=blue, linewidth=1.5, label="mean ± standard deviation")
