"""The files that weights lie in: safetensors, shards with their index, pytorch_model.bin.

Everything about a file is checked before a byte of a weight is read: its kind, the header, that
the tensors fill the file with no gap and no overlap. The bytes are then read, not mapped, since a
mapped file that another process cuts short ends this one with SIGBUS.
"""

import json
import math
import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from bert.config import read_json

# The biggest BERT's header has 50 kB; parsing takes memory of many times this.
MAX_HEADER = 8 * 2**20
_FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
    "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip


@dataclass(frozen=True)
class StoredWeight:
    """A tensor in a file: what the header says of it, and how to read it."""

    file: Path
    name: str
    dtype: str
    """As safetensors calls it: F32, BF16, I64 …"""
    shape: tuple[int, ...]
    fill: Callable[[Tensor], None] = field(repr=False)
    """Read the values into a contiguous tensor of this shape, of any float dtype.

    Raises:
        ValueError: the file ends before the tensor does.
    """

    @property
    def place(self) -> str:
        """How an error names it."""
        return f"{self.file}: {self.name}"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype, if it is one that weights have.

        Raises:
            ValueError: integers or 8-bit floats, which need their scales to mean something.
        """
        if self.dtype not in _FLOATS:
            raise ValueError(
                f"{self.place}: expected dtype {', '.join(_FLOATS)}, got {self.dtype}"
            )
        return _FLOATS[self.dtype]

    def read(self) -> Tensor:
        """Read it as it is stored."""
        values = torch.empty(self.shape, dtype=self.torch_dtype)
        self.fill(values)
        return values


@contextmanager
def open_weights(directory: Path) -> Iterator[dict[str, StoredWeight]]:
    """Open a directory's weights: safetensors before pickles, one file before shards.

    Raises:
        ValueError: none there, or a file that isn't what its name says.
    """
    choices: tuple[tuple[str, Callable[..., dict[str, StoredWeight]]], ...] = (
        ("model.safetensors", _open_safetensors),
        ("model.safetensors.index.json", _open_shards),
        ("pytorch_model.bin", _open_pickle),
        ("pytorch_model.bin.index.json", _open_shards),
    )
    with ExitStack() as files:
        for name, opener in choices:
            if (directory / name).exists():
                yield opener(directory / name, files)
                return
        names = ", ".join(name for name, _ in choices)
        raise ValueError(f"{directory}: expected one of {names}, got none of them")


def _open_regular(path: Path, files: ExitStack) -> tuple[BinaryIO, int]:
    """Open a file that has a size: a pipe would wait for ever."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError(f"{path}: expected a file, got something else")
        file = files.enter_context(path.open("rb", buffering=0))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    return file, path.stat().st_size


def _open_safetensors(path: Path, files: ExitStack) -> dict[str, StoredWeight]:
    file, size = _open_regular(path, files)
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or not 2 <= length <= size - 8:
        raise ValueError(
            f"{path}: expected a safetensors header inside the file's {size} bytes, "
            f"got one of {length} bytes (truncated, or another format)"
        )
    if length > MAX_HEADER:
        raise ValueError(
            f"{path}: expected a safetensors header of at most {MAX_HEADER} bytes, got {length}"
        )
    begin = 8 + length
    stored, spans = {}, []
    for name, entry in _parse_header(path, file.read(length)).items():
        if name == "__metadata__":
            continue
        dtype, shape, start, end = _check_entry(f"{path}: {name}", entry)
        spans.append((start, end, name))
        stored[name] = StoredWeight(
            path, name, dtype, shape, _filler(file, begin + start, dtype, f"{path}: {name}")
        )
    expected = 0
    for start, end, name in sorted(spans):
        if start != expected:
            raise ValueError(f"{path}: {name}: expected to begin at byte {expected}, got {start}")
        expected = end
    if begin + expected != size:
        raise ValueError(
            f"{path}: expected {begin + expected} bytes (its header says), got {size}"
        )
    return stored


def _parse_header(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name is there twice")
        return found

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected a safetensors header, got {error}") from None
    if not isinstance(header, dict):
        raise ValueError(f"{path}: expected a safetensors header, got {type(header).__name__}")
    return header


def _check_entry(place: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Return dtype, shape, first byte and end of a header's entry."""

    def counts(values: Any) -> bool:
        return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**48 for v in values)

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{place}: expected dtype, shape and data_offsets in the header")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise ValueError(f"{place}: expected a dtype of safetensors, got {dtype!r:.40}")
    if not counts(shape) or len(shape) > 8:
        raise ValueError(f"{place}: expected a shape in the header, got {shape!r:.40}")
    if not counts(offsets) or len(offsets) != 2:
        raise ValueError(f"{place}: expected two data_offsets, got {offsets!r:.40}")
    need = math.prod(shape) * _BYTES[dtype]
    if offsets[1] - offsets[0] != need:
        raise ValueError(
            f"{place}: expected {need} bytes for {dtype} {shape}, got {offsets[1] - offsets[0]}"
        )
    return dtype, tuple(shape), offsets[0], offsets[1]


def _filler(file: BinaryIO, offset: int, dtype: str, place: str) -> Callable[[Tensor], None]:
    def fill(out: Tensor) -> None:
        wanted = _FLOATS[dtype]
        values = out if out.dtype == wanted else torch.empty(out.shape, dtype=wanted)
        bytes_of = values.flatten().view(torch.uint8).numpy()
        left = memoryview(bytes_of)  # pyright: ignore[reportArgumentType]
        file.seek(offset)
        while len(left):
            got = file.readinto(left)  # type: ignore[attr-defined]
            if not got:
                raise ValueError(f"{place}: expected {len(left)} bytes more, got the file's end")
            left = left[got:]
        if values is not out:
            out.copy_(values)

    return fill


def _open_shards(index: Path, files: ExitStack) -> dict[str, StoredWeight]:
    """Open every shard that an index names, and hold the two against each other."""
    content = read_json(index)
    shard_of = content.get("weight_map") if isinstance(content, dict) else None
    is_map = isinstance(shard_of, dict) and all(isinstance(v, str) for v in shard_of.values())
    if not is_map or not shard_of:
        raise ValueError(f"{index}: expected weight_map, from tensors to files")
    opener = _open_safetensors if ".safetensors." in index.name else _open_pickle
    stored: dict[str, StoredWeight] = {}
    for shard in sorted(set(shard_of.values())):
        if shard in ("", ".", "..") or "/" in shard or "\\" in shard or "\0" in shard:
            raise ValueError(f"{index}: expected a file beside it, got {shard!r}")
        path = index.parent / shard
        if not path.exists():
            raise ValueError(f"{index}: expected the file {shard} beside it, got none")
        found = opener(path, files)
        listed = {name for name, where in shard_of.items() if where == shard}
        for name in sorted(listed ^ set(found)):
            where = "the index" if name in listed else "the shard"
            raise ValueError(
                f"{path}: {name}: expected in index and shard, got it in {where} only"
            )
        stored |= found
    return stored


def _open_pickle(path: Path, files: ExitStack) -> dict[str, StoredWeight]:
    """Read a pickle of tensors, and nothing that is not a tensor: no code in it is run."""
    _open_regular(path, files)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError(f"{path}: expected torch's uncompressed archive, got another")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle can raise any kind
        raise ValueError(
            f"{path}: expected a pickle of tensors and of nothing else, got one that fails with "
            f"{_reason(error)}"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a dict of tensors, got {type(content).__name__}")
    names = {dtype: name for name, dtype in _FLOATS.items()}
    stored = {}
    for name, tensor in content.items():
        is_plain = (
            isinstance(name, str)
            and isinstance(tensor, Tensor)
            and tensor.layout == torch.strided
            and tensor.device.type == "cpu"
        )
        if not is_plain:
            raise ValueError(
                f"{path}: {name!s:.80}: expected a dense tensor, got {type(tensor).__name__}"
            )
        dtype = names.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
        fill = partial(_copy, tensor.detach())
        stored[name] = StoredWeight(path, name, dtype, tuple(tensor.shape), fill)
    return stored


def _copy(tensor: Tensor, out: Tensor) -> None:
    out.copy_(tensor)


def _reason(error: Exception) -> str:
    """Say what the unpickler stumbled over, without torch's advice to trust the file."""
    for line in str(error).splitlines():
        if "GLOBAL" in line or "Unsupported" in line:
            return line.strip().split(" was not")[0].split(". ")[0][:160]
    return type(error).__name__
