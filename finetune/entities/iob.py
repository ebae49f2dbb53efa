"""IOB2, the tags that mark entities: B- begins one, I- goes on with it, O is outside of all.

    U.N.   official  Ekeus  heads  for  Baghdad
    B-ORG  O         B-PER  O      O    B-LOC       (Tjong Kim Sang and De Meulder 2003)

The repair: an I- that doesn't go on with an entity of its own type becomes a B-. So reads the
scorer of CoNLL-2000 what is not IOB2, and files in IOB1, where a B- stands only between two
entities of a type, become right.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """An entity: words from `start` up to, and without, `end`."""

    type: str
    start: int
    end: int


def type_of(tag: str, place: str) -> str | None:
    """Return the type of entity that a tag names; None for O.

    Raises:
        ValueError: it isn't a tag of IOB2; the message begins with `place`.
    """
    if tag == "O":
        return None
    if tag[:2] not in ("B-", "I-") or not tag[2:]:
        raise ValueError(f"{place}: expected a tag O, B-TYPE or I-TYPE, got {tag!r:.60}")
    return tag[2:]


def repair(tags: Sequence[str]) -> tuple[list[str], int]:
    """Make a sentence's tags IOB2; return them, and how many changed."""
    repaired: list[str] = []
    before = "O"
    for tag in tags:
        begins = tag.startswith("I-") and before[2:] != tag[2:]
        repaired.append(f"B-{tag[2:]}" if begins else tag)
        before = tag
    return repaired, sum(a != b for a, b in zip(tags, repaired, strict=True))


def spans(tags: Sequence[str]) -> list[Span]:
    """List the entities of a sentence in IOB2."""
    found: list[Span] = []
    for place, tag in enumerate(tags):
        if tag.startswith("B-"):
            found.append(Span(tag[2:], place, place + 1))
        elif tag.startswith("I-"):
            found[-1] = found[-1]._replace(end=place + 1)
    return found
