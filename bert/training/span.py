"""How much training: optimiser steps, tokens, or a time on the wall clock."""

import re
from dataclasses import dataclass
from typing import NamedTuple

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_TIME = re.compile(rf"(?:({_NUMBER})h)?(?:({_NUMBER})min)?(?:({_NUMBER})s)?")
_STEPS = re.compile(r"([0-9]+)(?:steps?)?")
_TOKENS = re.compile(rf"({_NUMBER})([kmg]?)tok(?:ens?)?")
_THOUSANDS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


@dataclass(frozen=True)
class Span:
    """Either `steps` optimiser steps, `tokens` real tokens, or `seconds` of wall clock.

    The other two are None.
    """

    steps: int | None = None
    tokens: int | None = None
    seconds: float | None = None


class Place(NamedTuple):
    """Where a run is, in each unit of a span, counted from its start."""

    steps: int
    """Finished ones."""
    tokens: int
    """Real tokens in them."""
    seconds: float
    """Wall clock, stops not counted."""


def parse_span(argument: str, text: str) -> Span:
    """Read "500" or "500 steps", "20Mtok" or "20M tokens" (also k, G), "90s" or "1h30min".

    Args:
        argument: what the user calls the value, for the error.
        text: the value; spaces and case don't matter.

    Raises:
        ValueError: the text is none of these, or zero.
    """
    compact = "".join(text.split()).lower()
    if match := _STEPS.fullmatch(compact):
        if int(match[1]) > 0:
            return Span(steps=int(match[1]))
    elif match := _TOKENS.fullmatch(compact):
        tokens = round(float(match[1]) * _THOUSANDS[match[2]])
        if tokens > 0:
            return Span(tokens=tokens)
    elif compact and (match := _TIME.fullmatch(compact)):
        hours, minutes, seconds = (float(part or 0) for part in match.groups())
        total = hours * 3600 + minutes * 60 + seconds
        if total > 0:
            return Span(seconds=total)
    raise ValueError(
        f"{argument}: expected steps such as 500, tokens such as 20Mtok, or a time such as 90s, "
        f"6min or 1h30min, got {text!r}"
    )
