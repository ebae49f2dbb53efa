"""A file whose hash grows while it is written."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK = 1 << 23  # bytes


class HashedFile:
    """A new file, to be written from its start to its end.

    Args:
        path: where nothing is yet.
        synced: whether it is brought to the disk when it is closed.
    """

    def __init__(self, path: Path, *, synced: bool = True) -> None:
        self.path = path
        self.bytes = 0
        self._synced = synced
        self._hash = hashlib.sha256()

    @property
    def entry(self) -> dict[str, Any]:
        """Its size and hash, as a manifest has them."""
        return {"bytes": self.bytes, "sha256": self._hash.hexdigest()}

    def write(self, content: bytes) -> None:
        """Append bytes.

        Raises:
            OSError: they can't be written; the message names the path and how many they were.
        """
        try:
            rest = memoryview(content)
            while rest:  # unbuffered, so that nothing is left to fail when it is closed
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            message = f"{error.strerror}; {len(content)} more bytes were to be written"
            raise OSError(error.errno, message, str(self.path)) from error
        self._hash.update(content)
        self.bytes += len(content)

    def mark(self) -> tuple[int, Any]:
        """Remember this place, for `since` and `back_to`."""
        return self.bytes, self._hash.copy()

    def since(self, mark: tuple[int, Any]) -> Iterator[bytes]:
        """Read what was written since a mark, block by block."""
        place = mark[0]
        while block := os.pread(self._file.fileno(), _BLOCK, place):
            place += len(block)
            yield block

    def back_to(self, mark: tuple[int, Any]) -> None:
        """Forget what was written since a mark."""
        self.bytes, self._hash = mark
        self._file.seek(self.bytes)
        self._file.truncate()

    def __enter__(self) -> "HashedFile":
        self._file = self.path.open("x+b", buffering=0)
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            if self._synced:
                os.fsync(self._file.fileno())
