"""What a corpus is like, in numbers that mean the same in any language; none drops anything.

Of a document's characters, some are digits, punctuation or symbols (Unicode's categories N, P, S):
where they are more than half of those that are no spaces, it is a table or a listing rather than
prose. And prose compresses to something like half of its bytes; a document that compresses to less
than a fifth says the same again and again.
"""

import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int64

SHORT = 16  # tokens: a shorter document hardly makes a sentence pair
MOSTLY = 0.5
REPETITIVE = 0.2
JUDGED_FROM = 1000  # bytes; what is shorter has no room to repeat itself
LONGEST_COUNTED = 1 << 20  # tokens; quantiles above this are given as this
_QUANTILES = {"p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95}
_BLOCK = 1 << 20


class DocumentJudge:
    """Counts documents that look odd, in memory that doesn't grow with their length."""

    def __init__(self) -> None:
        self.counts = {"marks_documents": 0, "repetitive_documents": 0}
        self._begin()

    def _begin(self) -> None:
        self._packer = zlib.compressobj(1)
        self._bytes = self._packed = 0
        self._characters: Counter[str] = Counter()

    def add(self, paragraph: str) -> None:
        """Add a paragraph to the document."""
        content = paragraph.encode()
        self._bytes += len(content)
        self._packed += len(self._packer.compress(content))
        self._characters.update(paragraph)

    def end_document(self) -> None:
        """Judge the document, and begin the next."""
        self._packed += len(self._packer.flush())
        self.counts["marks_documents"] += _share_of_marks(self._characters) > MOSTLY
        is_repetitive = self._bytes >= JUDGED_FROM and self._packed < REPETITIVE * self._bytes
        self.counts["repetitive_documents"] += is_repetitive
        self._begin()


def _share_of_marks(characters: Counter[str]) -> float:
    """Return the share of digits, punctuation and symbols in what is no space."""
    solid = sum(number for character, number in characters.items() if not character.isspace())
    marks = sum(
        number
        for character, number in characters.items()
        if unicodedata.category(character)[0] in "NPS"
    )
    return marks / max(solid, 1)


def describe_quality(
    counts: dict[str, Any],
    sentence_offsets: Int64[np.ndarray, " sentences_plus_one"],
    document_offsets: Int64[np.ndarray, " documents_plus_one"],
) -> dict[str, Any]:
    """Describe a corpus of at least one document.

    Args:
        counts: those of its manifest.
        sentence_offsets: see `pretrain.corpus`.
        document_offsets: the same.

    Returns:
        Lengths in tokens as the smallest, quantiles (of the smallest length that so many reach)
        and the largest; shares from 0 to 1; characters per token, spaces between words counted.
    """
    documents, tokens = counts["documents"], counts["tokens"]
    document_lengths = _Lengths()
    for lengths in _differences(document_offsets, sentence_offsets):
        document_lengths.add(lengths)
    sentence_lengths = _Lengths()
    for lengths in _differences(sentence_offsets):
        sentence_lengths.add(lengths)
    return {
        "document_tokens": document_lengths.summary(),
        "sentence_tokens": sentence_lengths.summary(),
        "characters_per_token": round(counts["characters"] / tokens, 4),
        "unknown_share": round(counts["unknown_tokens"] / tokens, 6),
        "short_share": round(document_lengths.below(SHORT) / documents, 6),
        "marks_share": round(counts["marks_documents"] / documents, 6),
        "repetitive_share": round(counts["repetitive_documents"] / documents, 6),
    }


def render_quality(manifest: dict[str, Any]) -> str:
    """Write a prepared corpus's counts and description for people."""
    quality = manifest["quality"]
    lines = [
        f"{manifest['documents']:,} documents, {manifest['sentences']:,} sentences, "
        f"{manifest['tokens']:,} tokens",
        f"left out: {manifest['duplicates']:,} duplicate documents, "
        f"{manifest['skipped_rows']:,} bad rows",
        f"{quality['characters_per_token']:.2f} characters per token, "
        f"{quality['unknown_share']:.3%} unknown tokens",
    ]
    for name in ("document", "sentence"):
        lengths = quality[f"{name}_tokens"]
        lines.append(f"tokens of a {name}: " + ", ".join(f"{k} {v:,}" for k, v in lengths.items()))
    lines.append(
        f"documents under {SHORT} tokens {quality['short_share']:.2%}, mostly digits and "
        f"punctuation {quality['marks_share']:.2%}, repetitive {quality['repetitive_share']:.2%}"
    )
    return "\n".join(lines)


class _Lengths:
    """A histogram of lengths, from which quantiles are exact."""

    def __init__(self) -> None:
        self._counts = np.zeros(LONGEST_COUNTED + 1, np.int64)
        self._largest = 0

    def add(self, lengths: Int64[np.ndarray, " lengths"]) -> None:
        self._counts += np.bincount(
            np.minimum(lengths, LONGEST_COUNTED), minlength=len(self._counts)
        )
        self._largest = max(self._largest, int(lengths.max(initial=0)))

    def below(self, length: int) -> int:
        return int(self._counts[:length].sum())

    def summary(self) -> dict[str, int]:
        up_to = np.cumsum(self._counts)
        reached = {
            name: int(np.searchsorted(up_to, np.ceil(share * up_to[-1])))
            for name, share in _QUANTILES.items()
        }
        return {"min": int(np.flatnonzero(self._counts)[0]), **reached, "max": self._largest}


def _differences(offsets: np.ndarray, of: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Yield the distances between neighbouring offsets, or between those that they point to."""
    for begin in range(0, len(offsets) - 1, _BLOCK):
        block = np.asarray(offsets[begin : begin + _BLOCK + 1])
        yield np.diff(block if of is None else of[block])
