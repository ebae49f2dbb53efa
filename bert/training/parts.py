"""A checkpoint in parts: each process writes what it keeps, and reads what it will keep.

    part-00001-of-00002.safetensors     the first process's rows, and all of what isn't cut

The files have the layout of torch.distributed.checkpoint's HuggingFaceStorageWriter: safetensors
whose metadata tell where in a tensor the rows belong. torch's reader takes from them what any
number of processes needs. Its writer isn't used, since the processes would agree by pickles.
"""

import json
import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from bert.training.distributed import World
from bert.training.sharding import is_part, own_part

_NAME = re.compile(r"part-[0-9]{5}-of-[0-9]{5}\.safetensors")


def is_part_file(name: str) -> bool:
    """Say whether a file has the name of a part."""
    return _NAME.fullmatch(name) is not None


def are_all_parts(names: Collection[str]) -> bool:
    """Say whether files are the parts of a checkpoint, each once, by their names."""
    return bool(names) and set(names) == {_name(rank, len(names)) for rank in range(len(names))}


def write_parts(directory: Path | None, tensors: Mapping[str, Tensor], world: World) -> None:
    """Write this process's part, while the others write theirs.

    Args:
        directory: where the first process wants them; None in the others, which need to see it.
        tensors: all tensors by name; those that aren't cut go into the first part.
        world: the processes, which all call this.

    Raises:
        OSError: one of the processes couldn't write; raised in all of them.
    """
    place = Path(world.from_first(None if directory is None else str(directory)))
    error = None
    try:
        _write(place / _name(world.rank, world.size), tensors, world.is_first)
    except (OSError, safetensors.SafetensorError) as caught:
        error = f"process {world.rank} of {world.size}: {caught}"
    errors = [text for text in world.gather(error) if text is not None]
    if errors:
        raise OSError(errors[0])


def _write(file: Path, tensors: Mapping[str, Tensor], is_first: bool) -> None:
    rows: dict[str, Tensor] = {}
    places: dict[str, dict[str, list[int]]] = {}
    for name, tensor in tensors.items():
        own = own_part(tensor.detach())
        if is_part(tensor):
            (chunk,) = cast(Any, tensor).__create_chunk_list__()
            offsets = list(chunk.offsets)
        elif is_first:
            offsets = [0] * tensor.ndim
        else:
            continue
        if own.numel():
            rows[name], places[name] = own.cpu().contiguous(), {"saved_offsets": offsets}
    # The same bytes for the same state: safetensors writes several notes in an order of chance.
    safetensors.torch.save_file(
        rows, file, {"DCP_SHARDING_INFO": json.dumps(places, sort_keys=True)}
    )


def tensors_in_parts(directory: Path) -> dict[str, Tensor]:
    """Return the tensors that a checkpoint's parts make up, as shapes and dtypes without values.

    Raises:
        OSError, SafetensorError: a file can't be read.
        ValueError, KeyError, TypeError, AttributeError: what it says of itself makes no sense.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    found = HuggingFaceStorageReader(str(directory)).read_metadata().state_dict_metadata
    tensors = {}
    for name, entry in found.items():
        assert isinstance(entry, TensorStorageMetadata)
        if sum(chunk.sizes.numel() for chunk in entry.chunks) != entry.size.numel():
            raise ValueError(f"{name}: expected {tuple(entry.size)}, got other rows")
        tensors[name] = torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
    return tensors


def read_parts(directory: Path, targets: Mapping[str, Tensor]) -> None:
    """Overwrite tensors by those of a checkpoint, each process its part of what is cut.

    Args:
        directory: a checkpoint whose files have been found whole.
        targets: the tensors by name; their shapes are the checkpoint's.

    Raises:
        OSError: a file could not be read; some of the targets are overwritten.
    """
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        # Nothing has to be agreed on, as torch says at length: each process reads for itself.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            dcp.load(
                {name: tensor.detach() for name, tensor in targets.items()},
                storage_reader=dcp.HuggingFaceStorageReader(str(directory)),
                no_dist=True,
            )
        except dcp.api.CheckpointException as error:  # a BaseException
            reasons = [str(reason) for reason, _ in error.failures.values()]
            raise OSError(f"{directory}: can't be read: {reasons[0]}") from error


def _name(rank: int, size: int) -> str:
    return f"part-{rank + 1:05d}-of-{size:05d}.safetensors"
