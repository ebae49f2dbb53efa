"""The directory aside in which a corpus is made, `.NAME.partial`, and the move from there.

The corpus is moved into place by one rename, so it is whole or not there. Where its making is
interrupted, killed or out of disk, the shards that are whole stay, and nothing else.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pretrain.shard_workers import wait_for_workers


def refuse_what_is_there(out: Path) -> None:
    """Refuse a path where something is.

    Raises:
        ValueError: there is.
    """
    if os.path.lexists(out):
        delete_leftovers(out)
        raise ValueError(f"out: expected a path where nothing is, got {out}")


def delete_leftovers(out: Path) -> None:
    """Delete the directory aside of a corpus that is in place, unless its maker still runs.

    It is there if its maker was killed after the rename.
    """
    try:
        lock = os.open(_aside(out), os.O_RDONLY)
    except OSError:
        return  # as a rule
    try:
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(_aside(out), ignore_errors=True)
    finally:
        os.close(lock)


@contextmanager
def place_aside(out: Path) -> Iterator[Path]:
    """Give the directory in which `out` is made, and delete it if all goes well.

    A lock keeps a second process out. What was in the making when something failed is deleted;
    shards that are whole stay.
    """
    place = _aside(out)
    place.mkdir(parents=True, exist_ok=True)
    lock = os.open(place, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"out: another process is preparing {out}") from error
        wait_for_workers(place)
        _delete_halves(place)
        try:
            yield place
        except BaseException:
            _delete_halves(place)
            with suppress(OSError):
                place.rmdir()  # it stays if there are whole shards
            raise
        shutil.rmtree(place)
    finally:
        os.close(lock)


def move_into_place(merged: Path, out: Path) -> None:
    """Bring a directory and what is in it to the disk, and rename it."""
    for path in (*merged.rglob("*"), merged):
        _sync(path)
    os.rename(merged, out)
    _sync(out.parent)


def _aside(out: Path) -> Path:
    out = out.absolute()
    return out.with_name(f".{out.name}.partial")


def _delete_halves(place: Path) -> None:
    """Delete all but whole shards."""
    for path in place.iterdir():
        if path.name.startswith("shard-") and not path.suffix:
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.close(file)
