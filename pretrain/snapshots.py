"""Models of the steps on the way, for those who study training.

Steps 0, 1, 2, 4, 8, …: most of what happens to a network happens early, so the steps are spaced
by their logarithm (Pythia, Biderman et al. 2023, keeps 0, 1, 2, 4, … 512 and then every
thousandth). Each is a directory that transformers loads, tokenizer and all, and has a manifest of
its files' SHA-256:

    OUT/snapshots/step-00000064/
"""

from collections.abc import Callable
from pathlib import Path

from bert.training.checkpoint_files import (
    delete_checkpoint,
    delete_partial,
    list_checkpoints,
    step_of,
    write_checkpoint,
)


def is_snapshot_step(step: int) -> bool:
    """Say whether a step is 0 or a power of two."""
    return step & (step - 1) == 0


class Snapshots:
    """Called with each number of finished steps, it saves the model of those that are due.

    The first call says where the run starts or goes on: what there is of that step and of later
    ones is deleted, for it will be made again. Earlier ones are kept.

    Args:
        home: the directory for them; made when the first one is due.
        save: writes the model as it is now into the directory that it is given.
        size: bytes that it takes, for the error.
    """

    def __init__(self, home: Path, save: Callable[[Path], None], size: int) -> None:
        self._home = home
        self._save = save
        self._size = size
        self._has_started = False

    def is_due(self, step: int) -> bool:
        """Say whether a step wants a call: the first that there is, 0 and the powers of two."""
        return not self._has_started or is_snapshot_step(step)

    def __call__(self, step: int) -> None:
        """Save the model of this step, if it is due; whole or not at all.

        Raises:
            OSError: it can't be written; nothing of it is left.
        """
        if not self._has_started and self._home.exists():
            delete_partial(self._home)
            for path in list_checkpoints(self._home):
                if step_of(path) >= step:
                    delete_checkpoint(path)
        self._has_started = True
        if is_snapshot_step(step):
            self._home.mkdir(exist_ok=True)
            write_checkpoint(self._home, step, self._size, self._save)
