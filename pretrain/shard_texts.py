"""A stream of documents → texts for the shards, without the documents that were there before.

Where a shard ends follows from the documents alone: at the first end of a document after `SHARD`
bytes. So it matters not who makes them, how many at a time, and after how many attempts.

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
from itertools import count
from pathlib import Path

from pretrain.hashed_file import HashedFile

SHARD = 1 << 25  # bytes of text: about ten seconds of work for one process
_CACHE = 64_000  # KiB


@dataclass(frozen=True)
class ShardText:
    """The text of one shard, in the form that `pretrain.shards` reads."""

    number: int
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
    paragraphs: Iterable[str | None], directory: Path, duplicates: Duplicates | None
) -> Iterator[ShardText]:
    """Write documents into files, and yield each when it is whole.

    Args:
        paragraphs: none blank or with a line's end in it; None ends a document.
        directory: where the files are made, text-00000 and so on.
        duplicates: the documents to leave out; None to leave out none.
    """
    stream = iter(paragraphs)
    for number in count():
        path = directory / f"text-{number:05d}"
        with HashedFile(path, synced=False) as file:
            has_more = _fill(file, stream, duplicates)
        if file.bytes:
            yield ShardText(number, path, file.bytes, file.entry["sha256"])
        else:
            path.unlink()
        if not has_more:
            return


def _fill(file: HashedFile, stream: Iterator[str | None], duplicates: Duplicates | None) -> bool:
    """Write documents until there are enough or no more; tell whether there are more."""
    begin, words = file.mark(), hashlib.blake2b(digest_size=16)
    for paragraph in stream:
        if paragraph is not None:
            file.write(f"{paragraph}\n".encode())
            words.update(f"{' '.join(paragraph.split())} ".encode())
        elif file.bytes > begin[0]:
            if duplicates is None or duplicates.is_new(words.digest()):
                file.write(b"\n")
            else:
                file.back_to(begin)
            if file.bytes >= SHARD:
                return True
            begin, words = file.mark(), hashlib.blake2b(digest_size=16)
    return False
