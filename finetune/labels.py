"""Labels as they stand in files, classes, numbers or lists of classes; classes in order."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = 12
"""Classes that an error lists."""
LARGEST = 3.4e38
"""The greatest number that float32 holds, nearly."""


def read_class(value: Any, place: str) -> str:
    """Read the name of a class, which may be a whole number.

    Raises:
        ValueError: it is none; the message begins with `place`.
    """
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(
            f"{place}: expected a label, a name or a whole number, got {shown(value)}"
        )
    label = str(value).strip()
    if not label:
        raise ValueError(f"{place}: expected a label, got nothing")
    return label


def read_number(value: Any, place: str) -> float:
    """Read a number.

    Raises:
        ValueError: it is none, or not finite in float32; the message begins with `place`.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= LARGEST:
        raise ValueError(f"{place}: expected a number, got {shown(value)}")
    return number


def read_several(value: Any, place: str, separator: str) -> list[str]:
    """Read a list of classes: a list in JSON, else a text with the separator; none is fine.

    Raises:
        ValueError: it is none, or a class is there twice; the message begins with `place`.
    """
    parts = value
    if isinstance(value, str):
        parts = value.split(separator) if value.strip() else []
    if not isinstance(parts, list):
        raise ValueError(f"{place}: expected a list of labels, got {shown(value)}")
    labels = [read_class(part, place) for part in parts]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise ValueError(f"{place}: expected each label once, got {twice!r} twice")
    return labels


def name_classes(places: Mapping[str, str]) -> tuple[str, ...]:
    """Put a train file's labels in order: numbers by their size, else names by the alphabet.

    Args:
        places: the labels, and where in the file each stands first.

    Raises:
        ValueError: the labels are numbers, but not 0, 1, … without a gap.
    """
    if not all(is_number(label) for label in places):
        return tuple(sorted(places))
    for label, place in places.items():
        if label != str(int(label)) or int(label) < 0:
            raise ValueError(f"{place}: expected a class 0, 1, …, got {label}")
    highest = max(places, key=int)
    missing = next((i for i in range(int(highest)) if str(i) not in places), None)
    if missing is not None:
        raise ValueError(
            f"{places[highest]}: got class {highest}, but no row has class {missing}; number the "
            "classes without a gap, or call them by names"
        )
    return tuple(sorted(places, key=int))


def class_of(label: str, names: Sequence[str], place: str) -> int:
    """Return the class that a label means: its name's, or, where names are words, its number's.

    Raises:
        ValueError: it means none; the message begins with `place`.
    """
    if label in names:
        return names.index(label)
    by_number = not any(is_number(name) for name in names)
    if by_number and is_number(label) and 0 <= int(label) < len(names):
        return int(label)
    numbers = f", or 0 to {len(names) - 1}" if by_number else ""
    shown = ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
    raise ValueError(
        f"{place}: expected a class that is trained ({shown}){numbers}, got {label!r}"
    )


def is_number(label: str) -> bool:
    """Say whether a label is a whole number, negative ones too."""
    return label.removeprefix("-").isdecimal()


def shown(value: Any) -> str:
    """Show a wrong value, cut to what a line can hold."""
    text = json.dumps(value, ensure_ascii=True)
    return "nothing" if value is None else text if len(text) <= 60 else text[:57] + "..."
