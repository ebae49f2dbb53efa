"""`bert finetune search … --trials 20`: settings that do best on the validation file, by optuna.

OUT/
    study.json          what the search is; see study.py
    trials.journal      optuna's record of it, which its dashboard shows too
    trial-0/ …          the runs; the weights are kept of the best alone
    report.txt, .json   all trials, and the command of the best

Trial n's settings follow from the seed, n and the results so far: the sampler (TPE, Bergstra et
al. 2011) is seeded for each trial anew. A search that was stopped takes up the trial that it was
in, and goes on as if it hadn't been (with a budget in steps, tokens or epochs). A run ends early
where its best evaluation so far is below the median of the others' at the same evaluation
(optuna's MedianPruner), once five came to their end.
"""

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bert.command import command_line
from bert.config import read_json
from bert.training.log import read_log
from bert.training.nonfinite import TrainingDiverged
from bert.training.progress import say
from finetune.config import FinetuneConfig
from finetune.prepare import prepare
from finetune.run import finetune
from finetune.studies.config import SearchConfig
from finetune.studies.space import Parameter, Range, Value, corners, with_values
from finetune.studies.study import Study, begin, drop_checkpoints, print_dry_run

JOURNAL = "trials.journal"


def run(config: SearchConfig) -> int:
    """Search, and report; return the exit code."""
    optuna = require_optuna()
    if config.dry_run:
        return print_dry_run(config)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with begin(config) as study:
        for values in corners(config.parameters):
            prepare(with_values(study.config.base(), values))
        study.describe()
        return Search(study, optuna).go_on()


class Search:
    """A search under way.

    Args:
        study: its directory, and what all trials have in common.
        optuna: the module.
    """

    def __init__(self, study: Study[SearchConfig], optuna: Any) -> None:
        self.study, self.config, self.optuna = study, study.config, optuna
        self.metric = str(study.prepared.config.best_metric)
        pruner = optuna.pruners.MedianPruner() if self.config.prune else optuna.pruners.NopPruner()
        self.trials = optuna.create_study(
            storage=open_journal(optuna, study.out / JOURNAL),
            study_name="search",
            direction="maximize",
            pruner=pruner,
            load_if_exists=True,
        )

    def go_on(self) -> int:
        """Take the trials that are left, and report; return an exit code."""
        self.take_up_what_was_stopped()
        while (number := len(self.finished())) < self.config.trials:
            say(f"\ntrial {number + 1} of {self.config.trials}")
            code = self.take_trial(number)
            if code != 0:
                say(f"stopped in trial-{number}; the same command goes on")
                return code
            self.drop_weights()
        code = self.test_best()
        if code == 0:
            self.report()
        return code

    def take_up_what_was_stopped(self) -> None:
        """Ask for the settings of a trial that was under way once more; its run goes on."""
        states = self.optuna.trial.TrialState
        for trial in self.trials.get_trials(states=(states.RUNNING,)):
            self.trials.tell(trial.number, state=states.FAIL)
            self.trials.enqueue_trial(trial.params)

    def finished(self) -> list[Any]:
        """Return the trials that have an end, in their order: the n-th is in trial-n."""
        states = self.optuna.trial.TrialState
        return self.trials.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED))

    def take_trial(self, number: int) -> int:
        """Run a trial; return an exit code."""
        seed = (self.config.seed * 1_000_003 + number) % 2**32
        self.trials.sampler = self.optuna.samplers.TPESampler(seed=seed)
        trial = self.trials.ask()
        values = {p.name: suggest(trial, p) for p in self.config.parameters}
        say(", ".join(f"{name} {value}" for name, value in values.items()))
        run = self.configure(number, values)
        reported: list[float] = []

        def look(value: float) -> None:
            # The log has the evaluations before this one, those before a stop too.
            for each in [*self.evaluations(run), value][len(reported) :]:
                reported.append(each)
                trial.report(each, step=len(reported))
            if trial.should_prune():
                raise _Pruned("worse than the median of the others")

        try:
            code = finetune(run, on_evaluation=look).training.exit_code
            if code != 0:
                return code
            if not math.isfinite(self.value(run)):
                raise _Pruned(f"{self.metric} is {self.value(run)}")
        except (_Pruned, TrainingDiverged) as reason:
            say(f"trial {number} ends early: {reason}")
            self.trials.tell(trial, state=self.optuna.trial.TrialState.PRUNED)
        else:
            self.trials.tell(trial, self.value(run))
        return 0

    def configure(self, number: int, values: Mapping[str, Value]) -> FinetuneConfig:
        """Return the run of a trial, which doesn't see the test file."""
        base = self.config.base(out=self.config.out / f"trial-{number}", test_file=None)
        return with_values(base, values)

    def value(self, run: FinetuneConfig) -> float:
        """Read what a finished run is worth on the validation file."""
        return float(read_json(run.out / "metrics.json")["validation"][self.metric])

    def evaluations(self, run: FinetuneConfig) -> list[float]:
        """Read what a run was worth at each of its evaluations so far."""
        found = read_log(run.out / "log.jsonl", "evaluation")
        return [record["results"][self.metric] for record in found]

    def best(self) -> int:
        """Return the place of the best trial, the first of equals.

        Raises:
            ValueError: none came to its end.
        """
        finished = self.finished()
        complete = [i for i, trial in enumerate(finished) if is_complete(trial)]
        if not complete:
            raise ValueError(
                f"space: expected settings with which a run ends, got none in {len(finished)}"
            )
        return max(complete, key=lambda i: (finished[i].value, -i))

    def drop_weights(self) -> None:
        """Delete the weights of all finished trials but the best."""
        finished = self.finished()
        best = self.best() if any(map(is_complete, finished)) else None
        for number in range(len(finished)):
            if number != best:
                run = self.config.out / f"trial-{number}"
                drop_checkpoints(run)
                shutil.rmtree(run / "model", ignore_errors=True)

    def test_best(self) -> int:
        """Test the best trial's model on the test file, if there is one; return an exit code."""
        if self.config.test_file is None:
            return 0
        number = self.best()
        run = self.configure(number, self.finished()[number].params)
        tested = read_json(run.out / "run.json")["data"].get("test", {})
        if tested.get("sha256") == self.study.prepared.data["test"]["sha256"]:
            return 0
        say(f"\nthe test file, by the best trial, {number}")
        return finetune(replace(run, test_file=self.config.test_file)).training.exit_code

    def report(self) -> None:
        """Print and write down all trials, and the command of the best."""
        trials, best, metric = self.finished(), self.best(), self.metric
        names = [parameter.name for parameter in self.config.parameters]
        run = self.configure(best, trials[best].params)
        found = read_json(run.out / "metrics.json")
        command = command_line("bert finetune", replace(run, test_file=self.config.test_file))
        lines = [table(trials, names, metric), "", f"The best is trial {best}:", "", command, ""]
        if "test" in found:
            lines.append(f"Its {metric} on the test file is {found['test'][metric]:.4f}.")
        lines += [
            f"Its {metric} on the validation file is the greatest of {len(trials)}, so it is "
            "likely to be lower on other rows.",
            f"model: {run.out / 'model'}",
        ]
        numbers = {
            "metric": metric,
            "best": best,
            "best_command": command,
            "best_scores": found,
            "trials": [
                {"trial": i, "state": t.state.name.lower(), "value": value_of(t), **t.params}
                for i, t in enumerate(trials)
            ],
        }
        self.study.report("\n".join(lines), numbers)


def open_journal(optuna: Any, path: Path) -> Any:
    """Open optuna's record, without what a kill has left of it: half a line, and a lock.

    The study holds the directory, so that no other process writes there.
    """
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    journal = optuna.storages.journal
    return optuna.storages.JournalStorage(journal.JournalFileBackend(str(path)))


class _Pruned(Exception):
    """A trial isn't worth going on with; the message says why."""


def suggest(trial: Any, parameter: Parameter) -> Value:
    """Have optuna choose a value."""
    if not isinstance(parameter, Range):
        return trial.suggest_categorical(parameter.name, parameter.values)
    choose = trial.suggest_int if parameter.is_integer else trial.suggest_float
    return choose(parameter.name, parameter.low, parameter.high, log=parameter.is_log)


def is_complete(trial: Any) -> bool:
    """Say whether a trial came to its end, and wasn't pruned."""
    return trial.state.name == "COMPLETE"


def value_of(trial: Any) -> float | None:
    """Return a trial's score on the validation file; of a pruned one, at its last evaluation."""
    values = trial.intermediate_values
    return trial.value if trial.value is not None else values[max(values)] if values else None


def table(trials: Sequence[Any], names: Sequence[str], metric: str) -> str:
    """Write a line for each trial, the best first, and those that ended early at the end."""

    def rank(place: int) -> tuple[bool, float]:
        value = value_of(trials[place])
        return not is_complete(trials[place]), -(value if value is not None else -1e9)

    cells = [["trial", metric, "", *(name.rpartition(".")[2] for name in names)]]
    for place in sorted(range(len(trials)), key=rank):
        trial, value = trials[place], value_of(trials[place])
        end = "" if is_complete(trial) else "ended early"
        shown = "" if value is None else f"{value:.4f}"
        cells.append([str(place), shown, end, *(_short(trial.params[name]) for name in names)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def require_optuna() -> Any:
    """Import optuna, or say in one line how to get it.

    Raises:
        ModuleNotFoundError: it isn't installed; the message names the extra.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise ModuleNotFoundError(
            "optuna is missing; install the extra search: pip install -e .[search]", name="optuna"
        ) from None
    return optuna


def _short(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).lower()
