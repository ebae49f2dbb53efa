"""Google's recipe for pairs and masks as loops over sentences and tokens: the tests' oracle.

Written from its description (Devlin et al. 2018, A.1 and A.2), with plain lists and Python's own
generator, so it shares neither code nor random numbers with pretrain/. A recipe has a field for
each thing that could be got wrong, so that a test can show that it would notice.

Where ours deviates on purpose, so does the default here:

- a short length is drawn for each chunk; `target_per_document` is Google's own way;
- the other document is never the pair's own (Google tries ten times);
- a random token is an ordinary one (Google's may be [PAD] or [CLS]);
- a "##" piece right after [CLS] or [SEP], which a cut left there, is a word of its own (Google's
  goes with the word before [SEP]).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

CLS, SEP, MASK = "[CLS]", "[SEP]", "[MASK]"


@dataclass(frozen=True)
class PairRecipe:
    max_length: int = 128
    short_probability: float = 0.1
    random_probability: float = 0.5
    gives_back: bool = True
    target_per_document: bool = False
    cuts_both_ends: bool = True


class Pair(NamedTuple):
    a: list[int]
    b: list[int]
    is_random: bool


def make_pairs(documents: list[list[list[int]]], recipe: PairRecipe, rng: Random) -> list[Pair]:
    """Make an epoch's pairs; a document is a list of sentences, a sentence of tokens."""
    return [
        pair
        for number in range(len(documents))
        for pair in _pairs_of(number, documents, recipe, rng)
    ]


def _pairs_of(number: int, documents: list, recipe: PairRecipe, rng: Random) -> Iterator[Pair]:
    room = recipe.max_length - 3
    unused = list(documents[number])
    target = _draw_target(room, recipe, rng)
    while unused:
        chunk: list[list[int]] = []
        while unused and sum(map(len, chunk)) < target:
            chunk.append(unused.pop(0))
        sentences_of_a = rng.randrange(1, len(chunk)) if len(chunk) > 1 else 1
        a, rest = sum(chunk[:sentences_of_a], []), chunk[sentences_of_a:]
        is_random = not rest or rng.random() < recipe.random_probability
        if is_random:
            b = _elsewhere(number, documents, target - len(a), rng)
            if recipe.gives_back:
                unused = rest + unused
        else:
            b = sum(rest, [])
        cut_to_fit(a, b, room, rng, recipe.cuts_both_ends)
        yield Pair(a, b, is_random)
        if not recipe.target_per_document:
            target = _draw_target(room, recipe, rng)


def _draw_target(room: int, recipe: PairRecipe, rng: Random) -> int:
    is_short = rng.random() < recipe.short_probability
    return rng.randint(2, room) if is_short else room


def _elsewhere(number: int, documents: list, wanted: int, rng: Random) -> list[int]:
    other = rng.choice([i for i in range(len(documents)) if i != number])
    start = rng.randrange(len(documents[other]))
    segment = list(documents[other][start])
    for sentence in documents[other][start + 1 :]:
        if len(segment) >= wanted:
            break
        segment += sentence
    return segment


def cut_to_fit(a: list, b: list, room: int, rng: Random, both_ends: bool = True) -> None:
    """Take tokens off the longer segment, B where they are as long, until both fit."""
    while len(a) + len(b) > room:
        longer = a if len(a) > len(b) else b
        longer.pop(0 if both_ends and rng.random() < 0.5 else -1)


@dataclass(frozen=True)
class MaskingRecipe:
    rate: float = 0.15
    max_predictions: int = 10**9
    whole_words: bool = False
    fates: tuple[float, float] = (0.8, 0.1)
    """The shares of [MASK] and of a random token; the rest is kept."""


class Masked(NamedTuple):
    shown: list[str]
    places: list[int]
    words: int
    """How many words (or pieces, without whole words) were chosen."""


def mask(
    tokens: Sequence[str], ordinary: Sequence[str], recipe: MaskingRecipe, rng: Random
) -> Masked:
    """Mask one framed sequence."""
    words = words_of(tokens) if recipe.whole_words else [[i] for i in maskable(tokens)]
    rng.shuffle(words)
    chosen = choose(words, quota(len(tokens), recipe.rate, recipe.max_predictions))
    places = sorted(place for word in chosen for place in word)
    shown = list(tokens)
    for place in places:
        draw = rng.random()
        if draw < recipe.fates[0]:
            shown[place] = MASK
        elif draw < sum(recipe.fates):
            shown[place] = rng.choice(ordinary)
    return Masked(shown, places, len(chosen))


def quota(length: int, rate: float, max_predictions: int | None) -> int:
    """Tell how many tokens of a sequence are to be masked; its frame counts in its length."""
    return min(max_predictions or 10**9, max(1, round(length * rate)))


def maskable(tokens: Sequence[str]) -> list[int]:
    return [place for place, token in enumerate(tokens) if token not in (CLS, SEP)]


def words_of(tokens: Sequence[str]) -> list[list[int]]:
    """Put the places of a word's pieces together."""
    words: list[list[int]] = []
    for place in maskable(tokens):
        goes_on = tokens[place].startswith("##") and tokens[place] != "##"
        if goes_on and tokens[place - 1] not in (CLS, SEP):
            words[-1].append(place)
        else:
            words.append([place])
    return words


def choose(shuffled: Sequence[list[int]], limit: int) -> list[list[int]]:
    """Go through words in their order and take each that still fits."""
    chosen: list[list[int]] = []
    left = limit
    for word in shuffled:
        if len(word) <= left:
            chosen.append(word)
            left -= len(word)
    return chosen
