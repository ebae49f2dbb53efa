"""The tasks: one file each, found by its name, with one subclass of `finetune.task.Task` in it.

    multi_label.py  <->  --task multi-label

Imports no torch until a task is loaded, so that `--help` answers at once.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from bert.config import BertConfig, read_json
from bert.options import Option, options_of

if TYPE_CHECKING:
    from finetune.task import Task

_BY_HEAD = {
    ("BertForSequenceClassification", "single_label_classification"): "classification",
    ("BertForSequenceClassification", "multi_label_classification"): "multi-label",
    ("BertForSequenceClassification", "regression"): "regression",
    ("BertForTokenClassification", None): "token-classification",
    ("BertForQuestionAnswering", None): "question-answering",
    ("BertForMultipleChoice", None): "multiple-choice",
}
"""The task of a model that names none: by Hugging Face's class, and problem_type if it has one.

None: whatever problem_type is.
"""


def names() -> list[str]:
    """List what `--task` may be."""
    return sorted(module.name.replace("_", "-") for module in iter_modules(__path__))


def task_class(name: str) -> "type[Task[Any, Any]]":
    """Import a task.

    Raises:
        ValueError: there is none of this name.
    """
    from finetune.task import Task

    if name not in names():
        raise ValueError(f"task: expected one of {', '.join(names())}, got {name!r}")
    module = import_module(f"{__name__}.{name.replace('-', '_')}")
    found = [
        part
        for part in vars(module).values()
        if inspect.isclass(part) and issubclass(part, Task) and part.__module__ == module.__name__
    ]
    assert len(found) == 1, f"{module.__name__}: expected one subclass of Task, got {found}"
    return found[0]


def name_of(task: "Task[Any, Any]") -> str:
    """Return what `--task` calls a task."""
    return type(task).__module__.rpartition(".")[2].replace("_", "-")


def configured(name: str, given: Sequence[str]) -> "Task[Any, Any]":
    """Return a task with its options as the command line gives them, NAME=VALUE.

    Raises:
        ValueError: no such option, or a value that it can't have.
    """
    from bert.cli import UsageError, parse

    kind = task_class(name)
    known = {option.name: option for option in options_of(kind)}
    arguments = []
    for text in given:
        option, equals, value = text.partition("=")
        option = option.replace("-", "_")
        if not equals or option not in known:
            raise ValueError(f"options: expected {_listed(name, known)}, got {text!r}")
        if not known[option].is_switch:
            arguments.append(f"--{option}={value}")
        elif value in ("true", "false"):
            arguments.append(f"--{option}" if value == "true" else f"--no-{option}")
        else:
            raise ValueError(f"options: {option}: expected true or false, got {value!r}")
    try:
        return parse(kind, list(known.values()), arguments)
    except (UsageError, ValueError) as error:
        raise ValueError(f"options: {str(error).removeprefix('--')}") from None


def of_model(directory: Path) -> "Task[Any, Any]":
    """Return the task that a saved model was trained for, with the options that it had.

    Where its config.json names none of ours (`finetuning_task`), its head tells.

    Raises:
        ValueError: config.json can't be read, or has options that the task can't have.
    """
    path = directory / "config.json"
    values = read_json(path)
    config = BertConfig.from_dict(values, str(path))
    if config.finetuning_task not in names():
        return task_class(_by_head(values.get("architectures"), config))()
    kind = task_class(config.finetuning_task)
    stored: Any = (config.task_specific_params or {}).get(config.finetuning_task, {})
    try:
        if not isinstance(stored, dict):
            raise TypeError("not an object")
        return kind(**{f.name: stored[f.name] for f in fields(kind) if f.name in stored})
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: task_specific_params: expected the options of {config.finetuning_task}, "
            f"got {stored!r:.80} ({error})"
        ) from None


def state(
    name: str, task: "Task[Any, Any]", facts: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the fields of BertConfig that keep the task with the model; see `of_model`.

    `facts` are what is kept besides the options (`Task.facts`).
    """
    options = {**asdict(task), **(facts or {})}
    kept = {name: options} if options else None
    return {"finetuning_task": name, "task_specific_params": kept}


def _by_head(architectures: Any, config: BertConfig) -> str:
    """Choose a task by what Hugging Face calls the model; classification if that says little."""
    # As transformers does where problem_type is not said.
    problem = config.problem_type or ("regression" if config.num_labels == 1 else None)
    for (architecture, wanted), name in _BY_HEAD.items():
        if architectures == [architecture] and (problem is None or wanted in (None, problem)):
            return name
    return "classification"


def _listed(name: str, known: Mapping[str, Option]) -> str:
    """Say what the options of a task are, each with its default."""
    if not known:
        return f"none, since {name} has no options"
    listed = "; ".join(
        f"{o.name}={str(o.default).lower() if o.is_switch else o.default_text}: {o.help}"
        for o in known.values()
    )
    return f"NAME=VALUE, where {name} has {listed}"
