"""One shard: some whole documents as plain text → token ids and offsets, in a directory.

`prepare_shard` is a function of its arguments alone and writes nothing but its directory. So it
can run in any process, on any machine that sees the files, and whoever runs it gets the same
bytes. The text has a paragraph a line and a blank line after each document.

A sentence of more than `max_sentence_tokens` is cut into equal parts, each a sentence from then
on: the pair planner truncates what is longer than a training example, and those tokens would be
lost.
Memory does not grow with the text: it passes through in pieces of about a million characters.
"""

import hashlib
import os
import platform
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from copy import copy
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from bert.text import TextReport
from bert.tokenization import Tokenizer
from pretrain.corpus import (
    DOCUMENTS,
    FORMAT,
    MANIFEST,
    SENTENCES,
    TOKENS,
    read_manifest,
    render_manifest,
    verify_files,
)
from pretrain.hashed_file import HashedFile
from pretrain.quality import DocumentJudge
from pretrain.sentences import split_sentences

_PIECE = 1 << 20  # characters tokenized at a time


def prepare_shard(
    text: Path,
    directory: Path,
    tokenizer: Tokenizer,
    max_sentence_tokens: int,
    on_bytes: Callable[[int], object] = lambda count: None,
) -> None:
    """Turn a text into a directory of the kind that `Corpus.open` maps, by one rename.

    Args:
        text: UTF-8, a paragraph a line, a blank line after each document.
        directory: to be made; its parent is there, and so is nothing of its name.
        tokenizer: its report stays as it is; the manifest has the counts.
        max_sentence_tokens: a longer sentence is cut into equal parts.
        on_bytes: is told how many bytes of the text were read since it was last told.

    Raises:
        OSError: the disk is full or the like; nothing is left of the directory.
    """
    with text.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    tokenizer = copy(tokenizer)  # it counts what it meets; the caller's keeps its own counts
    tokenizer.report = TextReport()
    making = directory.with_name(f"{directory.name}.making")
    shutil.rmtree(making, ignore_errors=True)  # of an attempt that was killed
    try:
        making.mkdir()
        with _Writer(making, tokenizer, max_sentence_tokens) as writer:
            with text.open(encoding="utf-8", newline="\n") as lines:
                for line in lines:
                    writer.add_line(line[:-1])
                    on_bytes(len(line.encode()))
        manifest = {
            **FORMAT,
            **writer.counts,
            "max_sentence_tokens": max_sentence_tokens,
            "text": asdict(tokenizer.report),
            "token_dtype": writer.token_dtype,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer_sha256": tokenizer.sha256,
            "sources": [{"name": text.name, "bytes": text.stat().st_size, "sha256": digest}],
            "files": writer.files,
            "versions": versions(),
        }
        with HashedFile(making / MANIFEST) as file:
            file.write(render_manifest(manifest))
        os.rename(making, directory)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise


def is_whole(
    directory: Path, text_sha256: str, tokenizer: Tokenizer, max_sentence_tokens: int
) -> bool:
    """Tell whether a directory is what `prepare_shard` would make here, every byte of it."""
    expected = {
        "max_sentence_tokens": max_sentence_tokens,
        "tokenizer_sha256": tokenizer.sha256,
        "versions": versions(),
    }
    try:
        manifest = read_manifest(directory / MANIFEST)
        verify_files(directory, manifest)
    except ValueError:
        return False
    is_same_text = [source["sha256"] for source in manifest["sources"]] == [text_sha256]
    return is_same_text and expected == {name: manifest[name] for name in expected}


def versions() -> dict[str, str]:
    """Name what else the bytes could depend on."""
    libraries = {name: version(name) for name in ("numpy", "tokenizers")}
    return {"python": platform.python_version(), **libraries}


class _Writer:
    """Writes paragraphs as token ids and offsets, in pieces."""

    def __init__(self, directory: Path, tokenizer: Tokenizer, max_sentence_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.max_sentence_tokens = max_sentence_tokens
        self.token_dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"
        self.judge = DocumentJudge()
        self.documents = self.sentences = self.tokens = self.characters = 0
        self.unknown_tokens = self.cut_sentences = 0
        self.files: dict[str, dict[str, Any]] = {}
        self._directory = directory
        self._texts: list[str] = []
        self._document_of: list[int] = []
        self._waiting_characters = 0
        self._document = 0  # counts the empty ones too
        self._last_written_document = -1

    @property
    def counts(self) -> dict[str, int]:
        """What is in the shard."""
        return {
            "documents": self.documents,
            "sentences": self.sentences,
            "tokens": self.tokens,
            "characters": self.characters,
            "unknown_tokens": self.unknown_tokens,
            "cut_sentences": self.cut_sentences,
            **self.judge.counts,
        }

    def __enter__(self) -> "_Writer":
        self._stack = ExitStack()
        self._files = {
            name: self._stack.enter_context(HashedFile(self._directory / name))
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

    def add_line(self, line: str) -> None:
        """Add a paragraph, or end a document where the line is empty."""
        if not line:
            self.judge.end_document()
            self._document += 1
            return
        self.judge.add(line)
        sentences = split_sentences(line)
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
