"""A prepared corpus: token ids on disk, memory-mapped, checked by hash.

    tokens.bin             the ids of all sentences end to end, uint16 (uint32 over 65,536 tokens)
    sentence_offsets.bin   int64, where each sentence starts in the tokens, and the end
    document_offsets.bin   int64, where each document starts in the sentences, and the end
    manifest.json          counts, the SHA-256 of every file in and out, the tokenizer's, versions,
                           what the text policies of bert/text.py met, and pretrain/quality.py
    tokenizer/             the tokenizer
    validation/            the documents that were held out, if any: the same files of their own

All numbers are little-endian. `pretrain.preparation` makes one from text. Where a byte is damaged
the whole is refused: a pair may take its second segment from any document, so there is no part
that a run could leave out and still be the run that it says. (Text can have bad rows, which
`--skip-bad-rows` leaves out and counts.)
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt

from bert.tokenization import Tokenizer

MANIFEST = "manifest.json"
TOKENS, SENTENCES, DOCUMENTS = "tokens.bin", "sentence_offsets.bin", "document_offsets.bin"
TOKENIZER, VALIDATION = "tokenizer", "validation"
FORMAT = {"format": "plainbert corpus", "version": 1}


@dataclass(frozen=True, eq=False)
class Corpus:
    """A prepared corpus, or some of its documents; the arrays are memory-mapped.

    It pickles as its path, so that a data loader's worker maps the files itself.
    """

    directory: Path
    manifest: dict[str, Any]
    tokens: UInt[np.ndarray, " tokens"]
    """Of the whole corpus: the offsets of selected documents point into it too."""
    sentence_offsets: Int64[np.ndarray, " sentences_plus_one"]
    document_offsets: Int64[np.ndarray, " documents_plus_one"]
    first_document: int = 0

    @staticmethod
    def open(directory: str | Path, *, verify: bool = False) -> "Corpus":
        """Map a prepared corpus.

        Args:
            directory: what `prepare` wrote.
            verify: also hold every byte against the manifest's hashes; sizes are always checked.

        Raises:
            ValueError: a file is missing, cut or changed; the message names it.
        """
        directory = Path(directory)
        manifest = read_manifest(directory / MANIFEST)
        shapes = {
            TOKENS: (manifest["token_dtype"], manifest["tokens"]),
            SENTENCES: ("<i8", manifest["sentences"] + 1),
            DOCUMENTS: ("<i8", manifest["documents"] + 1),
        }
        arrays = []
        for name, (dtype, count) in shapes.items():
            path = directory / name
            _check_size(path, np.dtype(dtype).itemsize * count)
            arrays.append(np.memmap(path, dtype, mode="r", shape=(count,)))
        corpus = Corpus(directory, manifest, *arrays)
        if verify:
            corpus.verify()
        return corpus

    def verify(self) -> None:
        """Hold every byte on the disk against the manifest.

        Raises:
            ValueError: a file is missing, cut or changed; the message names it.
        """
        verify_files(self.directory, self.manifest)

    def held_out(self) -> "Corpus | None":
        """Open the documents that were held out, every byte of them checked; None if none were.

        Raises:
            ValueError: a file of theirs is missing, cut or changed, or all are of another
                preparation; the message names it.
        """
        expected = self.manifest.get("validation_sha256")
        if expected is None:
            return None
        corpus = Corpus.open(self.directory / VALIDATION, verify=True)
        if corpus.manifest["sha256"] != expected:
            raise ValueError(
                f"{corpus.directory / MANIFEST}: not prepared together with {self.directory}"
            )
        return corpus

    @property
    def fingerprint(self) -> str:
        """Tell whether a corpus is the one that a run was started on."""
        parts = [self.manifest["files"], self.manifest["tokenizer_sha256"]]
        parts += [self.first_document, len(self.document_offsets)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def select(self, first: int, last: int) -> "Corpus":
        """Select the documents from `first` up to `last`, without `last`: to hold some out."""
        if not 0 <= first < last < len(self.document_offsets):
            documents = len(self.document_offsets) - 1
            raise ValueError(f"first, last: expected a part of 0:{documents}, got {first}:{last}")
        begin, end = self.document_offsets[first], self.document_offsets[last]
        return Corpus(
            self.directory,
            self.manifest,
            self.tokens,
            self.sentence_offsets[begin : end + 1],
            self.document_offsets[first : last + 1] - begin,
            self.first_document + first,
        )

    def token_counts(self) -> Int64[np.ndarray, " vocab"]:
        """Count how often each token of the vocabulary occurs in the documents."""
        counts = np.zeros(self.manifest["vocab_size"], np.int64)
        begin, end = self.sentence_offsets[0], self.sentence_offsets[-1]
        for start in range(begin, end, 1 << 20):
            piece = self.tokens[start : min(start + (1 << 20), end)]
            counts += np.bincount(piece, minlength=len(counts))
        return counts

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer that is not the one that the corpus was prepared with."""
        if tokenizer.sha256 != self.manifest["tokenizer_sha256"]:
            raise ValueError(
                f"tokenizer: expected the one that {self.directory} was prepared with "
                f"({self.manifest['tokenizer_sha256'][:12]}…), got {tokenizer.sha256[:12]}…"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        documents = len(self.document_offsets) - 1
        return _reopen, (self.directory, self.first_document, documents, self.fingerprint)


def _reopen(directory: Path, first: int, documents: int, fingerprint: str) -> Corpus:
    corpus = Corpus.open(directory)
    if (first, documents) != (0, corpus.manifest["documents"]):
        corpus = corpus.select(first, first + documents)
    if corpus.fingerprint != fingerprint:
        raise ValueError(f"{directory}: was prepared anew while it was in use")
    return corpus


def render_manifest(manifest: dict[str, Any]) -> bytes:
    """Write a manifest out, with its own hash at the end."""
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(body).encode()).hexdigest()
    return (json.dumps({**body, "sha256": digest}, indent=1) + "\n").encode()


def verify_files(directory: Path, manifest: dict[str, Any]) -> None:
    """Hold the files of a corpus or a shard against its manifest, as `Corpus.verify` does."""
    for name, entry in manifest["files"].items():
        path = directory / name
        _check_size(path, entry["bytes"])
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                raise ValueError(f"{path}: its SHA-256 is not the one in {MANIFEST}")


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest that `render_manifest` wrote.

    Raises:
        ValueError: it is missing, changed, or of another format; the message names it.
    """
    try:
        content = path.read_bytes()
        manifest = json.loads(content)
    except OSError as error:
        raise ValueError(
            f"{path}: expected the manifest of a prepared corpus: {error.strerror}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(manifest, dict) or content != render_manifest(manifest):
        raise ValueError(f"{path}: its own SHA-256 does not fit: it was changed or cut")
    if {key: manifest.get(key) for key in FORMAT} != FORMAT:
        raise ValueError(f"{path}: expected {FORMAT}, got another format or version")
    return manifest


def _check_size(path: Path, expected: int) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    if size != expected:
        raise ValueError(f"{path}: expected {expected} bytes, got {size}")
