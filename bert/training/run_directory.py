"""The directory of one run, and the lock that keeps a second writer out.

    RUN_DIR/
        run.json        what the run is: configuration, data, hardware
        log.jsonl       see log.py
        checkpoints/    see state.py
        snapshots/      models of the steps on the way, where they are asked for
        trackers/       see trackers.py
        lock            held while a process trains here

RUN_DIR itself may be a symbolic link to a directory, and is resolved once. Links in it are
refused, so that nothing outside of it is ever written.
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from bert.training.checkpoint_files import delete_partial

# POSIX locks don't keep a process from itself.
_held: set[Path] = set()


@contextmanager
def hold(directory: Path, name: str) -> Iterator[None]:
    """Keep other processes, and this one, from working in a directory a second time.

    Args:
        directory: it is there; the lock is the file `lock` in it.
        name: the argument that an error names.

    Raises:
        ValueError: another process, or this one, holds it.
        OSError: the lock can't be taken.
    """
    directory = directory.resolve()
    lock = directory / "lock"
    if directory in _held:
        raise ValueError(f"{name}: this process trains in {directory} already")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        # lockf, not flock: forked loader workers inherit a flock, and would hold it for the
        # seconds in which they outlive a killed trainer.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip() or "another"
        os.close(descriptor)
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise OSError(error.errno, error.strerror, str(lock)) from error
        raise ValueError(f"{name}: process {holder} trains in {directory}") from error
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        _held.add(directory)
        yield
    finally:
        os.close(descriptor)
        _held.discard(directory)


class RunDirectory:
    """A run's directory; entered, it exists and is locked.

    Raises:
        ValueError: another process, or this one, trains in it already; or it has a link in it.
        OSError: it can't be made or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = ExitStack()

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints lie."""
        return self.path / "checkpoints"

    @property
    def snapshots(self) -> Path:
        """Where the models of the steps on the way lie, if any."""
        return self.path / "snapshots"

    @property
    def trackers(self) -> Path:
        """Where trackers keep what they keep with the run."""
        return self.path / "trackers"

    @property
    def log(self) -> Path:
        """The JSONL log."""
        return self.path / "log.jsonl"

    @property
    def description(self) -> Path:
        """What the run is, for people and programs."""
        return self.path / "run.json"

    def __enter__(self) -> "RunDirectory":
        self.path.mkdir(parents=True, exist_ok=True)
        self.path = self.path.resolve()
        own = (self.checkpoints, self.snapshots, self.trackers, self.log, self.description)
        for path in (self.path / "lock", *own):
            if path.is_symlink():
                raise ValueError(f"run_dir: expected no symbolic link in it, got {path}")
        with ExitStack() as stack:
            stack.enter_context(hold(self.path, "run_dir"))
            self.checkpoints.mkdir(exist_ok=True)
            delete_partial(self.checkpoints)
            self._lock = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.close()

    def has_run(self) -> bool:
        """Say whether a run has left anything here."""
        return self.log.exists() or self.description.exists() or any(self.checkpoints.iterdir())

    def clear(self) -> None:
        """Delete the run that is here, and nothing else."""
        for made in (self.checkpoints, self.snapshots, self.trackers):
            if made.exists():
                shutil.rmtree(made)
        self.checkpoints.mkdir()
        self.log.unlink(missing_ok=True)
        self.description.unlink(missing_ok=True)

    def describe(self, description: Mapping[str, Any]) -> None:
        """Write run.json, whole or not at all."""
        partial = self.description.with_name(".run.json.partial")
        partial.write_text(json.dumps(description, indent=1) + "\n")
        os.replace(partial, self.description)


def refuse_file(out: Path) -> None:
    """Refuse a file where a run's directory is to be, before anything is done for the run.

    Raises:
        ValueError: `out` is a file, or lies below one.
    """
    there = next(path for path in (out, *out.parents) if path.exists())
    if not there.is_dir():
        got = f"the file {out}" if there == out else f"{out}, below the file {there}"
        raise ValueError(f"out: expected a directory, got {got}")
