"""How much training: a number of optimiser steps, or a time on the wall clock."""

import re
from dataclasses import dataclass

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_TIME = re.compile(rf"(?:({_NUMBER})h)?(?:({_NUMBER})min)?(?:({_NUMBER})s)?")
_STEPS = re.compile(r"([0-9]+)(?:steps?)?")


@dataclass(frozen=True)
class Span:
    """Either `steps` optimiser steps or `seconds` of wall clock; the other one is None."""

    steps: int | None = None
    seconds: float | None = None


def parse_span(argument: str, text: str) -> Span:
    """Read "500" or "500 steps" as steps, and "90s", "6min" or "1h30min" as a time.

    Args:
        argument: what the user calls the value, for the error.
        text: the value; spaces and case don't matter.

    Raises:
        ValueError: the text is neither, or is zero.
    """
    compact = "".join(text.split()).lower()
    if match := _STEPS.fullmatch(compact):
        if int(match[1]) > 0:
            return Span(steps=int(match[1]))
    elif compact and (match := _TIME.fullmatch(compact)):
        hours, minutes, seconds = (float(part or 0) for part in match.groups())
        total = hours * 3600 + minutes * 60 + seconds
        if total > 0:
            return Span(seconds=total)
    raise ValueError(
        f"{argument}: expected steps such as 500, or a time such as 90s, 6min or 1h30min, "
        f"got {text!r}"
    )
