"""A filled-in dataclass back as the command that makes it, to be saved with what came out."""

import shlex
from collections.abc import Collection
from dataclasses import fields, is_dataclass, replace
from typing import Any

# How a run was started says nothing about what it is.
_HOW_STARTED = {"resume": "auto", "overwrite": False, "dry_run": False}


def command_line(program: str, settings: Any, positional: Collection[str] = ()) -> str:
    """Write the command of a run as one could type it, leaving defaults out.

    Args:
        program: what it starts with, such as "bert finetune".
        settings: the command's dataclass.
        positional: the fields that are given by their place.
    """
    names = {field.name for field in fields(settings)}
    kept = replace(settings, **{k: v for k, v in _HOW_STARTED.items() if k in names})
    return shlex.join([*program.split(), *_arguments(kept, positional)])


def _arguments(
    settings: Any, positional: Collection[str] = (), prefix: str = "--", defaults: Any = None
) -> list[str]:
    """List the options that differ from their defaults."""
    found: list[str] = []
    for field in fields(settings):
        value = getattr(settings, field.name)
        default = getattr(defaults, field.name, field.default)
        flag = prefix + field.name.replace("_", "-")
        values = value if isinstance(value, tuple) else (value,)
        if field.name in positional:
            found = [*map(str, values), *found]
        elif is_dataclass(value):
            found += _arguments(value, (), f"{flag}.", default)
        elif isinstance(value, bool):
            found += [] if value == default else [flag]
        elif value != default:
            found += [flag, *map(str, values)]
    return found
