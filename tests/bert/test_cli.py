"""The `bert` command as a user meets it: help, mistakes in one line, exit codes."""

import os
import re
import resource
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import hypothesis
import pytest
import tyro
from hypothesis import given
from hypothesis import strategies as st

from bert import cli, options
from bert.cli import COMMANDS, Command, main, parse, run_command
from bert.training.distributed import WrongForAll

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Inner:
    """How to bake."""

    heat: float = 180.0
    """Degrees; None of them is too many."""
    shelf: int | None = None
    """Which one; None: the middle."""

    def __post_init__(self):
        if self.heat <= 0:
            raise ValueError(f"heat: expected a positive number, got {self.heat}")


@dataclass(frozen=True)
class Bake:
    """Bake a cake.

    Of what there is.

    Raises:
        ValueError: there is nothing.
    """

    cake: Path
    """What to bake."""
    eggs: int
    """How many."""
    layers: tuple[float, float] = (1.0, 2.5)
    """Two heights."""
    names: tuple[str, ...] = ()
    """For whom."""
    glaze: Literal["sugar", "chocolate"] = "sugar"
    """What goes on top."""
    iced: bool = True
    """Whether it is cooled."""
    dry_run: bool = False
    """Only look at it."""
    oven: Inner = Inner(heat=200.0)
    """How."""


# What the fake command does in a test; it gets the Bake and returns an exit code.
work = None


def bake(settings):
    assert work is not None
    return work(settings)


@pytest.fixture
def command(monkeypatch):
    """Install `bert bake`, and set what it does."""
    here = Command(f"{__name__}:Bake", f"{__name__}:bake", "bake a cake", ("cake",))
    monkeypatch.setitem(COMMANDS, "bake", here)

    def does(function):
        monkeypatch.setattr(sys.modules[__name__], "work", function)

    return does


@pytest.fixture
def refused(capsys):
    """Run a command line that can't be run; return the one line that it prints."""

    def run(*argv):
        assert main(argv) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.endswith("\n") and err.count("\n") == 1, err
        assert "Traceback" not in err
        return err[:-1]

    return run


def bert(*argv, **kwargs):
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, *argv], cwd=ROOT, capture_output=True, text=True, timeout=120, **kwargs
    )


# --- help ------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_without_a_command_it_lists_them(argv, capsys):
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: bert COMMAND") and err == ""
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.help)}$", out, re.MULTILINE)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert re.fullmatch(r"bert \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_help_in_full(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    assert main(["bake", "--help"]) == 0
    assert capsys.readouterr().out == (
        "usage: bert bake CAKE --eggs N [options]\n"
        "\n"
        "Bake a cake.\n"
        "\n"
        "Of what there is.\n"
        "\n"
        "arguments:\n"
        "  CAKE                        What to bake.\n"
        "\n"
        "required:\n"
        "  --eggs N                    How many.\n"
        "\n"
        "options:\n"
        "  --layers NUMBER NUMBER      Two heights. (default: 1.0 2.5)\n"
        "  --names TEXT ...            For whom.\n"
        "  --glaze sugar|chocolate     What goes on top. (default: sugar)\n"
        "  --[no-]iced                 Whether it is cooled.\n"
        "  --dry-run                   Only look at it.\n"
        "\n"
        "oven:\n"
        "  --oven.heat NUMBER          Degrees; None of them is too many.\n"
        "                              (default: 200.0)\n"
        "  --oven.shelf N              Which one; None: the middle.\n"
        "                              (default: None)\n"
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_a_help_that_fits_the_screen(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([name, "--help"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"usage: bert {name}") and err == ""
    assert max(map(len, out.splitlines())) <= 80
    settings = cli._load(COMMANDS[name].options)
    for option in options.options_of(settings, COMMANDS[name].positional):
        assert option.help, f"{option.name} has no text below its field"
        assert option.flag.lstrip("-") in out


@pytest.mark.parametrize("name", [*COMMANDS, "bake"])
def test_the_help_lists_what_tyro_parses(name, command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    settings = cli._load(COMMANDS[name].options)
    ours = options.options_of(settings, COMMANDS[name].positional)
    with pytest.raises(SystemExit):
        tyro.cli(cli._as_asked(settings, ours, {}), args=["--help"], prog=name)
    out = capsys.readouterr().out
    flags = {flag for flag in re.findall(r"--[a-z][a-z.-]*", out) if not flag.startswith("--no-")}
    assert {o.flag for o in ours if not o.positional} | {"--help"} == flags


def test_help_is_fast():
    """Under 0.3 s; processor time, since a machine may have other things to do."""
    for name in (None, *COMMANDS):
        argv = [sys.executable, "-m", "bert", *([name] if name else []), "--help"]
        times = []
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(argv, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            times.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
            if times[-1] < 0.3:
                break
        assert min(times) < 0.3, f"bert {name} --help: {times}"


def test_help_imports_only_the_command_in_use():
    for name in (None, *COMMANDS):
        argv = [name, "--help"] if name else []
        code = (
            "import sys; from bert.cli import main;"
            f"main({argv!r}); print(*sorted(sys.modules), file=sys.stderr)"
        )
        loaded = set(bert("-c", code).stderr.split())
        assert not loaded & {"torch", "tyro", "transformers", "tokenizers"}, name
        packages = {module.partition(".")[0] for module in loaded} & {"pretrain", "finetune"}
        home = COMMANDS[name].options.partition(".")[0] if name else ""
        assert packages <= {home}, name


# --- the same program by other names ---------------------------------------------------------


@pytest.mark.parametrize("package", ["pretrain", "finetune"])
def test_a_package_is_its_command(package, capsys):
    result = bert("-m", package, "--help")
    assert run_command(package, ["--help"]) == result.returncode == 0
    assert result.stdout.split() == capsys.readouterr().out.split()
    wrong = bert("-m", package, "--seeed", "3")
    assert wrong.returncode == 2
    assert wrong.stderr == f"bert {package}: error: no option --seeed; did you mean --seed?\n"


def test_the_installed_script():
    script = Path(sys.executable).with_name("bert")
    if not script.exists():
        pytest.skip("no bert script: plainbert is not installed here")
    result = subprocess.run([script, "fil-mask"], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "bert: error: no command fil-mask; did you mean fill-mask?\n"


# --- mistakes --------------------------------------------------------------------------------

BAKE = ["bake", "cheese", "--eggs", "3"]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["pretran"], "bert: error: no command pretran; did you mean pretrain?"),
        (["xyzzy"], "bert: error: no command xyzzy"),
        (["--versoin"], "bert: error: no option --versoin; did you mean --version?"),
        (
            ["bake"],
            "bert bake: error: CAKE: expected a path, got nothing; missing too: --eggs N",
        ),
        (["bake", "x"], "bert bake: error: --eggs: expected --eggs N, got nothing"),
        (["bake", "x", "--eggs"], "bert bake: error: --eggs: expected --eggs N, got nothing"),
        (
            ["bake", "x", "--eggs", "--dry-run"],
            "bert bake: error: --eggs: expected --eggs N, got nothing",
        ),
        (
            ["bake", "x", "--eggs", "3.5"],
            "bert bake: error: --eggs: expected an integer, got '3.5'",
        ),
        (["bake", "x", "--eggs=x"], "bert bake: error: --eggs: expected an integer, got 'x'"),
        (["bake", "x", "--egs", "3"], "bert bake: error: no option --egs; did you mean --eggs?"),
        ([*BAKE, "--glaez=1"], "bert bake: error: no option --glaez; did you mean --glaze?"),
        ([*BAKE, "--heat", "9"], "bert bake: error: no option --heat; did you mean --oven.heat?"),
        ([*BAKE, "--zzz"], "bert bake: error: no option --zzz"),
        ([*BAKE, "-v"], "bert bake: error: no option -v"),
        (
            [*BAKE, "--glaze", "chocolat"],
            "bert bake: error: --glaze: expected one of sugar, chocolate, got 'chocolat'; "
            "did you mean chocolate?",
        ),
        (
            [*BAKE, "--layers", "1"],
            "bert bake: error: --layers: expected 2 numbers, got '1'",
        ),
        (
            [*BAKE, "--layers", "1", "two"],
            "bert bake: error: --layers: expected 2 numbers, got '1 two'",
        ),
        (
            [*BAKE, "--oven.shelf", "top"],
            "bert bake: error: --oven.shelf: expected an integer or None, got 'top'",
        ),
        (
            [*BAKE, "--oven.heat", "hot"],
            "bert bake: error: --oven.heat: expected a number, got 'hot'",
        ),
        (
            [*BAKE, "--oven.heat=-3"],
            "bert bake: error: --oven.heat: expected a positive number, got -3.0",
        ),
        (
            [*BAKE, "--dry-run", "yes"],
            "bert bake: error: expected no further argument, got 'yes'; "
            "quote a text that has spaces",
        ),
        (
            ["fill-mask", "The", "[MASK]"],
            "bert fill-mask: error: expected no further argument, got '[MASK]'; "
            "quote a text that has spaces",
        ),
        (
            ["fill-mask", "The [MASK]", "--top-k", "0"],
            "bert fill-mask: error: --top-k: expected 1 or more, got 0",
        ),
        (
            ["finetune", "--model", "m", "--train-file", "f", "--out", "o",
             "--training.learning_rate", "-1"],
            "bert finetune: error: --training.learning-rate: expected a positive number, got -1.0",
        ),
        (
            ["finetune", "--eps", "1"],  # and not --epochs
            "bert finetune: error: no option --eps; did you mean --training.eps?",
        ),
        (
            ["pretrain", "a.txt", "--out", "o", "--max_length", "long"],
            "bert pretrain: error: --max-length: expected an integer, got 'long'",
        ),
        (
            ["pretrain", "--out", "o"],
            "bert pretrain: error: FILES: expected at least one text file, or data, got ()",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_names_the_argument(argv, line, command, refused):
    assert refused(*argv) == line


@pytest.mark.parametrize("is_usage", [True, False])
@pytest.mark.parametrize(("rank", "size", "waits"), [("0", "2", 0), ("1", "2", 1), ("0", "1", 0)])
def test_of_several_processes_the_first_tells_what_is_wrong_for_all(
    rank, size, waits, is_usage, command, refused, monkeypatch
):
    slept = []
    monkeypatch.setattr(cli.time, "sleep", slept.append)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    command(raising(WrongForAll("eggs: expected more")))
    line = refused("bake") if is_usage else refused(*BAKE)
    assert line.startswith("bert bake: error: ") and len(slept) == waits
    command(raising(ValueError("eggs: expected more here")))
    assert refused(*BAKE) and len(slept) == waits


def test_a_good_command_line_reaches_the_command(command, capsys):
    seen = []
    command(seen.append)
    argv = ["bake", "--eggs", "2", "cheese", "--oven.heat", "90", "--no-iced", "--names", "a", "b"]
    assert main(argv) == 0
    assert seen == [Bake(Path("cheese"), 2, names=("a", "b"), iced=False, oven=Inner(heat=90.0))]
    assert type(seen[0]) is Bake
    assert main(["bake", "x", "--eggs", "1", "--eggs", "4"]) == 0  # the last one counts
    assert seen[1].eggs == 4
    assert capsys.readouterr() == ("", "")


# What `bert bake --recipe` knows in a test.
RECIPES = {"bread": {"cake": Path("loaf"), "oven": Inner(heat=250.0)}}


@pytest.fixture
def with_recipes(monkeypatch, command):
    known = COMMANDS["bake"]._replace(recipes=f"{__name__}:RECIPES")
    monkeypatch.setitem(COMMANDS, "bake", known)
    return command


@pytest.mark.parametrize("recipe", [["--recipe", "bread"], ["--recipe=bread"]])
def test_a_recipe_sets_what_is_not_given(recipe, with_recipes):
    baked = []
    with_recipes(baked.append)
    assert main(["bake", *recipe, "--eggs", "2"]) == 0
    assert main(["bake", "--eggs", "2", *recipe, "--oven.heat", "90"]) == 0
    assert main(["bake", "roll", *recipe, "--eggs", "2"]) == 0
    assert [(str(b.cake), b.oven.heat) for b in baked] == [
        ("loaf", 250.0), ("loaf", 90.0), ("roll", 250.0),
    ]  # fmt: skip
    assert all(type(b) is Bake for b in baked)


@pytest.mark.parametrize(
    "given, got",
    [
        (["--recipe", "braed"], "got 'braed'; did you mean bread?"),
        (["--recipe"], "got nothing"),
        (["--recipe="], "got nothing"),
    ],
)
def test_another_recipe_is_refused(given, got, with_recipes, refused):
    line = refused("bake", "cake", "--eggs", "2", *given)
    assert line == f"bert bake: error: --recipe: expected one of bread, {got}"


def test_the_help_shows_a_recipes_defaults(with_recipes, capsys):
    assert main(["bake", "--recipe", "bread", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--recipe bread" in out and "250" in out


def test_a_command_without_recipes_has_no_such_option(command, refused):
    assert "no option --recipe" in refused("bake", "cake", "--eggs", "2", "--recipe", "bread")


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1), (143, 143)])
def test_the_exit_code_is_the_commands(returned, code, command):
    command(lambda settings: returned)
    assert main(BAKE) == code


def raising(error):
    def function(settings):
        raise error

    return function


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("eggs: expected fresh ones, got 3"), "--eggs: expected fresh ones, got 3"),
        (ValueError("oven.heat: expected less"), "--oven.heat: expected less"),
        (ValueError("shelf: expected another"), "--oven.shelf: expected another"),
        (ValueError("cake: expected flour"), "CAKE: expected flour"),
        (ValueError("a/b.txt: line 3: no"), "a/b.txt: line 3: no"),
        (ValueError("two\n  lines\n\nof it"), "two; lines; of it"),
        (ValueError("bell \a, esc \x1b[31m"), "bell \\x07, esc \\x1b[31m"),
        (ValueError("lone \udc80"), "lone \\udc80"),
        (
            FileNotFoundError(2, "No such file or directory", "x/y"),
            "x/y: No such file or directory",
        ),
        (PermissionError(13, "Permission denied", Path("z")), "z: Permission denied"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("disk is sad"), "disk is sad"),
        (
            ModuleNotFoundError("x is missing; install the extra parity: pip …", name="x"),
            "x is missing; install the extra parity: pip …",
        ),
    ],
)
def test_what_a_user_did_wrong_is_one_line(error, line, command, refused):
    command(raising(error))
    assert refused(*BAKE) == f"bert bake: error: {line}"


@pytest.mark.parametrize(
    "error", [RuntimeError("ours"), KeyError("ours"), ModuleNotFoundError("no x", name="x")]
)
def test_what_is_our_mistake_keeps_its_traceback(error, command):
    command(raising(error))
    with pytest.raises(type(error)):
        main(BAKE)


def test_under_dev_mode_every_error_keeps_its_traceback():
    argv = ["-m", "bert", "fill-mask", "x"]
    assert bert(*argv).stderr.startswith("bert fill-mask: error: --model: expected a directory")
    result = bert("-X", "dev", *argv)
    assert result.returncode == 1
    assert "Traceback" in result.stderr and "ValueError: model: expected" in result.stderr


def test_control_c(command, capsys):
    command(raising(KeyboardInterrupt()))
    assert main(BAKE) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["doctor", "pretrain"])  # a help shorter than a buffer, a longer
def test_nobody_listens(name):
    read, write = os.pipe()
    os.close(read)
    argv = [sys.executable, "-m", "bert", name, "--help"]
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    result = subprocess.run(
        argv, cwd=ROOT, env=buffered, stdout=write, stderr=subprocess.PIPE, timeout=60
    )
    os.close(write)
    assert (result.returncode, result.stderr) == (141, b"")


def test_a_warning_is_one_line(command, capsys):
    command(lambda settings: warnings.warn("thin\nice", stacklevel=1))
    assert main(BAKE) == 0
    assert capsys.readouterr().err == "bert bake: warning: thin; ice\n"


def test_a_tyro_without_the_hook_still_refuses(command, monkeypatch, capsys):
    monkeypatch.delattr(tyro, "_errors")
    with pytest.raises(SystemExit) as caught:
        main(["bake", "x"])
    assert caught.value.code == 2
    assert "--eggs" in capsys.readouterr().err


@hypothesis.settings(max_examples=40)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(
                ["--eggs", "--eggs=1", "3", "--layers", "1e3", "--glaze", "sugar", "--oven.heat",
                 "--oven.shelf", "None", "--names", "--", "-", "-x", "--iced", "--no-iced", "="]
            ),
            st.text(max_size=6),
        ),
        max_size=8,
    )
)  # fmt: skip
def test_no_argument_makes_a_traceback(argv):
    try:
        parsed = parse(Bake, options.options_of(Bake, ("cake",)), argv)
    except cli.UsageError as error:
        assert str(error)
    else:
        assert type(parsed) is Bake
