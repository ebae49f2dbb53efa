"""How far a run has come, and what is due: the only place that asks the clock."""

from collections.abc import Callable

from bert.training.config import TrainingConfig
from bert.training.distributed import World
from bert.training.schedule import is_due, is_spent, progress_at
from bert.training.span import Place
from bert.training.state import TrainingState


class Timetable:
    """The clock of a run, over all its starts, and its budget.

    Args:
        config: gives the budget and the intervals.
        clock: seconds that never go back.
        world: of several processes all call each method together, and decide by the first's clock.
        reserve_seconds: of a wall-clock budget, the time to keep for the last evaluation; once
            one was measured, the longest is kept.
    """

    def __init__(
        self,
        config: TrainingConfig,
        clock: Callable[[], float],
        world: World,
        reserve_seconds: float,
    ) -> None:
        self._clock, self._clock_at_zero = clock, clock()
        self._world = world
        self._reserve_seconds = reserve_seconds
        self._evaluate_every = config.every("evaluate_every")
        self._checkpoint_every = config.every("checkpoint_every")
        self.total = config.total()
        self._state = TrainingState()

    def follow(self, state: TrainingState) -> None:
        """Take up a run in this state, and follow it from now on."""
        self._state = state
        self._clock_at_zero -= state.elapsed

    def elapsed(self) -> float:
        """Return the seconds that this run has taken, over all its starts."""
        return self._world.from_first(float(self._clock() - self._clock_at_zero))

    def progress(self) -> float:
        """Return where in the run, from 0 to 1, the next step lies."""
        return progress_at(self.total, self._place(), self._reserve())

    def has_room(self, seconds: float = 0.0) -> bool:
        """Say whether the budget has room for one more step, after `seconds` of something else."""
        seconds += self._state.step_seconds
        return not is_spent(self.total, self._place(), self._reserve(), seconds)

    def is_evaluation_due(self) -> bool:
        """Say whether it is time for one, and there will be a step before the last one."""
        state = self._state
        last = Place(state.evaluated_step, state.evaluated_tokens, state.evaluated_at)
        is_time = is_due(self._evaluate_every, self._place(), last)
        return is_time and self.has_room(self._last_evaluation_seconds())

    def is_checkpoint_due(self) -> bool:
        """Say whether it is time for one, and there will be a step before the last one."""
        state = self._state
        last = Place(state.saved_step, state.saved_tokens, state.saved_at)
        is_time = is_due(self._checkpoint_every, self._place(), last)
        return is_time and self.has_room(state.save_seconds)

    def _place(self) -> Place:
        return Place(self._state.step, self._state.tokens, self.elapsed())

    def _reserve(self) -> float:
        """Return the seconds of a wall-clock budget that the end needs."""
        return self._last_evaluation_seconds() + self._state.save_seconds

    def _last_evaluation_seconds(self) -> float:
        """Return how long the last evaluation will take, as far as is known."""
        return max(self._reserve_seconds, self._state.evaluation_seconds)
