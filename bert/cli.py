"""The `bert` command: finds the command's dataclass, has tyro fill it, and runs the command.

Each command is a dataclass (its options) and a function that takes one; the table below says
where they are. Only the command in use is imported, and the modules of the dataclasses import
no torch, so that `--help` answers at once.

Exit codes: 0, done; 1, done, with a negative answer (`bert doctor`, `bert parity`) or with rows
that had errors (`bert predict`, `embed`, `fill-mask`); 2, a mistake of the user, told in one line;
130, Ctrl-C. A ValueError or OSError counts as a mistake of the user. Anything else is ours, and
keeps its traceback; under `python -X dev` these two do as well. Of the processes that torchrun
starts, the first tells what is wrong for all of them.
"""

import dataclasses
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from itertools import takewhile
from types import MappingProxyType, SimpleNamespace
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

from bert.options import Option, help_text, options_of, suggest


class Command(NamedTuple):
    """Where a command's parts are, as "module:name", and what it does."""

    options: str
    run: str
    help: str
    positional: tuple[str, ...] = ()
    """The fields that are given by their place on the command line."""
    recipes: str = ""
    """Where its recipes are, if it has any: by name, the defaults that each sets."""


COMMANDS: dict[str, Command] = {
    "doctor": Command("bert.doctor:Doctor", "bert.doctor:run", "check this machine and install"),
    "pretrain": Command(
        "pretrain.config:PretrainConfig",
        "pretrain.run:run",
        "train a BERT on plain text",
        ("files",),
        "pretrain.recipes:RECIPES",
    ),
    "pretrain prepare": Command(
        "pretrain.prepare_config:PrepareConfig",
        "pretrain.prepare:run",
        "turn text into token ids, once for many runs",
        ("files",),
    ),
    "pretrain film": Command(
        "pretrain.film.config:FilmConfig",
        "pretrain.film.run:run",
        "show what each snapshot of a run knows",
        ("run",),
    ),
    "finetune": Command(
        "finetune.config:FinetuneConfig", "finetune.run:run", "train a BERT on labelled texts"
    ),
    "finetune evaluate": Command(
        "finetune.evaluation.config:EvaluateConfig",
        "finetune.evaluation.evaluate:run",
        "test a fine-tuned model on a file, with noise too",
        ("model",),
    ),
    "finetune compare": Command(
        "finetune.evaluation.config:CompareConfig",
        "finetune.evaluation.compare:run",
        "say whether one of two models is better on a file",
        ("first", "second"),
    ),
    "finetune seeds": Command(
        "finetune.studies.config:SeedsConfig",
        "finetune.studies.seeds:run",
        "fine-tune with several seeds: mean, deviation, interval",
    ),
    "finetune folds": Command(
        "finetune.studies.config:FoldsConfig",
        "finetune.studies.folds:run",
        "cross-validate: test each row by a run that didn't learn it",
    ),
    "finetune sizes": Command(
        "finetune.studies.config:SizesConfig",
        "finetune.studies.sizes:run",
        "draw a learning curve: scores by rows learned from",
    ),
    "finetune search": Command(
        "finetune.studies.config:SearchConfig",
        "finetune.studies.search:run",
        "search for the best settings with optuna",
    ),
    "predict": Command(
        "finetune.predict:PredictConfig",
        "finetune.predict:run",
        "answer texts with a fine-tuned model",
        ("model",),
    ),
    "embed": Command(
        "finetune.embed:EmbedConfig", "finetune.embed:run", "turn texts into vectors", ("model",)
    ),
    "fill-mask": Command(
        "bert.fill_mask:FillMask",
        "bert.fill_mask:run",
        "guess the masked words of a text",
        ("text",),
    ),
    "inspect": Command(
        "bert.internals.page.config:Inspect",
        "bert.internals.page.run:run",
        "draw what a model does with a text, as a page",
        ("model",),
    ),
    "parity": Command(
        "bert.parity:Parity", "bert.parity:run", "compare a model with transformers", ("model",)
    ),
    "export": Command(
        "bert.export:Export",
        "bert.export:run",
        "write a model as a Hugging Face directory",
        ("source", "out"),
    ),
    "demo": Command(
        "demo.config:DemoConfig", "demo.run:run", "the whole path on embedded data, in minutes"
    ),
}


FIRST_TELLS_WITHIN = 60.0
"""Seconds that the first of several processes has to tell what is wrong for all."""


class UsageError(Exception):
    """The command line can't be used; the message is one line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `bert` with these arguments, or the process's, and return its exit code."""
    first, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if first in COMMANDS:
        return run_command(first, rest)
    return _guarded("bert", (), lambda: _without_command(first))


def run_command(name: str, argv: Sequence[str] | None = None) -> int:
    """Run one command with the arguments that come after its name; return its exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given and f"{name} {given[0]}" in COMMANDS:  # so a file named prepare is ./prepare
        name, given = f"{name} {given[0]}", given[1:]
    command, program = COMMANDS[name], f"bert {name}"
    settings = _load(command.options)
    recipes: dict[str, dict[str, Any]] = _load(command.recipes) if command.recipes else {}

    def work() -> int:
        recipe, arguments = _take_recipe(given, recipes)
        options = options_of(settings, command.positional, defaults=SimpleNamespace(**recipe))
        options += _recipe_option(recipes)
        if {"-h", "--help"} & set(arguments):
            print(help_text(program, settings, options))
            return 0
        parsed = parse(settings, options, arguments, recipe)
        return int(_load(command.run)(parsed) or 0)

    return _guarded(program, options_of(settings, command.positional), work)


def _recipe_option(recipes: Mapping[str, Any]) -> list[Option]:
    """Describe --recipe, if the command has any; it is no field: what it sets is."""
    if not recipes:
        return []
    text = "Start from the settings of a recipe; what is given beside it stands."
    return [Option("recipe", Literal[tuple(recipes)], None, text)]


def _take_recipe(
    given: Sequence[str], recipes: Mapping[str, dict[str, Any]]
) -> tuple[dict[str, Any], list[str]]:
    """Return the defaults of the recipe that was asked for, and the arguments without it."""
    rest = list(given)
    for place, token in enumerate(given if recipes else ()):
        flag, equals, value = token.partition("=")
        if flag != "--recipe":
            continue
        name = value if equals else next(iter(given[place + 1 :]), "")
        if name not in recipes:
            got = f"{name!r}{suggest(name, list(recipes))}" if name else "nothing"
            raise UsageError(f"--recipe: expected one of {', '.join(recipes)}, got {got}")
        del rest[place : place + (1 if equals else 2)]
        return recipes[name], rest
    return {}, rest


def _without_command(first: str) -> int:
    """Answer `bert` where the first argument is no command."""
    if first in ("-h", "--help"):
        print(_overview())
    elif first == "--version":
        print(f"bert {_version()}")
    else:
        kind = "option" if first.startswith("-") else "command"
        raise UsageError(f"no {kind} {first}{suggest(first, [*COMMANDS, '--help', '--version'])}")
    return 0


def _guarded(program: str, options: Sequence[Option], work: Callable[[], int]) -> int:
    """Do the work, and turn what a user did wrong into one line and an exit code."""
    try:
        with _warnings_in_one_line(program):
            code = work()
        sys.stdout.flush()
        return code
    except UsageError as error:
        _let_the_first_tell()
        return _fail(program, str(error))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone, as `head` does. Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except ModuleNotFoundError as error:
        if "install the extra" not in str(error):
            raise
        return _fail(program, str(error))
    except (ValueError, OSError) as error:
        if sys.flags.dev_mode:
            raise
        if getattr(error, "is_everyones", False):
            _let_the_first_tell()
        return _fail(program, _as_typed(_message(error), options))


def parse(
    settings: type,
    options: Sequence[Option],
    argv: Sequence[str],
    recipe: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """Fill a command's dataclass from its arguments.

    Args:
        settings: the dataclass.
        options: its options; their defaults are the recipe's.
        argv: what was typed.
        recipe: the fields whose defaults a recipe sets.

    Raises:
        UsageError: they can't be used; the message names the argument and what was expected.
    """
    import tyro

    def refuse(event: Any) -> None:
        if message := _explain(event, options, argv):
            raise UsageError(message)

    # What tyro says about a mistake is a box of many lines. The hook that replaces it isn't part
    # of its public interface: a version without it prints the box, and exits with 2 as well.
    hooks = getattr(tyro, "_errors", None)
    with hooks.on_parse_error(refuse) if hooks else nullcontext():
        parsed = tyro.cli(_as_asked(settings, options, recipe), args=argv, add_help=False)
    return settings(**{f.name: getattr(parsed, f.name) for f in dataclasses.fields(settings)})


def _as_asked(settings: type, options: Sequence[Option], recipe: Mapping[str, Any]) -> type:
    """Derive a dataclass that tells tyro what has a place, and a recipe's defaults.

    The mark is tyro's, and the modules of the dataclasses don't import it.
    """
    from tyro.conf import Positional

    kinds = get_type_hints(settings)
    changed = {name: (kinds[name], value) for name, value in recipe.items()} | {
        o.name: (Annotated[o.kind, Positional], o.default) for o in options if o.positional
    }
    fields = [(n, kind, dataclasses.field(default=v)) for n, (kind, v) in changed.items()]
    return dataclasses.make_dataclass(
        settings.__name__, fields, bases=(settings,), frozen=True, kw_only=True
    )


def _explain(event: Any, options: Sequence[Option], argv: Sequence[str]) -> str | None:
    """Tell in one line why tyro refuses the arguments; None for a reason that isn't known here."""
    kind = type(event).__name__
    unknown: list[str] = getattr(event, "tokens", getattr(event, "unrecognized_tokens", []))
    if dashed := [token for token in unknown if token.startswith("-")]:
        name = dashed[0].partition("=")[0]
        return f"no option {name}{suggest(name, [o.flag for o in options])}"
    if kind == "UnrecognizedArgs":
        return f"expected no further argument, got {unknown[0]!r}; quote a text that has spaces"
    if kind == "MissingArgs":
        first, *others = [_option_of(each.arg, options) for each in event.missing_arguments]
        more = f"; missing too: {', '.join(option.shown for option in others)}" if others else ""
        return _got_nothing(first) + more
    if kind == "InstantiationFailure" and event.argument is None:
        return _as_typed(str(event.message), options)
    if kind in ("BadValue", "InvalidChoice", "InstantiationFailure"):
        option = _option_of(event.argument, options)
        given = getattr(event, "value", None) or _given(option, argv)
        hint = suggest(given, event.choices) if kind == "InvalidChoice" else ""
        if not given:
            return _got_nothing(option)
        return f"{option.flag}: expected {option.expected}, got {given!r}{hint}"
    return None


def _got_nothing(option: Option) -> str:
    """Say that an option is missing, or its value, and how it is typed."""
    typed = option.expected if option.positional else option.shown
    return f"{option.flag}: expected {typed}, got nothing"


def _option_of(argument: Any, options: Sequence[Option]) -> Option:
    """Find the option that one of tyro's arguments stands for."""
    name = ".".join(filter(None, (argument.intern_prefix, argument.field.intern_name)))
    return next(option for option in options if option.name == name)


def _given(option: Option, argv: Sequence[str]) -> str:
    """Return what was typed after an option."""
    for place in reversed(range(len(argv))):
        name, equals, value = argv[place].partition("=")
        if name.replace("_", "-") == option.flag:
            following = takewhile(lambda token: not token.startswith("--"), argv[place + 1 :])
            return value if equals else " ".join(following)
    return ""


def _as_typed(message: str, options: Sequence[Option]) -> str:
    """Name the field that an error begins with as the user types it: --max-length, not max_length.

    A field of a nested dataclass may be named without the field that it lies in.
    """
    name, colon, rest = message.partition(": ")
    exact = [o for o in options if o.name == name]
    nested = [o for o in options if o.name.endswith(f".{name}")]
    for found in (exact, nested):
        if colon and len(found) == 1:
            return f"{found[0].flag}: {rest}"
    return message


def _message(error: ValueError | OSError) -> str:
    """Say an error in one line, with the file that it is about."""
    if isinstance(error, OSError) and error.strerror:
        files = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return ": ".join([*files, error.strerror])
    return str(error)


def _fail(program: str, message: str) -> int:
    """Print a user's mistake as one line, whatever is in it, and return the exit code for it."""
    print(f"{program}: error: {_printable(message)}", file=sys.stderr)
    return 2


def _let_the_first_tell() -> None:
    """Wait, unless this is the first of several processes: it finds the same mistake.

    When it has told it and ended, torchrun ends the others; one that is still here tells it too.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0":
        time.sleep(FIRST_TELLS_WITHIN)


def _printable(message: str) -> str:
    """Make one line of a message that may quote anything."""
    line = "; ".join(part.strip() for part in message.splitlines() if part.strip())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


@contextmanager
def _warnings_in_one_line(program: str) -> Iterator[None]:
    """Print a warning as a line of the command, not as a place in its source."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(
            f"{program}: warning: {_printable(str(message))}", file=sys.stderr
        )
        yield


def _load(place: str) -> Any:
    """Import what "module:name" names."""
    module, name = place.split(":")
    return getattr(import_module(module), name)


def _overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    commands = "\n".join(f"  {name:{width}}{c.help}" for name, c in COMMANDS.items())
    return (
        "usage: bert COMMAND [arguments]\n\n"
        "BERT from scratch: from a text file to a checked model.\n\n"
        f"commands:\n{commands}\n\n"
        "`bert COMMAND --help` shows a command's arguments; `bert --version` shows the version."
    )


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("plainbert")
    except PackageNotFoundError:
        return "unknown: plainbert is not installed, only lying on the path"


if __name__ == "__main__":
    sys.exit(main())
