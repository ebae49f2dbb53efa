"""The whole state of a run between two steps: into a checkpoint and back, bit by bit.

    checkpoints/step-00000123/
        parameters.safetensors  every parameter and persistent buffer, a tied one once
        optimizer.safetensors   the optimiser's tensors, named parameter/key ("…weight/exp_avg")
        training.json           counters and times, and what the run is (config, data)
        manifest.json           size and SHA-256 of the others

Where the parameters are cut among processes, the tensors lie in one file for each process, see
parts.py, instead of the first two. A run goes on from either, whatever is cut in it.

No random state is kept, for there is none: batches and dropout are functions of their index.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
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
from bert.training.distributed import ALONE, World
from bert.training.hardware import Hardware
from bert.training.parts import (
    are_all_parts,
    is_part_file,
    read_parts,
    tensors_in_parts,
    write_parts,
)
from bert.training.sharding import is_sharded

PARAMETERS = "parameters.safetensors"
OPTIMIZER = "optimizer.safetensors"
TRAINING = "training.json"

# Fields of TrainingState that older checkpoints lack.
_LATER = {"best_value", "best_step", "evaluations_since_best"}
# What comes of JSON that says something else than was expected.
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError)


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
    best_value: float | None = None
    best_step: int = 0
    evaluations_since_best: int = 0
    """See early_stopping.py."""
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
    """What a checkpoint says, checked against its hashes."""

    path: Path
    state: TrainingState
    identity: Identity
    parameters: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    is_in_parts: bool
    """Whether the values still lie in parts on the disk; the tensors are shapes and dtypes."""


def save_checkpoint(
    parent: Path,
    state: TrainingState,
    identity: Identity,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    world: World = ALONE,
) -> Path:
    """Write a checkpoint below `parent` and return its path.

    Where the parameters are cut, every other process of `world` calls `save_part` meanwhile.

    Raises:
        OSError: it could not be written; nothing of it is left.
    """
    tensors = {**state_tensors(objective), **optimizer_tensors(objective, optimizer)}
    scalars = json.dumps({"state": asdict(state), "identity": asdict(identity)}, indent=1) + "\n"

    def write_files(directory: Path) -> None:
        if is_sharded(objective):
            write_parts(directory, tensors, world)
        else:
            _write_tensors(directory, objective, optimizer)
        (directory / TRAINING).write_text(scalars)

    size = len(scalars) + sum(tensor.nbytes for tensor in tensors.values())
    return write_checkpoint(parent, state.step, size, write_files)


def save_part(objective: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> None:
    """Write this process's part of the checkpoint that the first one saves, if there are parts.

    Raises:
        OSError: one of the processes couldn't write.
    """
    if is_sharded(objective):
        tensors = {**state_tensors(objective), **optimizer_tensors(objective, optimizer)}
        write_parts(None, tensors, world)


def _write_tensors(
    directory: Path, objective: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    for name, tensors in (
        (PARAMETERS, state_tensors(objective)),
        (OPTIMIZER, optimizer_tensors(objective, optimizer)),
    ):
        try:
            safetensors.torch.save_file(_host_copies(tensors), directory / name)
        except safetensors.SafetensorError as error:
            raise OSError(str(error)) from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and check a checkpoint, all of it; changes nothing.

    Raises:
        DamagedCheckpoint: it is not as it was written, or was written by another version.
        OSError: a file that was found whole could not be read a second time.
    """
    checkpoint = open_checkpoint(path)
    if not checkpoint.is_in_parts:
        return checkpoint
    parameters, optimizer = (
        {name: torch.empty_like(tensor, device="cpu") for name, tensor in tensors.items()}
        for tensors in (checkpoint.parameters, checkpoint.optimizer)
    )
    read_parts(path, {**parameters, **optimizer})
    return replace(checkpoint, parameters=parameters, optimizer=optimizer, is_in_parts=False)


def open_checkpoint(path: Path) -> Checkpoint:
    """Check a checkpoint, and read it; of one in parts all but the values of its tensors.

    Raises:
        DamagedCheckpoint: it is not as it was written, or was written by another version.
    """
    contents = read_checkpoint(path, is_part_file)
    others = contents.keys() - {TRAINING}
    is_in_parts = are_all_parts(others)
    if TRAINING not in contents or not (is_in_parts or others == {PARAMETERS, OPTIMIZER}):
        raise DamagedCheckpoint(f"{path}: expected another set of files, got {sorted(contents)}")
    try:
        if is_in_parts:
            tensors = tensors_in_parts(path)
            optimizer = {name: t for name, t in tensors.items() if "/" in name}
            parameters = {name: t for name, t in tensors.items() if "/" not in name}
        else:
            parameters = safetensors.torch.load(contents.pop(PARAMETERS))
            optimizer = safetensors.torch.load(contents.pop(OPTIMIZER))
    except (safetensors.SafetensorError, OSError, *_MALFORMED) as error:
        raise DamagedCheckpoint(f"{path}: {error}") from error
    try:
        scalars = json.loads(contents[TRAINING])
        state = _parse_state(scalars["state"])
        identity = Identity(**{key: dict(part) for key, part in scalars["identity"].items()})
    except _MALFORMED as error:
        raise DamagedCheckpoint(f"{path / TRAINING}: {error}") from error
    if state.step != step_of(path):
        raise DamagedCheckpoint(f"{path}: holds step {state.step}, not the one in its name")
    return Checkpoint(path, state, identity, parameters, optimizer, is_in_parts)


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
        for name in names_of_trained(objective, optimizer)
        for key, value in optimizer.state.get(parameters[name], {}).items()
    }


def names_of_trained(objective: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Return the names of the optimiser's parameters, in its own order."""
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


def _host_copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _parse_state(values: dict[str, Any]) -> TrainingState:
    hints = get_type_hints(TrainingState)
    names = {field.name for field in fields(TrainingState)}
    if not names - _LATER <= values.keys() <= names:
        raise ValueError(f"expected the fields {sorted(names)}, got {sorted(values)}")
    for name, value in values.items():
        if not isinstance(value, hints[name]):
            raise ValueError(f"{name}: expected {hints[name]}, got {value!r}")
    return TrainingState(**values)
