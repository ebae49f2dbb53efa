"""`bert finetune folds … --folds 5`: cross-validation (Stone 1974).

Each row of the train file is tested once, by a run that didn't learn from it. A classifier's
predictions of all rows lie together in OUT/out-of-fold, as those of an evaluation do
(evaluation/report.py), so that `bert finetune compare` takes two of them.
"""

import warnings
from collections.abc import Mapping
from itertools import islice

import numpy as np
from jaxtyping import Int64

from bert.text import TextReport
from bert.training.progress import say
from finetune.data import LabelledRows
from finetune.evaluation.predictions import Predictions, read_predictions
from finetune.evaluation.records import PREDICTIONS
from finetune.evaluation.report import write_evaluation
from finetune.metrics import score
from finetune.studies.config import FoldsConfig
from finetune.studies.cutting import cut_name
from finetune.studies.study import ROWS, PlannedRun, Study, conduct
from finetune.studies.summary import as_json, read_scores, summarise, table
from finetune.tasks.classification import Classification

INTERVAL = (
    "95%: where the mean over other rows of this kind lies, by Student's t with the variance of "
    "Nadeau and Bengio\n(2003), since the folds learn from rows that overlap."
)


def run(config: FoldsConfig) -> int:
    """Run each fold, and report; return the exit code."""
    return conduct(config, plan, report)


def plan(study: Study[FoldsConfig]) -> dict[str, PlannedRun]:
    """Cut the rows, and return the runs by their names."""
    config, classes = study.config, classes_of(study)
    parts = split(classes if classes is not None else study.rows, config.folds, config.seed)
    # Each run has all classes, in one order, so that the predictions go together.
    names = class_names(study)
    runs = {}
    for number, part in enumerate(parts):
        name = f"fold-{number}"
        learned, tested = (
            config.out / ROWS / cut_name(config.train_file, f"{name}-{purpose}")
            for purpose in ("train", "test")
        )
        others = np.setdiff1d(np.arange(study.rows), part)
        runs[name] = PlannedRun(
            config.base(
                train_file=learned,
                test_file=tested,
                train_rows=None,
                class_names=names,
                out=config.out / name,
            ),
            {learned: others, tested: part},
        )
    return runs


def split(
    classes: Int64[np.ndarray, " rows"] | int, folds: int, seed: int
) -> list[Int64[np.ndarray, " chosen"]]:
    """Cut rows into folds, in each of which every class has its share.

    Args:
        classes: of each row; or the number of rows, where there are none.
        folds: how many.
        seed: of the shuffle.

    Returns:
        The rows of each fold, in order.

    Raises:
        ValueError: there are too few rows, or a class has only one.
    """
    from sklearn.model_selection import KFold, StratifiedKFold  # of the extra report

    rows = classes if isinstance(classes, int) else len(classes)
    if folds > rows:
        raise ValueError(f"folds: expected at most {rows}, the rows, got {folds}")
    how = {"n_splits": folds, "shuffle": True, "random_state": seed % 2**32}
    if isinstance(classes, int):
        return [part for _, part in KFold(**how).split(np.zeros(rows))]
    counts = np.bincount(classes)
    if counts.min() < 2:
        raise ValueError("folds: expected two rows or more of each class, got a class with one")
    if folds > counts.max():
        raise ValueError(f"folds: expected at most {counts.max()}, a class's rows, got {folds}")
    with warnings.catch_warnings():
        # That a class of fewer rows than folds is missing in some of them.
        warnings.simplefilter("ignore", UserWarning)
        return [part for _, part in StratifiedKFold(**how).split(np.zeros(rows), classes)]


def classes_of(study: Study) -> Int64[np.ndarray, " rows"] | None:
    """Return the class of each row of the train file; None where a row hasn't one class."""
    rows = study.prepared.rows["train"]
    if not isinstance(rows, LabelledRows) or not isinstance(study.prepared.task, Classification):
        return None
    codes: dict[str, int] = {}
    return np.array(
        [
            codes.setdefault(row.label, len(codes))
            for row in islice(rows.table.rows(TextReport()), study.rows)
        ]
    )


def class_names(study: Study) -> tuple[str, ...] | None:
    """Return a classifier's classes, so that each run has all of them; else what was asked for."""
    if isinstance(study.prepared.task, Classification):
        return study.prepared.rows["train"].class_names
    return study.config.class_names


def report(study: Study[FoldsConfig], runs: Mapping[str, PlannedRun]) -> None:
    """Report on the finished runs, and put a classifier's predictions together."""
    scores = {name: read_scores(planned.config.out) for name, planned in runs.items()}
    overlap = 1 / (len(runs) - 1)
    spreads = summarise([{"test": one["test"]} for one in scores.values()], overlap)
    text = (
        f"On each fold, what the others taught\n\n"
        f"{table(list(runs), spreads['test'], study.metrics)}\n\n{INTERVAL}"
    )
    if isinstance(study.prepared.task, Classification):
        text += f"\n\nAll rows, each predicted without it\n\n{put_together(study, runs)}"
    study.report(text, {"runs": scores, "summary": as_json(spreads), "interval": INTERVAL})


def put_together(study: Study[FoldsConfig], runs: Mapping[str, PlannedRun]) -> str:
    """Leave the predictions of all rows in OUT/out-of-fold; return what they are worth."""
    rows = study.prepared.rows["train"]
    found = {n: read_predictions(r.config.out / "test" / PREDICTIONS) for n, r in runs.items()}
    names = rows.class_names
    labels = np.empty(study.rows, dtype=np.int64)
    logits = np.empty((study.rows, len(names)))
    for name, planned in runs.items():
        *_, part = planned.cuts.values()
        assert found[name].class_names == names
        labels[part], logits[part] = found[name].labels, found[name].logits
    directory = study.out / "out-of-fold"
    written = write_evaluation(
        directory,
        score(logits, labels, names),
        Predictions(names, labels, logits),
        islice(study.prepared.task.texts(rows), study.rows),
        {"task": study.config.task, **study.prepared.data["train"]},
    )
    say(f"predictions of all rows, mistakes and pictures: {directory}")
    return written.text
