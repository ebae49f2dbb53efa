"""Where a run starts: from its newest whole checkpoint, from a named one, or anew.

Nothing is lost in silence: what would have to be deleted is refused unless overwriting was asked
for, and what was damaged is renamed and told.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bert.training.checkpoint_files import (
    DamagedCheckpoint,
    delete_checkpoint,
    list_checkpoints,
    set_aside,
    step_of,
)
from bert.training.distributed import World
from bert.training.run_directory import RunDirectory
from bert.training.state import Checkpoint, Identity, open_checkpoint


@dataclass(frozen=True)
class Start:
    """Where to start, and what has to go for it."""

    checkpoint: Checkpoint | None
    """None: before the first step."""
    obsolete: Literal["nothing", "newer", "everything"]
    """What of the run directory is deleted."""


def find_start(
    run: RunDirectory, resume: str | Path, overwrite: bool, say: Callable[[str], None]
) -> Start:
    """Find the checkpoint to start from; deletes nothing yet.

    Args:
        run: locked.
        resume: "auto", "none", or a checkpoint's directory, of this run or of another.
        overwrite: whether "none" may delete the run that is there, and a path the checkpoints
            that are newer than it.
        say: tells the user.

    Raises:
        ValueError: the start would need a deletion that was not asked for.
        DamagedCheckpoint: the named checkpoint is damaged, or "auto" finds only damaged ones.
    """
    if resume == "auto":
        return Start(_newest_whole(run, say), "nothing")
    checkpoint = None if resume == "none" else open_checkpoint(Path(resume).resolve())
    if checkpoint is None or checkpoint.path.parent != run.checkpoints:
        if run.has_run() and not overwrite:
            raise ValueError(
                f"out: {run.path} holds a run; resume it (--resume auto), choose another out, or "
                "delete it (--overwrite)"
            )
        return Start(checkpoint, "everything")
    newer = _newer(run, checkpoint)
    if newer and not overwrite:
        raise ValueError(
            f"resume: {newer[-1]} is newer than {checkpoint.path.name}; "
            "resume that, choose another out, or delete it (--overwrite)"
        )
    return Start(checkpoint, "newer")


def find_common_start(
    run: RunDirectory | None,
    resume: str | Path,
    overwrite: bool,
    say: Callable[[str], None],
    world: World,
) -> Start:
    """Find the start in the first process; the others, with no `run`, read the same checkpoint.

    They need the first's file system for it. See `find_start` for the arguments and errors.
    """
    if run is None:
        path = world.from_first(None)
        return Start(None if path is None else open_checkpoint(Path(path)), "nothing")
    start = find_start(run, resume, overwrite, say)
    world.from_first(None if start.checkpoint is None else str(start.checkpoint.path))
    return start


def make_way(run: RunDirectory, start: Start, say: Callable[[str], None]) -> None:
    """Delete what the start makes obsolete, and say so."""
    if start.obsolete == "everything" and run.has_run():
        say(f"overwrite: deleting the run in {run.path}")
        run.clear()
    if start.obsolete == "newer" and start.checkpoint is not None:
        for path in reversed(_newer(run, start.checkpoint)):
            say(f"overwrite: deleting {path}")
            delete_checkpoint(path)


def check_identity(checkpoint: Checkpoint, identity: Identity, say: Callable[[str], None]) -> None:
    """Refuse to go on with what would not be the same run.

    Another machine (device, threads, torch) computes the same run with other rounding, which is
    told and allowed.

    Raises:
        ValueError: settings or data differ; the message tells of the first and names the others,
            one inside of another as "model.hidden_size".
    """
    differing = _differing(checkpoint.identity.fixed, identity.fixed)
    if differing:
        (name, (before, now)), *others = differing.items()
        also = f"; other, too: {', '.join(name for name, _ in others)}" if others else ""
        raise ValueError(
            f"{name}: expected {before}, as {checkpoint.path.name} was trained, got {now}; "
            f"a resumed run can't change it{also}; choose another directory, or begin anew "
            "(--resume none --overwrite)"
        )
    for name, (before, now) in _differing(checkpoint.identity.machine, identity.machine).items():
        say(f"{name} was {before}, is {now}: the same run, but no longer bit by bit")


def _differing(
    before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> dict[str, tuple[str, str]]:
    """Return what differs, by name, as it is shown; of two mappings, only what differs inside."""
    found: dict[str, tuple[str, str]] = {}
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found |= _differing(old, new, f"{prefix}{name}.")
        elif old != new:
            found[prefix + name] = (_shown(name, before), _shown(name, now))
    return found


def _shown(name: str, settings: Mapping[str, Any]) -> str:
    return repr(settings[name]) if name in settings else "nothing"


def _newest_whole(run: RunDirectory, say: Callable[[str], None]) -> Checkpoint | None:
    damaged: list[DamagedCheckpoint] = []
    paths: list[Path] = []
    for path in reversed(list_checkpoints(run.checkpoints)):
        try:
            checkpoint = open_checkpoint(path)
        except DamagedCheckpoint as error:
            damaged.append(error)
            paths.append(path)
            continue
        for path, error in zip(paths, damaged, strict=True):
            say(f"damaged checkpoint, kept as {set_aside(path).name}: {error}")
        if damaged:
            say(f"falling back to {checkpoint.path.name}")
        return checkpoint
    if damaged:
        raise DamagedCheckpoint(
            f"resume: no checkpoint in {run.checkpoints} is whole: {damaged[0]}; "
            "start anew (--resume none --overwrite)"
        )
    return None


def _newer(run: RunDirectory, checkpoint: Checkpoint) -> list[Path]:
    return [p for p in list_checkpoints(run.checkpoints) if step_of(p) > checkpoint.state.step]
