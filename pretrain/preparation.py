"""Text files → a prepared corpus (`pretrain.corpus`).

In the text a line is a paragraph, and blank lines (or a file's end) part documents. The same
text, tokenizer and versions give the same bytes. The directory is written aside and moved into
place by one rename, so it is whole or not there.

A sentence of more than `max_sentence_tokens` is cut into equal parts, each a sentence from then
on: the pair planner truncates what is longer than a training example, and those tokens would be
lost. Memory does not grow with the text: all passes through in pieces of about a million
characters, whatever the length of a line or a document.
"""

import fcntl
import hashlib
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bert.text import TextReport, read_lines
from bert.tokenization import Tokenizer
from pretrain.corpus import (
    DOCUMENTS,
    FORMAT,
    MANIFEST,
    SENTENCES,
    TOKENS,
    Corpus,
    render_manifest,
)
from pretrain.sentences import split_sentences

_PIECE = 1 << 20  # characters tokenized at a time


def prepare(
    files: Sequence[str | Path],
    out: str | Path,
    tokenizer: Tokenizer,
    *,
    max_sentence_tokens: int = 128,
    progress: bool = True,
) -> Corpus:
    """Prepare a corpus from text files (.txt, .gz, .xz) and open it.

    Args:
        files: in the order in which they are read.
        out: the directory to make; nothing may be there.
        tokenizer: its report stays as it is; the manifest has the counts.
        max_sentence_tokens: a longer sentence is cut into equal parts.
        progress: whether to draw a progress bar.

    Raises:
        ValueError: a file is missing, no file, broken or there twice; `out` exists or is being
            written; there are fewer than two documents with text.
        OSError: the disk is full or the like; nothing is left of `out`.
    """
    out = Path(out)
    paths = [Path(file) for file in files]
    if max_sentence_tokens < 1:
        raise ValueError(f"max_sentence_tokens: expected 1 or more, got {max_sentence_tokens}")
    if os.path.lexists(out):
        raise ValueError(f"out: expected a path where nothing is, got {out}")
    sources = describe_sources(paths)
    report = TextReport()
    tokenizer = copy(tokenizer)  # it counts what it meets; the caller's keeps its own counts
    hidden = None if progress else True  # None: hidden where no terminal is
    is_packed = any(path.suffix in (".gz", ".xz") for path in paths)
    total = None if is_packed else sum(source["bytes"] for source in sources)
    with _directory_in_the_making(out) as partial:
        with (
            tqdm(
                desc="prepare",
                total=total,
                unit="B",
                unit_scale=True,
                disable=hidden,
            ) as bar,
            _Writer(partial, tokenizer, max_sentence_tokens) as writer,
        ):
            for path in paths:
                writer.end_document()
                for line in read_lines(path, report):
                    writer.add_paragraph(line)
                    bar.set_postfix_str(f"{writer.tokens / 1e6:.1f}M tokens", refresh=False)
                    bar.update(len(line) + 1)  # characters: a little less than bytes
        if writer.documents < 2:
            raise ValueError(
                f"files: expected at least 2 documents with text, parted by blank lines "
                f"(next-sentence pairs take one from another), got {writer.documents}"
            )
        for name, count in asdict(tokenizer.report).items():
            setattr(report, name, getattr(report, name) + count)
        manifest = {
            **FORMAT,
            "documents": writer.documents,
            "sentences": writer.sentences,
            "tokens": writer.tokens,
            "characters": writer.characters,
            "unknown_tokens": writer.unknown_tokens,
            "cut_sentences": writer.cut_sentences,
            "max_sentence_tokens": max_sentence_tokens,
            "text": asdict(report),
            "token_dtype": writer.token_dtype,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer_sha256": tokenizer.sha256,
            "sources": sources,
            "files": writer.files,
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("numpy", "tokenizers")},
            },
        }
        with _HashedFile(partial / MANIFEST) as file:
            file.write(render_manifest(manifest))
    return Corpus.open(out)


class _Writer:
    """Writes paragraphs as token ids and offsets, in pieces."""

    def __init__(self, directory: Path, tokenizer: Tokenizer, max_sentence_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.max_sentence_tokens = max_sentence_tokens
        self.token_dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"
        self.documents = self.sentences = self.tokens = self.characters = 0
        self.unknown_tokens = self.cut_sentences = 0
        self.files: dict[str, dict[str, Any]] = {}
        self._directory = directory
        self._texts: list[str] = []
        self._document_of: list[int] = []
        self._waiting_characters = 0
        self._document = 0  # counts the empty ones too
        self._last_written_document = -1

    def __enter__(self) -> "_Writer":
        self._stack = ExitStack()
        self._files = {
            name: self._stack.enter_context(_HashedFile(self._directory / name))
            for name in (TOKENS, SENTENCES, DOCUMENTS)
        }
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        with self._stack:
            if kind is None:
                self._flush()
                self._append(SENTENCES, np.array([self.tokens], "<i8"))
                self._append(DOCUMENTS, np.array([self.sentences], "<i8"))
        self.files = {name: file.entry for name, file in self._files.items()}

    def end_document(self) -> None:
        self._document += 1

    def add_paragraph(self, line: str) -> None:
        sentences = split_sentences(line)
        if not sentences:
            self.end_document()
            return
        self._texts += sentences
        self._document_of += [self._document] * len(sentences)
        self._waiting_characters += len(line)
        if self._waiting_characters >= _PIECE:
            self._flush()

    def _flush(self) -> None:
        ids, lengths = self.tokenizer.encode_flat(self._texts)
        document_of = np.array(self._document_of, np.int64)
        # A sentence may hold no token (control characters only); a long one becomes several.
        parts = -(-lengths // self.max_sentence_tokens)
        part = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
        whole, parts_of_whole = np.repeat(lengths, parts), np.repeat(parts, parts)
        part_lengths = whole // parts_of_whole + (part < whole % parts_of_whole)
        document_of = np.repeat(document_of, parts)
        is_first = np.diff(document_of, prepend=self._last_written_document) != 0

        self._append(TOKENS, ids.astype(self.token_dtype))
        self._append(SENTENCES, self.tokens + np.cumsum(part_lengths) - part_lengths)
        self._append(DOCUMENTS, self.sentences + np.flatnonzero(is_first))
        self.documents += int(is_first.sum())
        self.sentences += len(part_lengths)
        self.tokens += len(ids)
        self.characters += sum(map(len, self._texts))
        self.unknown_tokens += int((ids == self.tokenizer.unk_id).sum())
        self.cut_sentences += int((parts > 1).sum())
        if len(document_of):
            self._last_written_document = int(document_of[-1])
        self._texts, self._document_of, self._waiting_characters = [], [], 0

    def _append(self, name: str, values: np.ndarray) -> None:
        dtype = self.token_dtype if name == TOKENS else "<i8"
        self._files[name].write(values.astype(dtype).tobytes())


class _HashedFile:
    """A file being written, its hash growing with it; on the disk when it is closed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = 0
        self._hash = hashlib.sha256()

    @property
    def entry(self) -> dict[str, Any]:
        return {"bytes": self.bytes, "sha256": self._hash.hexdigest()}

    def write(self, content: bytes) -> None:
        try:
            self._file.write(content)
            self._file.flush()
        except OSError as error:
            message = f"{error.strerror}; {len(content)} more bytes were to be written"
            raise OSError(error.errno, message, str(self.path)) from error
        self._hash.update(content)
        self.bytes += len(content)

    def __enter__(self) -> "_HashedFile":
        self._file = self.path.open("xb")
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            os.fsync(self._file.fileno())


@contextmanager
def _directory_in_the_making(out: Path) -> Iterator[Path]:
    """Give a directory aside, which becomes `out` if all goes well and else is deleted.

    A lock keeps a second process out. What a killed one left behind is deleted first.
    """
    partial = out.with_name(f".{out.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    lock = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"out: another process is preparing {out}") from error
        try:
            for left in partial.iterdir():
                left.unlink()
            yield partial
            os.fsync(lock)
            os.rename(partial, out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        parent = os.open(out.parent, os.O_RDONLY)
        os.fsync(parent)
        os.close(parent)
    finally:
        os.close(lock)


def describe_sources(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Return name, size and SHA-256 of each text file, so that all are known to be there."""
    if not paths:
        raise ValueError("files: expected at least one text file, got none")
    sources: dict[str, dict[str, Any]] = {}
    for path in paths:
        try:
            if not path.is_file():
                kind = (
                    "a directory" if path.is_dir() else "none" if not path.exists() else "a device"
                )
                raise ValueError(f"{path}: expected a text file, got {kind}")
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
        if digest in sources:
            raise ValueError(f"{path}: holds the same bytes as {sources[digest]['name']}")
        entry = {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}
        sources[digest] = entry
    return list(sources.values())
