"""From labels, as they stand in files, to the numbers of classes."""

from collections.abc import Mapping, Sequence

SHOWN = 12
"""Classes that an error lists."""


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
