"""What a search varies, as the command line says it: NAME=LOW..HIGH, :log after it, or NAME=A,B,C.

Imports neither torch nor optuna, so that `--help` answers at once.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_origin

from bert.options import Option, options_of, suggest
from finetune.config import FinetuneConfig

DEFAULT_SPACE = (
    "learning_rate=1e-5..1e-3:log",
    "batch_size=16,32",
    "epochs=2,3,4",
    "dropout=0.0..0.3",
)
"""Batch sizes and epochs of Devlin et al. 2018, A.3; rates that suit small models too."""

FIXED = frozenset(
    {"train_file", "validation_file", "test_file", "out", "task", "options", "best_metric"}
    | {"columns.text_a", "columns.text_b", "columns.label", "class_names", "train_rows", "seed"}
    | {"tokenizer", "resume", "overwrite", "dry_run", "training.seed", "training.trackers"}
)
"""What makes trials incomparable, or is no setting."""

Value = float | int | str | bool | None


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both of them too."""

    name: str
    low: float
    high: float
    is_log: bool
    is_integer: bool

    @property
    def ends(self) -> tuple[Value, ...]:
        """The values that are tried before the first trial, whether they can be at all."""
        return (self.low, self.high)


@dataclass(frozen=True)
class Choice:
    """Any of some values."""

    name: str
    values: tuple[Value, ...]

    @property
    def ends(self) -> tuple[Value, ...]:
        """All of them."""
        return self.values


Parameter = Range | Choice


def parse_space(texts: Sequence[str]) -> tuple[Parameter, ...]:
    """Read what is searched.

    Raises:
        ValueError: the message begins with "space: ".
    """
    if not texts:
        raise ValueError(f"space: expected something to vary, such as {DEFAULT_SPACE[0]}, got ()")
    parameters = tuple(_parse(text) for text in texts)
    names = [parameter.name for parameter in parameters]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"space: expected each name once, got {twice} twice")
    return parameters


def with_values(config: FinetuneConfig, values: Mapping[str, Value]) -> FinetuneConfig:
    """Return a configuration with searched values in it.

    Raises:
        ValueError: they can't be, or not together.
    """
    fields: dict[str, Any] = {}
    training: dict[str, Any] = {}
    options = list(config.options)
    for name, value in values.items():
        group, dot, rest = name.partition(".")
        if not dot:
            fields[name] = value
        elif group == "training":
            training[rest] = value
        else:
            options = [o for o in options if o.partition("=")[0].replace("-", "_") != rest]
            options.append(f"{rest}={str(value).lower() if isinstance(value, bool) else value}")
    fields["options"] = tuple(options)
    return replace(config, training=replace(config.training, **training), **fields)


def corners(parameters: Sequence[Parameter]) -> list[dict[str, Value]]:
    """List settings in which both ends of each range, and each choice, are met."""
    count = max(len(parameter.ends) for parameter in parameters)
    return [{p.name: p.ends[i % len(p.ends)] for p in parameters} for i in range(count)]


def _parse(text: str) -> Parameter:
    name, equals, said = text.partition("=")
    if not equals or not said:
        raise ValueError(
            f"space: expected NAME=LOW..HIGH, NAME=LOW..HIGH:log or NAME=A,B,C, got {text!r}"
        )
    name, kinds = _find(name.replace("-", "_"))
    if "," in said or ".." not in said:
        parts = said.split(",")
        values = tuple(_read(part, kinds, name) for part in parts)
        if len(set(parts)) != len(parts):
            raise ValueError(f"space: {name}: expected each value once, got {said}")
        return Choice(name, values)
    span, colon, scale = said.partition(":")
    low, high = (_read(part, kinds, name) for part in span.split("..", 1))
    is_number = all(type(end) in (int, float) for end in (low, high))
    if not is_number or not low < high or (colon and scale != "log"):  # pyright: ignore
        raise ValueError(
            f"space: {name}: expected two numbers, the lower first, then :log or nothing, "
            f"got {said}"
        )
    if colon and low <= 0:  # pyright: ignore[reportOperatorIssue, reportOptionalOperand]
        raise ValueError(f"space: {name}: expected numbers above 0 for :log, got {said}")
    is_integer = isinstance(low, int) and isinstance(high, int)
    return Range(name, low, high, bool(colon), is_integer)  # pyright: ignore[reportArgumentType]


def _find(name: str) -> tuple[str, tuple[Any, ...]]:
    """Return an option's full name, and the types that its value may have."""
    if name.startswith("options.") and name != "options.":
        return name, (int, float, bool, str)  # what the task can have, it says itself
    known = [o for o in options_of(FinetuneConfig) if o.name not in FIXED and _kinds(o)]
    found = [o for o in known if o.name == name]
    found = found or [o for o in known if o.name.rpartition(".")[2] == name]
    if len(found) != 1:
        near = suggest(name, [o.name for o in known])
        raise ValueError(f"space: expected an option of a run that can vary, got {name!r}{near}")
    return found[0].name, _kinds(found[0])


def _kinds(option: Option) -> tuple[Any, ...]:
    """Return the types of an option's single value; none where it has several values."""
    members = get_args(option.kind) if get_origin(option.kind) is not Literal else ()
    kinds = members or (option.kind,)
    if any(get_origin(kind) is tuple for kind in kinds) or get_origin(option.kind) is tuple:
        return ()
    return tuple(str if get_origin(kind) is Literal else kind for kind in kinds)


def _read(text: str, kinds: tuple[Any, ...], name: str) -> Value:
    """Read a value, as the first type that takes it."""
    if text == "none" and type(None) in kinds:
        return None
    if bool in kinds and text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        if kind in kinds:
            try:
                value = kind(text)
            except ValueError:
                continue
            if math.isfinite(value):
                return value
    if str in kinds and text:
        return text
    spoken = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
    raise ValueError(f"space: {name}: expected {spoken.replace('NoneType', 'none')}, got {text!r}")
