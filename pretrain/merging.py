"""Shards → one corpus: their files, one after another, with the offsets moved on.

One corpus, because its users plan pairs over all sentences at once, and offsets that lie in a file
are shared by all processes of a run, where offsets put together in memory would be there once in
each. The copy is read and written in blocks.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.corpus import DOCUMENTS, MANIFEST, SENTENCES, TOKENS, read_manifest
from pretrain.hashed_file import HashedFile

_BLOCK = 1 << 23  # bytes
_SUMS = (
    "documents", "sentences", "tokens", "characters", "unknown_tokens", "cut_sentences",
    "marks_documents", "repetitive_documents",
)  # fmt: skip


def merge_shards(shards: Sequence[Path], out: Path) -> dict[str, Any]:
    """Write the three files of a corpus from its shards, in their order.

    Args:
        shards: directories that `prepare_shard` made.
        out: a directory that has none of the files yet.

    Returns:
        What the shards count together, and the size and hash of each file.

    Raises:
        ValueError: a shard's file is not what its manifest says; the message names it.
    """
    manifests = [read_manifest(shard / MANIFEST) for shard in shards]
    files = {}
    for name, base, entries in (
        (TOKENS, None, "tokens"),
        (SENTENCES, "tokens", "sentences"),
        (DOCUMENTS, "sentences", "documents"),
    ):
        before = 0
        with HashedFile(out / name) as file:
            for shard, manifest in zip(shards, manifests, strict=True):
                path, left = shard / name, manifest[entries]
                dtype = manifest["token_dtype"] if base is None else "<i8"
                for block in _blocks(path, manifest["files"][name]["sha256"]):
                    # A shard's last offset is its end: where the next shard's first one is.
                    values = np.frombuffer(block, dtype)[:left]
                    left -= len(values)
                    file.write((values + before).astype(dtype).tobytes() if base else block)
                before += manifest[base] if base else 0
            if base:
                file.write(np.array([before], "<i8").tobytes())
        files[name] = file.entry
    text: dict[str, int] = {}
    for manifest in manifests:
        for name, number in manifest["text"].items():
            text[name] = text.get(name, 0) + number
    sums = {name: sum(manifest[name] for manifest in manifests) for name in _SUMS}
    return {**sums, "text": text, "files": files}


def _blocks(path: Path, sha256: str) -> Iterator[bytes]:
    """Read a file block by block, and hold it against its hash at the end."""
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            hashed.update(block)
            yield block
    if hashed.hexdigest() != sha256:
        raise ValueError(f"{path}: its SHA-256 is not the one in {MANIFEST}")
