"""Tagged sentences as rows of token ids."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from bert.tokenization import Tokenizer
from finetune.batches import TokenRows
from finetune.data import CHUNK, LabelledBatch
from finetune.entities.conll import Sentence
from finetune.entities.iob import repair, type_of
from finetune.entities.words import Window, encode_words

UNLABELLED = -100
"""The label of a token that is not a word's first piece."""


@dataclass(frozen=True)
class TaggedRows:
    """A file of tagged sentences; a row is a sentence, or a window of a long one."""

    path: Path
    tokens: TokenRows
    labels: Int64[np.ndarray, " tokens"]
    """The tag of a word at its first piece, UNLABELLED elsewhere."""
    gold: list[list[int]]
    """The tag of each word of each sentence, repaired."""
    places: list[list[int]]
    """Where each word's first piece is in `tokens`; −1: it has none."""
    tag_names: tuple[str, ...]
    words: list[list[str]]
    """Of each sentence."""
    first_lines: list[int]
    """Where in the file each sentence begins."""
    repaired: int
    """Tags that were not IOB2, and were made so."""
    split: int
    """Sentences that are several rows."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> Int64[np.ndarray, " rows"]:
        """The tokens of each row."""
        return self.tokens.lengths

    def batch(self, rows: Int64[np.ndarray, " chosen"]) -> LabelledBatch:
        """Pack the chosen rows, in the given order; a label for each token."""
        labels = torch.from_numpy(self.labels[self.tokens.places(rows)])
        return LabelledBatch(self.tokens.batch(rows), labels)

    @property
    def gold_tags(self) -> list[list[str]]:
        """The names of the tags of each word of each sentence."""
        return [[self.tag_names[tag] for tag in tags] for tags in self.gold]

    @property
    def entities(self) -> dict[str, int]:
        """How many entities of each type there are."""
        counts = dict.fromkeys((n[2:] for n in self.tag_names if n != "O"), 0)
        for tags in self.gold:
            for tag in tags:
                if self.tag_names[tag].startswith("B-"):
                    counts[self.tag_names[tag][2:]] += 1
        return counts

    def describe(self) -> dict[str, Any]:
        """Return the file, its size and its entities, as JSON."""
        return {
            "file": str(self.path),
            "sha256": hashlib.sha256(self.path.read_bytes()).hexdigest(),
            "rows": len(self),
            "sentences": len(self.gold),
            "words": sum(map(len, self.gold)),
            "words_without_pieces": sum(place < 0 for row in self.places for place in row),
            "entities": self.entities,
            "repaired_tags": self.repaired,
            "split_sentences": self.split,
            "tokens": int(self.lengths.sum()),
            "longest": int(self.lengths.max()),
        }

    def __str__(self) -> str:
        facts = self.describe()
        entities = ", ".join(f"{name} {count}" for name, count in self.entities.items())
        odd = [
            (self.repaired, "tags were not IOB2, and were repaired"),
            (self.split, "sentences are too long, and were split"),
            (facts["words_without_pieces"], "words have no piece, and count as O"),
        ]
        return (
            f"{self.path}: {len(self.gold):,} sentences of {facts['words']:,} words ({entities}); "
            f"{facts['tokens']:,} tokens, {facts['longest']} in the longest row"
        ) + "".join(f"; {count:,} {what}" for count, what in odd if count)

    def sha256(self) -> str:
        """Return a hash of all that training or testing sees."""
        digest = hashlib.sha256(repr((self.tag_names, self.gold, self.places)).encode())
        for part in (self.tokens.input_ids, self.tokens.offsets, self.labels):
            digest.update(part.data)
        return digest.hexdigest()


def read_tagged(
    path: Path,
    sentences: Iterator[Sentence],
    tokenizer: Tokenizer,
    max_length: int,
    types: Sequence[str] | None,
    limit: int | None = None,
) -> TaggedRows:
    """Tokenize tagged sentences.

    Args:
        path: the file, for errors.
        sentences: see conll.py.
        tokenizer: its report counts the odd things met in the words.
        max_length: tokens of a row.
        types: those of the entities; None: those that are met, by the alphabet.
        limit: sentences to read, from the first; None: all.

    Raises:
        ValueError: a tag that isn't IOB2 or of no known type; no sentence, or fewer than `limit`.
    """
    windows: list[Window] = []
    tags: list[list[str]] = []
    texts: list[list[str]] = []
    first_lines: list[int] = []
    labelled: list[list[tuple[int, int]]] = []  # each sentence's words and their tokens
    found: dict[str, str] = {}  # types, and where each was met first
    repaired = split = tokens = 0
    read = islice(sentences, limit)
    while chunk := list(islice(read, CHUNK)):
        for sentence in chunk:
            _note_types(path, sentence, found)
            mended, count = repair(sentence.tags)
            repaired += count
            tags.append(mended)
            first_lines.append(sentence.lines[0])
        words = [sentence.words for sentence in chunk]
        texts += words
        for parts in encode_words(tokenizer, words, max_length):
            split += len(parts) > 1
            labelled.append([])
            for part in parts:
                pairs = zip(part.words, part.firsts, strict=True)
                labelled[-1] += [(word, tokens + first) for word, first in pairs]
                tokens += len(part.ids)
            windows += parts
    if not windows:
        raise ValueError(f"{path}: expected sentences, got none")
    if limit is not None and len(tags) < limit:
        raise ValueError(f"train_rows: expected at most {len(tags)}, all of {path}, got {limit}")
    names = _tag_names(types or sorted(found), found)
    codes = {name: code for code, name in enumerate(names)}
    labels = np.full(tokens, UNLABELLED, dtype=np.int64)
    gold = [[codes[tag] for tag in row] for row in tags]
    places = [[-1] * len(row) for row in tags]
    for row, pairs in enumerate(labelled):
        for word, place in pairs:
            labels[place], places[row][word] = gold[row][word], place
    rows = TokenRows.from_encodings(windows)
    return TaggedRows(path, rows, labels, gold, places, names, texts, first_lines, repaired, split)


def _note_types(path: Path, sentence: Sentence, found: dict[str, str]) -> None:
    for word, tag, line in zip(sentence.words, sentence.tags, sentence.lines, strict=True):
        place = f"{path}, line {line}, {sentence.column}, word {word!r:.40}"
        kind = type_of(tag, place)
        if kind is not None:
            found.setdefault(kind, place)


def _tag_names(types: Sequence[str], found: dict[str, str]) -> tuple[str, ...]:
    """List the tags: O, and two for each type; refuse a type that isn't among them."""
    for kind, place in found.items():
        if kind not in types:
            raise ValueError(
                f"{place}: expected a type that is trained ({', '.join(types)}), got {kind!r}"
            )
    return ("O", *(f"{prefix}-{kind}" for kind in types for prefix in "BI"))
