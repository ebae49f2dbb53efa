"""Several runs in one directory, each an ordinary one of bert finetune; read `conduct`.

OUT/
    study.json      what the study is: what may not change when it goes on
    seed-0/ …       the runs, see finetune/run.py; without the checkpoints of finished ones
    rows/           what was cut out of the train file for a run, where that was done
    report.txt      the report
    report.json     all numbers of it

A run with a metrics.json is finished and never touched again; one without goes on.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int64

from bert.command import command_line
from bert.config import read_json
from bert.training.hardware import choose_hardware
from bert.training.progress import say
from bert.training.run_directory import hold, refuse_file
from bert.training.state import state_tensors
from finetune.best import hash_tensors
from finetune.config import FinetuneConfig
from finetune.prepare import Prepared, prepare
from finetune.run import dry_run, finetune
from finetune.studies.config import StudyConfig
from finetune.studies.cutting import cut
from finetune.whole_file import whole_file

STUDY, REPORT, ROWS = "study.json", "report.json", "rows"
_MADE = (REPORT, "report.txt", "learning_curve.png", "trials.journal", "out-of-fold", ROWS)

# Where the files are says nothing; what is in them is compared by hashes.
_PLACES = ("model", "tokenizer", "train_file", "validation_file", "test_file", "columns", "out")
_HOW_STARTED = ("resume", "overwrite", "dry_run")

ConfigT = TypeVar("ConfigT", bound=StudyConfig)


class PlannedRun(NamedTuple):
    """A run that is to be, and what has to be cut out of the train file for it."""

    config: FinetuneConfig
    cuts: Mapping[Path, Int64[np.ndarray, " chosen"]] = {}
    """The rows, by the file that they go to."""


@dataclass(frozen=True)
class Study(Generic[ConfigT]):
    """A study under way, alone in its directory."""

    config: ConfigT
    prepared: Prepared
    """The run that all others are like, on the whole train file."""
    identity: Mapping[str, Any] = field(repr=False)
    """What may not change when the study goes on, as JSON."""

    @property
    def out(self) -> Path:
        """The study's directory."""
        return self.config.out

    @property
    def metrics(self) -> tuple[str, ...]:
        """The task's."""
        return self.prepared.task.metrics

    @cached_property
    def starts(self) -> list[int]:
        """The line in which each row of the train file starts."""
        return self.prepared.task.starts(self.config.train_file, self.config)

    @cached_property
    def rows(self) -> int:
        """Rows of the train file that are used."""
        return self.config.train_rows or len(self.starts)

    def carry_out(self, runs: Mapping[str, PlannedRun]) -> int:
        """Check all runs, then run those that aren't finished; return an exit code.

        Raises:
            ValueError: a run can't be; none was begun.
        """
        for planned in runs.values():
            for path, rows in planned.cuts.items():
                path.parent.mkdir(exist_ok=True)
                cut(self.config.train_file, self.starts, rows, path)
            if planned.cuts:
                prepare(planned.config)
        self.describe()
        for number, (name, planned) in enumerate(runs.items(), start=1):
            say(f"\nrun {number} of {len(runs)}: {name}")
            code = finish(planned.config)
            if code != 0:
                say(f"stopped in {name}; the same command goes on")
                return code
            drop_checkpoints(planned.config.out)
        return 0

    def describe(self) -> None:
        """Write study.json: from now on the directory is this study's."""
        with whole_file(self.out / STUDY) as file:
            json.dump({"command": self.command, "identity": self.identity}, file, indent=1)

    @property
    def command(self) -> str:
        """The command that makes the study."""
        kind = type(self.config).__name__.removesuffix("Config").lower()
        return command_line(f"bert finetune {kind}", self.config)

    def report(self, text: str, numbers: Mapping[str, Any]) -> None:
        """Print a report, and write it down."""
        print(text)
        with whole_file(self.out / "report.txt") as file:
            file.write(f"{self.command}\n\n{text}\n")
        with whole_file(self.out / REPORT) as file:
            json.dump({"command": self.command, **numbers}, file, indent=1)


def conduct(
    config: ConfigT,
    plan: Callable[[Study[ConfigT]], Mapping[str, PlannedRun]],
    report: Callable[[Study[ConfigT], Mapping[str, PlannedRun]], None],
) -> int:
    """Plan the runs, run them, report; return an exit code.

    Raises:
        ValueError: a run can't be, before the first one begins; or the directory has another
            study, or something else, in it.
        ModuleNotFoundError: what the scores need is missing; the message names the extra.
    """
    if config.dry_run:
        return print_dry_run(config)
    with begin(config) as study:
        runs = plan(study)
        code = study.carry_out(runs)
        if code == 0:
            report(study, runs)
        return code


def print_dry_run(config: StudyConfig) -> int:
    """Say what one of the runs would do; return the exit code."""
    print(f"{dry_run(config.base())}\n\nThat is one run of the study's, on all rows.")
    return 0


@contextmanager
def begin(config: ConfigT) -> Iterator[Study[ConfigT]]:
    """Check what all runs have in common, and be alone in the study's directory.

    Raises:
        ValueError: as `conduct` says.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError("torchrun: expected one process for a study, got several")
    refuse_file(config.out)
    prepared = prepare(config.base())
    prepared.task.require_libraries()
    identity = _identity(config, prepared)
    config.out.mkdir(parents=True, exist_ok=True)
    with hold(config.out, "out"):
        _make_way(config, identity)
        yield Study(config, prepared, identity)


def finish(config: FinetuneConfig) -> int:
    """Run what isn't finished; return an exit code."""
    if (config.out / "metrics.json").exists():
        say(f"{config.out}: is finished")
        return 0
    return finetune(config).training.exit_code


def drop_checkpoints(run: Path) -> None:
    """Delete what a finished run would have gone on from; its model has the best weights."""
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    (run / "best.safetensors").unlink(missing_ok=True)


def _identity(config: StudyConfig, prepared: Prepared) -> dict[str, Any]:
    model = prepared.build_model(choose_hardware(config.training))
    training = config.training
    fixed = {
        **training.identity(),
        "budget": training.budget,
        "evaluate_every": training.evaluate_every,
    }
    found = {
        "study": type(config).__name__.removesuffix("Config").lower(),
        **{k: v for k, v in asdict(config).items() if k not in ("training", *_HOW_STARTED)},
        **{f"training.{name}": value for name, value in fixed.items()},
        "initial_weights": hash_tensors(state_tensors(model)),
        "tokenizer_hash": prepared.tokenizer.sha256,
        **{f"{purpose}_rows_hash": rows.sha256() for purpose, rows in prepared.rows.items()},
    }
    kept = {k: v for k, v in found.items() if k not in (*_PLACES, *config.may_grow)}
    return json.loads(json.dumps(kept, default=str))


def _make_way(config: StudyConfig, identity: Mapping[str, Any]) -> None:
    """Refuse a directory of something else, or of another study; delete a study if asked to."""
    path = config.out / STUDY
    if not path.exists():
        others = [p.name for p in config.out.iterdir() if p.name not in (ROWS, "lock")]
        if others:
            raise ValueError(
                f"out: expected a new directory, or a study's, got {config.out}, which has "
                f"{min(others)} in it"
            )
    elif config.resume == "none":
        if not config.overwrite:
            raise ValueError(
                f"overwrite: expected it, since {config.out} has a study in it, got False"
            )
        _delete(config.out)
    else:
        _check_same(path, identity)


def _check_same(path: Path, identity: Mapping[str, Any]) -> None:
    found = read_json(path).get("identity", {})
    for name in [*identity, *found]:
        if found.get(name) != identity.get(name):
            raise ValueError(
                f"{name}: expected {found.get(name)!r}, as in the study in {path.parent}, "
                f"got {identity.get(name)!r}; take another directory, or --resume none --overwrite"
            )


def _delete(out: Path) -> None:
    """Delete the study that is in a directory, and nothing else."""
    for child in out.iterdir():
        if child.is_dir() and (child.name in _MADE or (child / "run.json").exists()):
            shutil.rmtree(child)
        elif child.name in _MADE:
            child.unlink()
    (out / STUDY).unlink()
