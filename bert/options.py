"""What a command can be told: its dataclass's fields, as options, and the help text about them.

tyro parses the command line. The help is printed from here, because it must come at once, and
tyro's import takes longer than a help text may (with typeguard, which it needs for `X | None`,
0.25 s).
"""

import ast
import dataclasses
import inspect
import shutil
import textwrap
import types
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_SHOWN = {int: "N", float: "NUMBER", str: "TEXT", Path: "PATH"}
_SPOKEN = {
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    str: ("a text", "texts"),
    Path: ("a path", "paths"),
}


@dataclass(frozen=True)
class Option:
    """One field of a command's dataclass, or of a dataclass in it."""

    name: str
    """The field's name, after those of the fields that it lies in: "training.seed"."""
    kind: Any
    """Its type."""
    default: Any
    """`dataclasses.MISSING` where the user must give it."""
    help: str
    positional: bool = False

    @property
    def flag(self) -> str:
        """How it is written: --training.seed, or SOURCE where it has a place and no name."""
        dashed = self.name.replace("_", "-")
        return dashed.upper() if self.positional else f"--{dashed}"

    @property
    def is_switch(self) -> bool:
        """Whether it takes no value."""
        return self.kind is bool

    @property
    def is_required(self) -> bool:
        """Whether the command can't run without it."""
        return self.default is MISSING

    @property
    def shown(self) -> str:
        """How it stands in the help: the flag, and what its value looks like."""
        if self.is_switch:
            return f"--[no-]{self.flag[2:]}" if self.default else self.flag
        if self.positional:
            several = get_origin(self.kind) is tuple
            named = f"{self.flag} ..." if several else self.flag
            return named if self.is_required else f"[{named}]"
        return f"{self.flag} {_shown(self.kind)}"

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        return "no value" if self.is_switch else _spoken(self.kind)

    @property
    def default_text(self) -> str:
        """The default, as it would be typed; empty where there is nothing to say."""
        if self.is_required or self.is_switch or self.default == ():
            return ""
        if self.default is None and "None" not in self.help:
            return ""
        values = self.default if isinstance(self.default, tuple) else (self.default,)
        return " ".join(str(value) for value in values)


def options_of(
    command: type, positional: Sequence[str] = (), prefix: str = "", defaults: Any = None
) -> list[Option]:
    """List a dataclass's options, and those of the dataclasses in its fields after its own.

    Args:
        command: the dataclass.
        positional: the fields that are given by their place.
        prefix: goes before each name, as in "training.".
        defaults: an instance whose values are the defaults.
    """
    hints, docs = get_type_hints(command), _field_docs(command)
    own, nested = [], []
    for field in dataclasses.fields(command):
        default = getattr(defaults, field.name, field.default)
        if default is MISSING and field.default_factory is not MISSING:
            default = field.default_factory()
        kind, name = hints[field.name], prefix + field.name
        if dataclasses.is_dataclass(kind):
            instance = None if default is MISSING else default
            nested += options_of(kind, (), f"{name}.", instance)  # pyright: ignore
        else:
            place = field.name in positional
            own.append(Option(name, kind, default, docs.get(field.name, ""), place))
    return own + nested


def suggest(word: str, known: Sequence[str]) -> str:
    """Say which known word was meant, as the end of a sentence; say nothing where none is near."""
    # An option's last part may stand for all of it: --eps for --training.eps.
    near = [name for name in known if name.rpartition(".")[2] == word.lstrip("-")]
    near = near or get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def help_text(program: str, command: type, options: Sequence[Option]) -> str:
    """Write a command's help: how it is called, what it does, and each option in a line or two.

    Args:
        program: as the user calls it.
        command: the dataclass, whose docstring says what the command does.
        options: of `options_of`.
    """
    width = min(shutil.get_terminal_size().columns, 100)
    first = [o for o in options if o.positional]
    needed = [o for o in options if o.is_required and not o.positional]
    may = ["[options]"] if len(options) > len(first) + len(needed) else []
    usage = " ".join(["usage:", program, *(o.shown for o in [*first, *needed]), *may])
    lines = _wrap(usage, width, "  ") + [""]
    for paragraph in _prose(command):
        lines += [*_wrap(paragraph, width), ""]
    groups: dict[str, list[Option]] = {"arguments": first, "required": needed, "options": []}
    for option in options:
        if option not in first and option not in needed:
            groups.setdefault(option.name.rpartition(".")[0] or "options", []).append(option)
    for title, members in groups.items():
        if members:
            lines += [f"{title}:", *(line for o in members for line in _entry(o, width)), ""]
    return "\n".join(lines).rstrip()


def _entry(option: Option, width: int, indent: int = 30) -> list[str]:
    """Lay out one option: its name on the left, what it is on the right."""
    default = option.default_text
    shown = f"(default: {default})".replace(" ", "\xa0")  # wrapped as one word
    right = _wrap(f"{option.help} {shown if default else ''}", max(width - indent, 20))
    right = [line.replace("\xa0", " ") for line in right] or [""]
    left = f"  {option.shown}"
    if len(left) < indent:
        return [left.ljust(indent) + right[0], *(" " * indent + line for line in right[1:])]
    return [left, *(" " * indent + line for line in right)]


def _wrap(text: str, width: int, indent: str = "") -> list[str]:
    """Break text into lines, but no option at its dashes."""
    return textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False)


def _prose(command: type) -> list[str]:
    """Return a docstring's paragraphs up to the first section, such as Raises."""
    paragraphs = []
    for paragraph in inspect.cleandoc(command.__doc__ or "").split("\n\n"):
        if paragraph.partition("\n")[0] in ("Args:", "Returns:", "Raises:"):
            break
        paragraphs.append(" ".join(paragraph.split()))
    return paragraphs


def _field_docs(command: type) -> dict[str, str]:
    """Read the strings that stand below a dataclass's fields, which Python doesn't keep."""
    docs: dict[str, str] = {}
    for base in reversed(command.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(tree, ast.ClassDef)
        for field, below in zip(tree.body, tree.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
                and isinstance(below.value.value, str)
            ):
                docs[field.target.id] = " ".join(below.value.value.split())
    return docs


def _members(kind: Any) -> tuple[Any, ...]:
    """Return the types of a union without None; of another type, the type."""
    if get_origin(kind) in (Union, types.UnionType):
        return tuple(member for member in get_args(kind) if member is not type(None))
    return (kind,)


def _shown(kind: Any) -> str:
    kind, *others = _members(kind)
    if others:
        return "|".join(map(_shown, [kind, *others]))
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "|".join(str(value) for value in args)
    if origin is tuple:
        return f"{_shown(args[0])} ..." if args[-1] is ... else " ".join(map(_shown, args))
    return _SHOWN[kind]


def _spoken(kind: Any) -> str:
    members = _members(kind)
    if (kind,) != members:
        words = [_spoken(member) for member in members]
        return " or ".join([*words, "None"] if type(None) in get_args(kind) else words)
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(str(value) for value in args)}"
    if origin is tuple:
        count = "any number of" if args[-1] is ... else str(len(args))
        if get_origin(args[0]) is Literal:
            return f"{count} {_spoken(args[0]).removeprefix('one of ')}"
        return f"{count} {_SPOKEN[args[0]][1]}"
    return _SPOKEN[kind][0]
