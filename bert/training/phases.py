"""Phases: parts of a run that train on micro-batches of their own, short ones first as a rule."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic

from bert.training.distributed import World
from bert.training.loading import micro_batches
from bert.training.objective import Batches, BatchT


@dataclass(frozen=True)
class Phase(Generic[BatchT]):
    """What a run trains on until it has come so far."""

    name: str
    """For the user, as "64:1024:0.9"; empty where there is one phase only."""
    until: float
    """Where in the run the next phase begins, from 0 to 1; the last one ends with the run."""
    batches: Batches[BatchT]


def phase_at(phases: Sequence[Phase[BatchT]], progress: float) -> Phase[BatchT]:
    """Return the phase of a step at this place of the run.

    Phases follow from the progress alone, so that a run that goes on from a checkpoint is in the
    phase in which one that never stopped would be.
    """
    return next((phase for phase in phases if progress < phase.until), phases[-1])


class Source:
    """Micro-batches in order of their index, which goes on from phase to phase.

    Args:
        accumulation: micro-batches of a step.
        workers: processes that prepare them, see `micro_batches`.
        world: the processes that train together; this one gets its share.
    """

    def __init__(self, accumulation: int, workers: int, world: World) -> None:
        self.accumulation, self.workers, self.world = accumulation, workers, world
        self.phase: Phase[Any] | None = None
        self._prepared: Generator[tuple[int, Any]] | None = None

    def enter(self, phase: Phase[Any], step: int) -> bool:
        """Take what comes from this phase from now on; say whether it is another than before.

        Args:
            phase: of the next step.
            step: finished steps.
        """
        if phase is self.phase:
            return False
        self.close()
        self.phase = phase
        self._prepared = micro_batches(
            phase.batches,
            step * self.accumulation,
            self.workers,
            lambda index: self.world.owns(index, self.accumulation),
        )
        return True

    def window(self) -> list[tuple[int, Any]]:
        """Return this process's micro-batches of the next step, each with its index."""
        assert self._prepared is not None
        return list(islice(self._prepared, self.world.share(self.accumulation)))

    def close(self) -> None:
        """End the processes that prepare."""
        if self._prepared is not None:
            self._prepared.close()
