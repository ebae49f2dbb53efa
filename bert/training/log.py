"""The run's log: one JSON object a line, each with its `kind` and its `step`.

Steps never go down in a log: what a stopped run had logged beyond its checkpoint is cut off
when it goes on. A number that JSON can't say is a string: "nan", "inf", "-inf".
"""

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class RunLog:
    """The writer; every line is handed to the operating system at once.

    Args:
        path: of the file; made if it isn't there.
        mirror: called with a line's kind, step and values once the line is written.

    Raises:
        OSError: the file can't be written, or is a symbolic link.
    """

    def __init__(
        self, path: Path, mirror: Callable[[str, int, dict[str, Any]], None] | None = None
    ) -> None:
        self.path = path
        self._mirror = mirror
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        self._file = open(os.open(path, flags, 0o666), "wb", buffering=0)  # noqa: SIM115

    def cut_after(self, step: int, evaluated_step: int) -> int:
        """Drop all from the first line on that a run going on from `step` will write again.

        Args:
            step: of the checkpoint; later lines go, and damaged ones.
            evaluated_step: the last evaluation that the checkpoint knows of; later ones go.

        Returns:
            The number of lines that were dropped.
        """
        kept_bytes = dropped = 0
        with open(self.path, "rb") as file:
            for line in file:
                record = None if dropped else _parse(line)
                if record is not None:
                    last = evaluated_step if record["kind"] == "evaluation" else step
                    if record["step"] <= last:
                        kept_bytes += len(line)
                        continue
                dropped += 1
        if dropped:
            os.truncate(self._file.fileno(), kept_bytes)
        return dropped

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append one line."""
        record = {"kind": kind, "step": step} | {k: _finite(v) for k, v in values.items()}
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        try:
            written = self._file.write(line)
        except OSError as error:
            message = f"{error.strerror}; a line of {len(line)} bytes was not written"
            raise OSError(error.errno, message, str(self.path)) from error
        if written != len(line):
            raise OSError(f"{self.path}: wrote {written} of a line's {len(line)} bytes")
        if self._mirror is not None:
            self._mirror(kind, step, values)

    def sync(self) -> None:
        """Wait until the log is on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_log(path: Path, kind: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the records, of one kind if named; a last line that is still being written is left.

    Raises:
        ValueError: a line is damaged; the message has its number.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            record = _parse(line)
            if record is None:
                if not line.endswith(b"\n"):
                    return
                raise ValueError(f"{path}, line {number}: expected a JSON object with a step")
            if kind is None or record["kind"] == kind:
                yield record


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    valid = isinstance(record, dict) and isinstance(record.get("step"), int) and "kind" in record
    return record if valid else None


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return value
