"""Texts with the faults of people who type, to see how much of a score lives on clean text.

| noise | what a rate of 0.1 does |
| --- | --- |
| typos | one word of ten: two neighbouring letters change places, or one is left out or doubled |
| case | one word of ten is written in capitals, or in small letters if it was in capitals |
| punctuation | one sign of ten is left out |
| words | one word of ten is left out, but never the last that a text has |

A word is what stands between spaces; one of a single letter has no typo. What is hit follows from
the seed, the noise and the row's line alone, and a higher rate hits the same and more. Typos need
no alphabet, so that they work in any script: the swapped, dropped and added letters of Pruthi et
al. 2019, where an added letter is the one before it again.
"""

import random
import re
import string
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from finetune.evaluation.config import Noise
from finetune.evaluation.resampling import Difference
from finetune.tables import Row

_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Spoiler:
    """Spoils a row's texts."""

    noise: Noise
    rate: float
    """The probability that a word, or a sign, is hit."""
    seed: int = 0

    def __call__(self, row: Row) -> Row:
        """Return the row with noise in its texts."""
        rng = random.Random(f"{self.seed} {self.noise} {row.line}")
        spoil = _SPOIL[self.noise]
        text_a = spoil(row.text_a, self.rate, rng)
        text_b = None if row.text_b is None else spoil(row.text_b, self.rate, rng)
        return row._replace(text_a=text_a, text_b=text_b)


# Each draws as often whatever the rate, so that a higher rate hits the same and more.


def _typos(text: str, rate: float, rng: random.Random) -> str:
    def spoil(word: re.Match[str]) -> str:
        is_hit, kind, place = rng.random() < rate, rng.randrange(3), rng.random()
        return _with_typo(word[0], kind, place) if is_hit else word[0]

    return _WORD.sub(spoil, text)


def _with_typo(word: str, kind: int, place: float) -> str:
    """Put one typo into a word of two letters or more.

    Args:
        word: what stands between spaces.
        kind: 0, neighbours change places (equal ones: the next kind); 1, left out; 2, doubled.
        place: in [0, 1): which of the letters.
    """
    letters = [i for i, character in enumerate(word) if character.isalpha()]
    if len(letters) < 2:
        return word
    neighbours = [i for i, j in pairwise(letters) if j == i + 1 and word[i] != word[j]]
    if kind == 0 and neighbours:
        i = neighbours[int(place * len(neighbours))]
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    i = letters[int(place * len(letters))]
    return word[:i] + word[i] * (2 if kind == 2 else 0) + word[i + 1 :]


def _case(text: str, rate: float, rng: random.Random) -> str:
    def spoil(word: re.Match[str]) -> str:
        if rng.random() >= rate:
            return word[0]
        return word[0].lower() if word[0].isupper() else word[0].upper()

    return _WORD.sub(spoil, text)


def _punctuation(text: str, rate: float, rng: random.Random) -> str:
    return "".join(c for c in text if not (_is_sign(c) and rng.random() < rate))


def _is_sign(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def _words(text: str, rate: float, rng: random.Random) -> str:
    words = re.findall(r"\S+\s*", text)
    draws = [rng.random() for _ in words]
    least = min(rate, max(draws, default=0.0))  # so that one is kept
    kept = [word for word, draw in zip(words, draws, strict=True) if draw >= least]
    return text[: len(text) - len(text.lstrip())] + "".join(kept)


_SPOIL: dict[str, Callable[[str, float, random.Random], str]] = {
    "typos": _typos,
    "case": _case,
    "punctuation": _punctuation,
    "words": _words,
}


# --- what it does to a model ------------------------------------------------------------------


class Spoiled(NamedTuple):
    """What noise of one kind and rate does to a model's scores."""

    noise: str
    rate: float
    changed: float
    """Share of the rows whose tokens it changes: capitals mean nothing to an uncased model."""
    differences: dict[str, Difference]
    """Of each score, from the clean rows to the spoiled ones."""

    def as_json(self) -> dict[str, Any]:
        """Return all numbers."""
        found = {
            name: {"clean": d.first, "spoiled": d.second, "difference_interval": list(d.interval)}
            for name, d in self.differences.items()
        }
        return {"noise": self.noise, "rate": self.rate, "changed": self.changed, **found}


def describe_noise(spoiled: Sequence[Spoiled], titles: Mapping[str, str]) -> str:
    """Write a table of what noise takes away from the first two scores of `titles`."""
    names = [*titles][:2]
    wide = max(11, *(len(titles[name]) + 2 for name in names))
    head = "".join(f"{titles[name]:>{wide}}{'lost, with 95% interval':>30}" for name in names)
    lines = [f"{'noise':18}{'rows changed':>12}{head}"]
    for each in spoiled:
        line = f"{f'{each.noise} {each.rate:g}':18}{each.changed:12.1%}"
        for name in names:
            found = each.differences[name]
            low, high = found.interval
            lost = f"{-found.value:+z.4f} ({-high:+z.4f} to {-low:+z.4f})"
            line += f"{found.second:{wide}.4f}{lost:>30}"
        lines.append(line)
    return "\n".join(lines) + "\n"
