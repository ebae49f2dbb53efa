"""Where a run's numbers are shown too: TensorBoard, Weights & Biases, trackio.

The log (log.py) is the record and is always complete. A tracker is a view of it: it gets the
numbers of a line once the line is written, under names such as step/loss, step/losses/mlm and
evaluation/mlm_loss. A tracker that fails, at its start or later, is dropped with one line, and
training goes on; only a library that is not installed is refused, before anything is done.

    RUN_DIR/trackers/
        id              the run's name for wandb and trackio, drawn where the run began
        tensorboard/    event files: tensorboard --logdir RUN_DIR
        wandb/          wandb's files; without a WANDB_MODE of the user's, offline (wandb sync)

trackio keeps its own directory, where `trackio show` looks (TRACKIO_DIR).
"""

import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from bert.training.progress import say

KINDS = frozenset({"step", "bad_step", "evaluation", "statistics"})
"""The lines of the log whose numbers a tracker gets."""
PROJECT = "plainbert"


@runtime_checkable
class Tracker(Protocol):
    """What shows a run's numbers; either method may raise whatever it likes."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Take the numbers of one line of the log."""
        ...

    def close(self) -> None:
        """Bring what was taken to where it belongs."""
        ...


class TensorBoard:
    """Event files; a resumed run hides what the stopped one wrote beyond its checkpoint."""

    def __init__(self, home: Path, step: int, description: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(home / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Queue them; the files are written every two minutes."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is queued."""
        self._writer.close()


class Wandb:
    """A run of Weights & Biases, which is continued under the same id."""

    def __init__(self, home: Path, step: int, description: Mapping[str, Any]) -> None:
        wandb: Any = import_module("wandb")
        name = run_id(home, step)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=str(home),
            id=name,
            name=name,
            config=dict(description),
            mode=os.environ.get("WANDB_MODE", "offline"),
            resume="allow",
            settings=wandb.Settings(console="off"),  # stdout and stderr stay ours
        )

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log them; those of one step are shown together."""
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class Trackio:
    """A run of trackio, which is continued under the same name."""

    def __init__(self, home: Path, step: int, description: Mapping[str, Any]) -> None:
        trackio: Any = import_module("trackio")
        self._run = trackio.init(
            project=PROJECT, name=run_id(home, step), config=dict(description), resume="allow"
        )

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log them."""
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


TRACKERS: dict[str, Callable[[Path, int, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
}


class Trackers:
    """The trackers of a run that have not failed.

    Args:
        names: of `TRACKERS`.
        home: the directory for what they keep with the run.
        step: of the checkpoint that the run goes on from; 0 at its beginning.
        description: what run.json says.
    """

    def __init__(
        self, names: Sequence[str], home: Path, step: int, description: Mapping[str, Any]
    ) -> None:
        self._open: dict[str, Tracker] = {}
        for name in names:
            self._try(name, lambda name=name: self._start(name, home, step, description))

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Hand on the numbers of a line of the log."""
        if kind in KINDS and self._open:
            scalars = dict(flatten(kind, values))
            for name, tracker in list(self._open.items()):
                self._try(name, lambda tracker=tracker: tracker.write(step, scalars))

    def close(self) -> None:
        """Close them all."""
        for name, tracker in list(self._open.items()):
            self._try(name, tracker.close)
        self._open.clear()

    def _start(self, name: str, home: Path, step: int, description: Mapping[str, Any]) -> None:
        home.mkdir(exist_ok=True)
        self._open[name] = TRACKERS[name](home, step, description)

    def _try(self, name: str, do: Callable[[], None]) -> None:
        try:
            do()
        except Exception as error:  # whatever it is, the run is worth more
            self._open.pop(name, None)
            what = " ".join(str(error).split()) or "no reason given"
            say(
                f"tracker {name} dropped, training goes on with the log: "
                f"{type(error).__name__}: {what}"
            )


def require_trackers(names: Sequence[str]) -> None:
    """Refuse trackers whose library is not installed.

    Raises:
        ModuleNotFoundError: one isn't; the message names the extra.
    """
    for name in names:
        if find_spec(name) is None:
            raise ModuleNotFoundError(
                f"training.trackers: {name} is missing; install the extra {name}: "
                f"pip install -e .[{name}]",
                name=name,
            )


def flatten(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """Yield the numbers in a value of the log under the path to each, and nothing else.

    What an evaluation returned lies directly below it: evaluation/mlm_loss.
    """
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield name, float(value)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from flatten(name if key == "results" else f"{name}/{key}", part)
    elif isinstance(value, list):
        for place, part in enumerate(value):
            yield from flatten(f"{name}/{place}", part)


def run_id(home: Path, step: int) -> str:
    """Return the run's name among others: the directory's, and eight letters drawn at step 0."""
    path = home / "id"
    if step == 0 or not path.exists():
        path.write_text(f"{home.parent.name[:50]}-{secrets.token_hex(4)}\n")
    return path.read_text().strip()
