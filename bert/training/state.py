"""The whole state of a run between two steps: into a checkpoint and back, bit by bit.

    checkpoints/step-00000123/
        parameters.safetensors  every parameter and persistent buffer, a tied one once
        optimizer.safetensors   the optimiser's tensors, named parameter/key ("…weight/exp_avg")
        training.json           counters and times, and what the run is (config, data)
        manifest.json           size and SHA-256 of the others

No random state is kept, for there is none: batches and dropout are functions of their index.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from bert.training.checkpoint_files import (
    DamagedCheckpoint,
    read_checkpoint,
    step_of,
    write_checkpoint,
)
from bert.training.hardware import Hardware

PARAMETERS = "parameters.safetensors"
OPTIMIZER = "optimizer.safetensors"
TRAINING = "training.json"


@dataclass
class TrainingState:
    """Counters and times; seconds are of wall clock, the time between stop and resume left out."""

    step: int = 0
    """Finished steps, skipped ones too; the next micro-batch is step × accumulation."""
    tokens: int = 0
    """Real tokens in these steps."""
    elapsed: float = 0.0
    bad_steps: int = 0
    """Skipped steps in a row, up to now."""
    loss: float | None = None
    """Of the last step that was not skipped."""
    evaluated_step: int = 0
    evaluated_tokens: int = 0
    evaluation: dict | None = None
    """What the last evaluation returned."""
    evaluated_at: float = 0.0
    saved_step: int = 0
    saved_tokens: int = 0
    saved_at: float = 0.0
    step_seconds: float = 0.0
    """A cautious guess of the next step's time."""
    evaluation_seconds: float = 0.0
    save_seconds: float = 0.0
    loss_scale: float = 1.0
    loss_scale_age: int = 0
    """See loss_scale.py."""


@dataclass(frozen=True)
class Identity:
    """What a run is."""

    fixed: dict[str, Any]
    """Settings and data that make the numbers; a resumed run has the same."""
    machine: dict[str, Any]
    """What makes the rounding."""

    @staticmethod
    def of(fixed: Mapping[str, Any], hardware: Hardware, processes: int = 1) -> "Identity":
        """Return the identity as JSON would give it back.

        Raises:
            ValueError: something in `fixed` can't be said in JSON.
        """
        try:
            settings = json.loads(json.dumps(dict(fixed), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(f"identity: expected what JSON can say: {error}") from error
        machine = {
            "device": hardware.device.type,
            "processes": processes,
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
        }
        return Identity(settings, machine)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says, all of it in memory and checked against its hashes."""

    path: Path
    state: TrainingState
    identity: Identity
    parameters: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def save_checkpoint(
    parent: Path,
    state: TrainingState,
    identity: Identity,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> Path:
    """Write a checkpoint below `parent` and return its path.

    Raises:
        OSError: it could not be written; nothing of it is left.
    """
    parameters = _host_copies(state_tensors(objective))
    moments = _host_copies(optimizer_tensors(objective, optimizer))
    scalars = json.dumps({"state": asdict(state), "identity": asdict(identity)}, indent=1) + "\n"

    def write_files(directory: Path) -> None:
        for name, tensors in ((PARAMETERS, parameters), (OPTIMIZER, moments)):
            try:
                safetensors.torch.save_file(tensors, directory / name)
            except safetensors.SafetensorError as error:
                raise OSError(str(error)) from error
        (directory / TRAINING).write_text(scalars)

    tensors = [*parameters.values(), *moments.values()]
    size = len(scalars) + sum(tensor.nbytes for tensor in tensors)
    return write_checkpoint(parent, state.step, size, write_files)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and check a checkpoint; changes nothing.

    Raises:
        DamagedCheckpoint: it is not as it was written, or was written by another version.
    """
    contents = read_checkpoint(path)
    if contents.keys() != {PARAMETERS, OPTIMIZER, TRAINING}:
        raise DamagedCheckpoint(f"{path}: expected another set of files, got {sorted(contents)}")
    try:
        parameters = safetensors.torch.load(contents.pop(PARAMETERS))
        optimizer = safetensors.torch.load(contents.pop(OPTIMIZER))
    except safetensors.SafetensorError as error:
        raise DamagedCheckpoint(f"{path}: {error}") from error
    try:
        scalars = json.loads(contents[TRAINING])
        state = _parse_state(scalars["state"])
        identity = Identity(**{key: dict(part) for key, part in scalars["identity"].items()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(f"{path / TRAINING}: {error}") from error
    if state.step != step_of(path):
        raise DamagedCheckpoint(f"{path}: holds step {state.step}, not the one in its name")
    return Checkpoint(path, state, identity, parameters, optimizer)


def restore(
    checkpoint: Checkpoint, objective: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Put a checkpoint's tensors in place, after all have been found to fit.

    Raises:
        ValueError: a tensor is missing, unknown, or of another shape or dtype; none is changed.
    """
    targets = state_tensors(objective)
    _check_fit(checkpoint.path / PARAMETERS, checkpoint.parameters, targets)
    trained = _names_of_trained(objective, optimizer)
    moments: dict[str, dict[str, Tensor]] = {}
    for name, tensor in checkpoint.optimizer.items():
        parameter, _, key = name.rpartition("/")
        moments.setdefault(parameter, {})[key] = tensor.clone()
    shapes = dict(objective.named_parameters())
    group = _groups_of_trained(objective, optimizer)
    keys: dict[int | None, set[str]] = {}
    for name, entry in moments.items():
        keys.setdefault(group.get(name), set()).update(entry)
    for name, entry in moments.items():
        fits = name in group and entry.keys() == keys[group[name]]
        if not fits or any(t.ndim and t.shape != shapes[name].shape for t in entry.values()):
            raise ValueError(f"{checkpoint.path / OPTIMIZER}: {name} doesn't fit this optimiser")

    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(checkpoint.parameters[name])
    optimizer.load_state_dict(
        {
            "state": {i: moments[name] for i, name in enumerate(trained) if name in moments},
            "param_groups": optimizer.state_dict()["param_groups"],
        }
    )


def state_tensors(objective: nn.Module) -> dict[str, Tensor]:
    """Return the parameters, a tied one under its first name, and the persistent buffers."""
    persistent = objective.state_dict().keys()
    buffers = {name: b for name, b in objective.named_buffers() if name in persistent}
    return {**dict(objective.named_parameters()), **buffers}


def optimizer_tensors(objective: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's tensors, named parameter/key."""
    parameters = dict(objective.named_parameters())
    return {
        f"{name}/{key}": value
        for name in _names_of_trained(objective, optimizer)
        for key, value in optimizer.state.get(parameters[name], {}).items()
    }


def _names_of_trained(objective: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Return the names of the optimiser's parameters, in its own order."""
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


def _groups_of_trained(objective: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Return the number of each parameter's group: within one, all keep the same tensors."""
    names = iter(_names_of_trained(objective, optimizer))
    return {
        next(names): number
        for number, group in enumerate(optimizer.param_groups)
        for _ in group["params"]
    }


def _host_copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _check_fit(file: Path, got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name in expected.keys() | got.keys():
        if name not in got or name not in expected:
            where = "is missing" if name not in got else "is not in the model"
            raise ValueError(f"{file}: {name} {where}")
        wanted, found = expected[name], got[name]
        if (wanted.shape, wanted.dtype) != (found.shape, found.dtype):
            raise ValueError(
                f"{file}: {name}: expected {wanted.dtype} {tuple(wanted.shape)}, "
                f"got {found.dtype} {tuple(found.shape)}"
            )


def _parse_state(values: dict[str, Any]) -> TrainingState:
    hints = get_type_hints(TrainingState)
    names = {field.name for field in fields(TrainingState)}
    if values.keys() != names:
        raise ValueError(f"expected the fields {sorted(names)}, got {sorted(values)}")
    for name, value in values.items():
        if not isinstance(value, hints[name]):
            raise ValueError(f"{name}: expected {hints[name]}, got {value!r}")
    return TrainingState(**values)
