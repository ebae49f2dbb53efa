"""The training loop that pretraining and fine-tuning both stand on. Read it from the top.

Step k trains on the micro-batches k × accumulation and following. Batches and dropout are
functions of a micro-batch's index alone, so a run that stops at any step and goes on ends with
the same parameters, bit by bit, as one that never stopped (on one machine, with the same threads
and a budget in steps or tokens; one of wall clock follows the clock).

Several processes (distributed.py) share the micro-batches of each step. All run this code, and
decide the same; the first alone has the directory of the run, evaluates and writes. They may
share the model as well (sharding.py): what is trained is then a twin of the objective.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from bert.training.checkpoint_files import list_checkpoints, prune
from bert.training.config import TrainingConfig
from bert.training.distributed import ALONE, World
from bert.training.early_stopping import NEVER, EarlyStopping
from bert.training.hardware import choose_hardware
from bert.training.interrupt import Interrupted, Interrupts
from bert.training.log import RunLog
from bert.training.loss_scale import first_scale, next_scale
from bert.training.nonfinite import TrainingDiverged
from bert.training.objective import Batches, Objective
from bert.training.optimizer import build_optimizer, describe_groups, set_learning_rate
from bert.training.phases import Phase, Source, phase_at
from bert.training.progress import ProgressBar, say
from bert.training.restoring import restore
from bert.training.result import TrainingResult
from bert.training.resume import check_identity, find_common_start, make_way
from bert.training.run_directory import RunDirectory
from bert.training.schedule import learning_rate
from bert.training.sharding import fill, is_sharded, put_together, shard
from bert.training.state import (
    Identity,
    TrainingState,
    save_checkpoint,
    save_part,
    state_tensors,
)
from bert.training.statistics import watch_step
from bert.training.step import StepOutcome, take_step
from bert.training.throughput import peak_memory, peak_speed, utilization
from bert.training.timetable import Timetable
from bert.training.trackers import Trackers, require_trackers

Evaluation = Callable[[], Mapping[str, float]]


@runtime_checkable
class StepWatcher(Protocol):
    """What looks at the objective between steps."""

    def is_due(self, step: int, /) -> bool:
        """Say whether it wants to be called; what isn't due costs nothing."""
        ...

    def __call__(self, step: int, /) -> None:
        """Look; `step` is the number of finished steps."""
        ...


def train(
    objective: Objective[Any],
    batches: Batches[Any] | Sequence[Phase[Any]],
    config: TrainingConfig,
    run_dir: Path,
    *,
    evaluate: Evaluation | None = None,
    is_evaluation_shared: bool = False,
    early_stopping: EarlyStopping = NEVER,
    study_batch: Any = None,
    on_step: StepWatcher | None = None,
    identity: Mapping[str, Any] | None = None,
    resume: str | Path = "auto",
    overwrite: bool = False,
    reserve_seconds: float = 0.0,
    world: World = ALONE,
    clock: Callable[[], float] = time.monotonic,
) -> TrainingResult:
    """Train until the budget is spent or a signal comes, and leave a checkpoint either way.

    Args:
        objective: the model and its losses; moved to the device, and trained in place.
        batches: the micro-batches; the same index must give the same one in any process. Or the
            phases of the run, in order.
        config: see TrainingConfig.
        run_dir: see run_directory.py; made if it is not there.
        evaluate: returns named numbers; runs in eval mode, without gradients, in the precision
            of the training, every `config.evaluate_every` and at the end. It must not change
            the objective: a signal ends it half-way.
        is_evaluation_shared: whether of several processes each calls `evaluate`, and all get the
            same; else the first does alone. A signal waits then for the evaluation's end.
        early_stopping: which of the numbers is followed, and whether it may end the run.
        study_batch: the micro-batch that `objective.study` looks at; None: the first of training.
        on_step: called with the finished steps before the first step, or the one after a resume,
            and after each, where they are due; it must not change the objective.
        identity: what else makes this run this run (data, tokenizer, model), as JSON; a resumed
            run refuses another.
        resume: "auto" (the newest whole checkpoint, or a fresh start), "none", or a checkpoint.
        overwrite: whether a fresh start may delete the run that is in `run_dir`.
        reserve_seconds: of a wall-clock budget, the time to keep for the last evaluation; once
            one was measured, the longest is kept.
        world: the processes that train together; each calls this with the same arguments.
        clock: seconds that never go back; another one for tests.

    Raises:
        ValueError: an argument is wrong, or the run can't be resumed as asked.
        OSError: something could not be written; the older checkpoints are whole.
        TrainingDiverged: `config.max_bad_steps` steps in a row were NaN or infinite.
        ProcessLost: another process has ended, or is silent.
    """
    require_trackers(config.trackers)
    place = RunDirectory(Path(run_dir)) if world.is_first else nullcontext()
    with place as directory, Interrupts() as interrupts, world.talking_within():
        # First of all: torch's first optimiser takes seconds of imports, within the budget.
        timetable = Timetable(config, clock, world, reserve_seconds)
        run = _Run(objective, batches, config, directory, interrupts, timetable, world)
        run.evaluation, run.study_batch, run.on_step = evaluate, study_batch, on_step
        run.early_stopping = early_stopping
        run.is_evaluation_shared = is_evaluation_shared and not world.is_alone
        run.begin(resume, overwrite, identity or {})
        with closing(run):
            try:
                run.go_on()
            except Interrupted:
                run.save()
            fill(run.objective, run.trained)
            return run.result()


class _Run:
    """A run under way: `go_on` is the loop, the others are its parts."""

    def __init__(
        self,
        objective: Objective[Any],
        batches: Batches[Any] | Sequence[Phase[Any]],
        config: TrainingConfig,
        directory: RunDirectory | None,
        interrupts: Interrupts,
        timetable: Timetable,
        world: World,
    ) -> None:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.hardware = choose_hardware(config, world.local_rank)
        self.objective = objective.to(self.hardware.device).train()
        world.copy_from_first(state_tensors(objective).values())
        is_cut = config.sharding == "full" and not world.is_alone
        self.trained = shard(objective, world) if is_cut else objective
        self.optimizer = build_optimizer(self.trained, config)
        self.phases = [Phase("", 1.0, batches)] if isinstance(batches, Batches) else batches
        self.config = config
        self.directory = directory
        self.interrupts = interrupts
        self.timetable = timetable
        self.world = world
        self.evaluation: Evaluation | None = None
        self.is_evaluation_shared = False
        self.early_stopping = NEVER
        self.study_batch: Any = None
        self.on_step: StepWatcher | None = None

    def begin(self, resume: str | Path, overwrite: bool, identity: Mapping[str, Any]) -> None:
        """Take up the state of a checkpoint, or the one before the first step."""
        fixed = {**self.config.identity(), "precision": self.hardware.precision, **identity}
        self.identity = Identity.of(fixed, self.hardware, self.world.size)
        start = find_common_start(self.directory, resume, overwrite, say, self.world)
        self.state = TrainingState(loss_scale=first_scale(self.hardware.precision))
        if start.checkpoint is not None:
            check_identity(start.checkpoint, self.identity, say)
            restore(start.checkpoint, self.trained, self.optimizer)
            self.state = start.checkpoint.state
        if self.directory is not None:
            make_way(self.directory, start, say)

        self.timetable.follow(self.state)
        description = {
            "config": asdict(self.config),
            "identity": self.identity.fixed,
            "machine": self.identity.machine,
            "parameter_groups": describe_groups(self.optimizer),
        }
        self.peak = 0.0
        if type(self.objective).operations is not Objective.operations:
            self.peak = peak_speed(self.hardware)
            description["peak_operations_per_second"] = self.peak
        trackers, home, log = (), Path(os.devnull), Path(os.devnull)
        if self.directory is not None:
            self.directory.describe(description)
            trackers, home = self.config.trackers, self.directory.trackers
            log = self.directory.log
        self.trackers = Trackers(trackers, home, self.state.step, description)
        self.log = RunLog(log, self.trackers.write)
        cut = self.log.cut_after(self.state.step, self.state.evaluated_step)
        if cut:
            say(f"{self.log.path}: {cut} lines dropped, later than step {self.state.step}")
        came_from = None if start.checkpoint is None else str(start.checkpoint.path)
        self.log.write("start", self.state.step, checkpoint=came_from, **description)
        if came_from is not None and self.why_early() is not None:
            say(f"step {self.state.step} is the last: {self.why_early()}")
        elif came_from is not None and not self.timetable.has_room():
            say(
                f"step {self.state.step} is the last of the budget of {self.config.budget}: "
                "nothing is left to train"
            )
        else:
            processes = "" if self.world.is_alone else f", {self.world.size} processes"
            say(
                f"{'training' if came_from is None else 'going on'} from step {self.state.step} "
                f"on {self.hardware.device}, {self.hardware.precision} ({self.hardware.reason})"
                f"{processes}"
            )
        self.bar = ProgressBar(self.timetable.total)

    def go_on(self) -> None:
        """Train to the end of the budget, or of the patience.

        Raises:
            Interrupted: a signal came; the state is the one after the last finished step.
        """
        source = Source(self.config.accumulation, self.config.loader_workers, self.world)
        with closing(source):
            while True:
                self.tell_step()
                is_finished = not self.timetable.has_room()
                if is_finished or self.timetable.is_evaluation_due():
                    self.evaluate()
                is_finished = is_finished or self.why_early() is not None
                if is_finished or self.timetable.is_checkpoint_due():
                    self.save()
                self.check_interrupts()
                if is_finished:
                    return
                self.step(source)

    def tell_step(self) -> None:
        """Call `on_step` in the first process, if it wants this step, while the others wait."""
        if self.on_step is None:
            return
        if self.world.from_first(self.on_step.is_due(self.state.step)):
            with put_together(self.objective, self.trained):
                if self.world.is_first:
                    self.on_step(self.state.step)
            self.world.wait_for_all()

    def step(self, source: Source) -> None:
        """Take the next optimiser step, and write down what it was."""
        state, started = self.state, self.timetable.elapsed()
        progress = self.timetable.progress()
        rate = learning_rate(self.config, progress)
        set_learning_rate(self.optimizer, rate)
        phase = phase_at(self.phases, progress)
        if source.enter(phase, state.step) and len(self.phases) > 1:
            say(f"step {state.step}: phase {phase.name}")
        # Of several processes none may abandon what the others are waiting for.
        alone = self.world.is_alone
        with self.interrupts.abandonable() if alone else nullcontext():
            window = source.window()
        watch = watch_step(self.trained, self.optimizer) if self.is_watched() else None
        with watch or nullcontext({}) as statistics:
            outcome = take_step(
                self.trained,
                self.optimizer,
                window,
                self.config,
                self.hardware,
                self.interrupts.check if alone else lambda: None,
                self.world,
                state.loss_scale,
            )
        own_tokens = sum(phase.batches.tokens(batch) for _, batch in window)
        tokens = sum(self.world.gather(own_tokens))
        operations = sum(self.objective.operations(batch) for _, batch in window)
        state.step += 1
        state.tokens += tokens
        state.elapsed = self.timetable.elapsed()
        seconds = state.elapsed - started
        state.step_seconds = max(seconds, 0.9 * state.step_seconds)
        speed = tokens / seconds if seconds > 0 else 0.0
        values = {
            "loss": outcome.loss,
            "losses": outcome.losses,
            "grad_norm": outcome.grad_norm,
            "learning_rate": rate,
            "tokens": state.tokens,
            "tokens_per_second": speed,
            **utilization(operations, seconds, self.peak),
            "elapsed": state.elapsed,
        }
        if outcome.is_overflow:
            self.log.write("overflow", state.step, **values, loss_scale=state.loss_scale)
        elif outcome.source is None:
            state.loss, state.bad_steps = outcome.loss, 0
            self.log.write("step", state.step, **values)
        else:
            state.bad_steps += 1
            self.log.write("bad_step", state.step, **values, source=outcome.source)
            self.report_bad_step(outcome)
        if self.hardware.precision == "float16" and outcome.source is None:
            state.loss_scale, state.loss_scale_age = next_scale(
                state.loss_scale, state.loss_scale_age, outcome.is_overflow
            )
        self.bar.update(state, speed)
        if statistics:
            self.study(statistics)

    def is_watched(self) -> bool:
        """Say whether this process has a part in the statistics of the next step."""
        every = self.config.statistics_every
        is_asked = self.world.is_first or is_sharded(self.trained)
        return is_asked and every is not None and (self.state.step + 1) % every == 0

    def study(self, statistics: dict[str, Any]) -> None:
        """Log what the last step did, with what the objective has to show of itself."""
        with put_together(self.objective, self.trained):
            if not self.world.is_first:
                return
            if self.study_batch is None:
                self.study_batch = self.phases[0].batches[0]
            try:
                with self.looking():
                    shown = self.objective.study(self.study_batch.to(self.hardware.device))
            except Interrupted:
                return  # heeded before the next step, by all processes
        self.log.write("statistics", self.state.step, **statistics, **shown)

    @contextmanager
    def looking(self, *, is_abandonable: bool = True) -> Iterator[None]:
        """Run the objective in evaluation mode; a signal ends it half-way where it may."""
        self.objective.eval()
        signals = self.interrupts.abandonable() if is_abandonable else nullcontext()
        try:
            with signals, torch.no_grad(), self.hardware.autocast():
                yield
        finally:
            self.objective.train()

    def report_bad_step(self, outcome: StepOutcome) -> None:
        """Tell of a step that was not taken, and end the run at too many in a row."""
        what = (
            f"step {self.state.step} skipped: loss {outcome.loss}, "
            f"gradient norm {outcome.grad_norm}, first in the {outcome.source}"
        )
        say(what)
        if self.state.bad_steps >= self.config.max_bad_steps:
            raise TrainingDiverged(
                f"{what}; it was bad step {self.state.bad_steps} in a row (max_bad_steps)"
            )

    def evaluate(self) -> None:
        """Evaluate the parameters of this step, unless that is done or can't be."""
        if self.evaluation is None or self.state.evaluated_step == self.state.step:
            return
        started = self.timetable.elapsed()
        results = self.results_of(self.evaluation)
        if results is None:
            raise Interrupted
        state, state_elapsed = self.state, self.timetable.elapsed()
        state.evaluation = results
        state.evaluated_step, state.evaluated_tokens = state.step, state.tokens
        state.elapsed = state.evaluated_at = state_elapsed
        state.evaluation_seconds = max(state.evaluation_seconds, state_elapsed - started)
        told = {"results": results, **self.early_stopping.follow(state, results)}
        memory = peak_memory(self.hardware.device)
        self.log.write("evaluation", state.step, **told, elapsed=state_elapsed, peak_memory=memory)
        say(f"step {state.step}: " + ", ".join(f"{k} {v:.4f}" for k, v in results.items()))
        if (why := self.why_early()) is not None:
            say(f"stopping early: {why}")

    def why_early(self) -> str | None:
        """Say why the run ends here, with some of its budget left; None where it doesn't."""
        why = self.early_stopping.reason_to_stop(self.state)
        return why if why is not None and self.timetable.has_room() else None

    def results_of(self, evaluation: Evaluation) -> dict[str, float] | None:
        """Evaluate, in the first process or in all; None if a signal ended it half-way."""
        own, is_shared = None, self.is_evaluation_shared
        with put_together(self.objective, self.trained):
            if self.world.is_first or is_shared:
                try:
                    with self.looking(is_abandonable=not is_shared):
                        own = {name: float(value) for name, value in evaluation().items()}
                except Interrupted:
                    pass
        self.world.wait_for_all()
        return self.world.from_first(own)

    def save(self) -> None:
        """Write a checkpoint of this step, unless there is one; then drop the oldest."""
        state = self.state
        if state.saved_step == state.step:
            return
        state.elapsed = state.saved_at = self.timetable.elapsed()
        state.saved_step, state.saved_tokens = state.step, state.tokens
        name = None
        if self.directory is not None:
            self.log.sync()
            home, trained = self.directory.checkpoints, (self.trained, self.optimizer)
            name = save_checkpoint(home, state, self.identity, *trained, self.world).name
            prune(home, self.config.keep_checkpoints)
        else:
            save_part(self.trained, self.optimizer, self.world)
        self.world.wait_for_all()
        seconds = self.timetable.elapsed() - state.saved_at
        state.save_seconds = max(state.save_seconds, seconds)
        memory = peak_memory(self.hardware.device)
        self.log.write("checkpoint", state.step, name=name, seconds=seconds, peak_memory=memory)

    def received_signal(self) -> signal.Signals | None:
        """Return the signal that has come to any of the processes; None if none has."""
        came = [s for s in self.world.gather(self.interrupts.received) if s is not None]
        return signal.Signals(came[0]) if came else None

    def check_interrupts(self) -> None:
        """Raise Interrupted, in all processes, if a signal has come to any."""
        if self.received_signal() is not None:
            raise Interrupted

    def result(self) -> TrainingResult:
        """Say how it ended."""
        newest = None
        if self.directory is not None:
            newest = next(reversed(list_checkpoints(self.directory.checkpoints)), None)
        path = self.world.from_first(None if newest is None else str(newest))
        return TrainingResult(
            self.state.step,
            self.state.tokens,
            self.state.elapsed,
            self.state.loss,
            self.state.evaluation,
            self.state.best_value,
            self.state.best_step,
            self.why_early(),
            None if path is None else Path(path),
            self.received_signal(),
        )

    def close(self) -> None:
        """Close the log, the trackers and the bar."""
        self.log.close()
        self.trackers.close()
        self.bar.close()
