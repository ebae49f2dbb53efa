"""A stream of documents → texts for the shards, without the documents that were there before.

Where a shard ends follows from the documents alone: at the first end of a document after `SHARD`
bytes. So it matters not who makes them, how many at a time, and after how many attempts.

Some documents may be held out, to judge on what was not trained on; they get shards of their own.
The hash of a document's words decides, so the same words are never on both sides, and a document
stays on its side when others come or go.

Two documents are the same where their words are, in the same order, words being what stands
between whitespace: the first one is kept. What is remembered of a document is 16 bytes of hash, in
a database on the disk of which 64 MB at most are in memory.
"""

import errno
import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pretrain.hashed_file import HashedFile

SHARD = 1 << 25  # bytes of text: about ten seconds of work for one process
_CACHE = 64_000  # KiB


@dataclass(frozen=True)
class ShardText:
    """The text of one shard, in the form that `pretrain.shards` reads."""

    name: str
    """00003, or validation-00003 where the documents are held out."""
    is_held_out: bool
    path: Path
    bytes: int
    sha256: str


class Duplicates:
    """Tells which documents were there before, and counts them.

    Args:
        path: of the database; nothing is there yet.
    """

    def __init__(self, path: Path) -> None:
        self.dropped = 0
        self._path = path
        self._database = sqlite3.connect(path, isolation_level=None)
        # Nobody reads the file but this process, and not after it: no journal, and no waiting.
        self._ask(f"PRAGMA cache_size = {-_CACHE}")
        self._ask("PRAGMA journal_mode = OFF")
        self._ask("PRAGMA synchronous = OFF")
        self._ask("CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID")
        self._ask("BEGIN")

    def is_new(self, digest: bytes) -> bool:
        """Tell whether a document of this hash was not asked for yet."""
        is_new = self._ask("INSERT OR IGNORE INTO seen VALUES (?)", digest) == 1
        self.dropped += not is_new
        return is_new

    def close(self) -> None:
        """Forget all."""
        self._database.close()
        self._path.unlink(missing_ok=True)

    def _ask(self, query: str, *values: bytes) -> int:
        try:
            with closing(self._database.execute(query, values)) as cursor:
                return cursor.rowcount
        except sqlite3.Error as error:
            raise OSError(errno.EIO, f"cannot be written: {error}", str(self._path)) from error


def write_shard_texts(
    paragraphs: Iterable[str | None],
    directory: Path,
    duplicates: Duplicates | None,
    validation_share: float = 0.0,
) -> Iterator[ShardText]:
    """Write documents into files, and yield each when it is whole.

    Args:
        paragraphs: none blank or with a line's end in it; None ends a document.
        directory: where the files are made, text-00000 and so on.
        duplicates: the documents to leave out; None to leave out none.
        validation_share: how many of the documents are held out, in files of their own.
    """
    with _Files(directory, False) as kept, _Files(directory, True) as held_out:
        begin, words = kept.file.mark(), _new_hash()
        for paragraph in paragraphs:
            if paragraph is not None:
                kept.file.write(f"{paragraph}\n".encode())
                words.update(f"{' '.join(paragraph.split())} ".encode())
                continue
            if kept.file.bytes == begin[0]:
                continue
            kept.file.write(b"\n")
            digest = words.digest()
            if duplicates is not None and not duplicates.is_new(digest):
                kept.file.back_to(begin)
            elif _share_of(digest) < validation_share:
                for block in kept.file.since(begin):
                    held_out.file.write(block)
                kept.file.back_to(begin)
            for files in (kept, held_out):
                if files.file.bytes >= SHARD:
                    yield files.finish()
            begin, words = kept.file.mark(), _new_hash()
        for files in (kept, held_out):
            if files.file.bytes:
                yield files.finish()


class _Files:
    """One file after another; the last one is open, and is deleted in the end if it is empty."""

    def __init__(self, directory: Path, is_held_out: bool) -> None:
        self._directory, self._is_held_out = directory, is_held_out
        self._number = 0

    def __enter__(self) -> "_Files":
        self._begin()
        return self

    def __exit__(self, *error: object) -> None:
        self.file.__exit__(*error)
        if not self.file.bytes:
            self.file.path.unlink(missing_ok=True)

    def finish(self) -> ShardText:
        """Close the file, and begin the next one."""
        file, name = self.file, self._name()
        file.__exit__()
        self._number += 1
        self._begin()
        sha256 = file.entry["sha256"]
        return ShardText(name, self._is_held_out, file.path, file.bytes, sha256)

    def _begin(self) -> None:
        path = self._directory / f"text-{self._name()}"
        self.file = HashedFile(path, synced=False).__enter__()

    def _name(self) -> str:
        return f"{'validation-' if self._is_held_out else ''}{self._number:05d}"


def _new_hash() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)


def _share_of(digest: bytes) -> float:
    """Read a hash as a number from 0 to 1."""
    return int.from_bytes(digest[:6]) / (1 << 48)
