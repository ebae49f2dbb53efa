"""`bert finetune seeds … --seeds 5`: how far the scores of a configuration lie apart by chance.

A seed is that of the drawn weights, of the order of the rows, and of dropout; the rows stay the
same. So the spread is that of training, and not that of other train or test files.
"""

from collections.abc import Mapping

from finetune.studies.config import SeedsConfig
from finetune.studies.study import PlannedRun, Study, conduct
from finetune.studies.summary import as_json, read_scores, summarise, table

INTERVAL = "95%: where the mean of many such seeds lies, by Student's t; the rows stay the same."


def run(config: SeedsConfig) -> int:
    """Run each seed, and report; return the exit code."""
    return conduct(config, plan, report)


def plan(study: Study[SeedsConfig]) -> dict[str, PlannedRun]:
    """Return the runs by their names."""
    config = study.config
    seeds = range(config.seed, config.seed + config.seeds)
    return {
        f"seed-{seed}": PlannedRun(config.base(seed=seed, out=config.out / f"seed-{seed}"))
        for seed in seeds
    }


def report(study: Study[SeedsConfig], runs: Mapping[str, PlannedRun]) -> None:
    """Report on the finished runs."""
    scores = {name: read_scores(planned.config.out) for name, planned in runs.items()}
    spreads = summarise(list(scores.values()))
    parts = [
        f"On the {purpose} file\n\n{table(list(runs), found, study.metrics)}\n"
        for purpose, found in spreads.items()
    ]
    study.report(
        "\n".join([*parts, INTERVAL]),
        {"runs": scores, "summary": as_json(spreads), "interval": INTERVAL},
    )
