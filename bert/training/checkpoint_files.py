"""Directories that are whole or not there: written aside, checked by hash, moved by one rename.

A checkpoint is `step-00000123/` with its files and, written last, a manifest of their sizes and
SHA-256. While it is written it has another name; files and directories are on the disk before
the rename, so that neither a kill nor a power cut leaves half of one under a checkpoint's name.
Symbolic links among the checkpoints are not followed and not counted.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-([0-9]{8,})")
_PARTIAL = ".partial"
_DAMAGED = "damaged-"


class DamagedCheckpoint(ValueError):
    """A checkpoint is not what was written; the message names the file."""


def write_checkpoint(
    parent: Path, step: int, size: int, write_files: Callable[[Path], None]
) -> Path:
    """Write the checkpoint of `step` below `parent`, complete or not at all.

    Args:
        parent: where the checkpoints lie.
        step: finished steps; no checkpoint of it may be there.
        size: bytes that the files will take, for the error.
        write_files: writes each file of the checkpoint into the directory that it is given.

    Raises:
        OSError: the disk is full or the like; nothing of the checkpoint is left.
    """
    final = parent / f"step-{step:08d}"
    partial = parent / f".{final.name}{_PARTIAL}"
    try:
        partial.mkdir()
        write_files(partial)
        # The directory's mode shows the umask; safetensors writes 0600 whatever it says.
        mode = partial.stat().st_mode & 0o666
        files = {}
        for path in sorted(partial.iterdir()):
            path.chmod(mode)
            _sync(path)
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            files[path.name] = {"bytes": path.stat().st_size, "sha256": digest}
        (partial / MANIFEST).write_text(_manifest_text(files))
        _sync(partial / MANIFEST)
        _sync(partial)
        os.rename(partial, final)
        _sync(parent)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        message = f"{error.strerror or error}; a checkpoint of {size} bytes was not written"
        raise OSError(error.errno, message, str(final)) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return final


def read_checkpoint(
    path: Path, is_left: Callable[[str], bool] = lambda name: False
) -> dict[str, bytes]:
    """Return the content of each file, after all have been held against the manifest.

    What is returned is what was checked: the files are read once, and not mapped, so that one
    that changes meanwhile does no harm.

    Args:
        path: the checkpoint.
        is_left: says of a file's name whether to check the file alone, and return b"" for it.

    Raises:
        DamagedCheckpoint: a file is missing, cut, or changed.
    """
    contents = {}
    for name, entry in _read_manifest(path / MANIFEST).items():
        file = path / name
        try:
            size = file.stat().st_size
            if size != entry["bytes"]:
                raise DamagedCheckpoint(f"{file}: expected {entry['bytes']} bytes, got {size}")
            if is_left(name):
                with open(file, "rb") as left:
                    contents[name], digest = b"", hashlib.file_digest(left, "sha256")
            else:
                contents[name] = file.read_bytes()
                digest = hashlib.sha256(contents[name])
        except OSError as error:
            raise DamagedCheckpoint(f"{file}: can't be read: {error.strerror}") from error
        if digest.hexdigest() != entry["sha256"]:
            raise DamagedCheckpoint(f"{file}: its SHA-256 is not the one in {MANIFEST}")
    return contents


def list_checkpoints(parent: Path) -> list[Path]:
    """Return the directories with a checkpoint's name, the oldest first; unchecked."""
    return sorted(
        (
            path
            for path in parent.iterdir()
            if _NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
        ),
        key=step_of,
    )


def step_of(path: Path) -> int:
    """Return the step in a checkpoint's name.

    Raises:
        DamagedCheckpoint: it is not a checkpoint's name.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise DamagedCheckpoint(f"{path}: expected a directory named step-00000123")
    return int(match[1])


def prune(parent: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for path in list_checkpoints(parent)[:-keep]:
        delete_checkpoint(path)


def delete_checkpoint(path: Path) -> None:
    """Delete a checkpoint; a kill half-way leaves nothing that has a checkpoint's name."""
    partial = path.with_name(f".{path.name}{_PARTIAL}")
    os.rename(path, partial)
    shutil.rmtree(partial)


def delete_partial(parent: Path) -> None:
    """Delete what a killed process had not finished to write, or to delete."""
    for path in parent.glob(f".step-*{_PARTIAL}"):
        shutil.rmtree(path)


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint so that its name is free, and return where it lies now."""
    aside = path.with_name(_DAMAGED + path.name)
    if aside.exists():
        shutil.rmtree(aside)
    os.rename(path, aside)
    return aside


def _manifest_text(files: dict[str, dict[str, Any]]) -> str:
    body = {"format": "plainbert training checkpoint", "version": 1, "files": files}
    digest = hashlib.sha256(json.dumps(body).encode()).hexdigest()
    return json.dumps({**body, "sha256": digest}, indent=1) + "\n"


def _read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    try:
        text = path.read_text()
        files = json.loads(text)["files"]
        if text == _manifest_text(files):
            return files
    except OSError as error:
        raise DamagedCheckpoint(f"{path}: can't be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise DamagedCheckpoint(f"{path}: not as it was written")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
