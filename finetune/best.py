"""The weights that did best on the validation file, kept in one file through stops and resumes.

The file is written aside and moved by one rename, with its value and a hash of all in it. A
resumed run trains some steps again, and finds the values that it found before; since only a
better value replaces the file, what it holds is always the first of the best.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from bert.training.state import state_tensors


class BestWeights:
    """A model's best weights so far, at `path`.

    Args:
        path: the file; it need not be there.
        run: what identifies the run; a file that another run left is nothing.
        is_fresh: whether even this run's own file is nothing, as after `resume none`.

    Raises:
        ValueError: the file is damaged.
    """

    def __init__(self, path: Path, run: str, is_fresh: bool = False) -> None:
        self.path, self.run = path, run
        self.value: float | None = None
        if path.exists() and not is_fresh:
            found, value, _ = self._read()
            self.value = value if found == run else None

    def offer(self, model: nn.Module, value: float) -> None:
        """Keep the model's weights if no value so far was as good.

        Raises:
            OSError: the file can't be written; the one before is whole.
        """
        if self.value is not None and value <= self.value:
            return
        tensors = {name: t.detach().cpu().contiguous() for name, t in state_tensors(model).items()}
        notes = {"run": self.run, "value": repr(value)}
        notes["sha256"] = _seal(notes, tensors)
        partial = self.path.with_name(f".{self.path.name}.partial")
        try:
            safetensors.torch.save_file(tensors, partial, notes)
            # safetensors writes for the owner alone; the directory's mode shows the umask.
            partial.chmod(self.path.parent.stat().st_mode & 0o666)
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, self.path)
        except (OSError, safetensors.SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise OSError(f"{self.path}: can't be written: {error}") from error
        self.value = value

    def restore(self, model: nn.Module) -> None:
        """Put the best weights into the model, after they were found to be whole.

        Raises:
            ValueError: the file is damaged, or another model's; nothing is changed.
        """
        _, _, tensors = self._read()
        targets = state_tensors(model)
        if tensors.keys() != targets.keys():
            raise ValueError(f"{self.path}: expected this model's weights, got another's")
        with torch.no_grad():
            for name, target in targets.items():
                target.copy_(tensors[name])

    def _read(self) -> tuple[str, float, dict[str, Tensor]]:
        """Return the run, the value and the weights, all held against the hash."""
        try:
            with safetensors.safe_open(self.path, "pt") as file:
                notes = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if notes.pop("sha256") == _seal(notes, tensors):
                return notes["run"], float(notes["value"]), tensors
        except (OSError, KeyError, ValueError, safetensors.SafetensorError):
            pass
        raise ValueError(
            f"{self.path}: expected what this run wrote, got a damaged file; "
            "train anew (--resume none --overwrite)"
        )


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 of tensors on the host: names, shapes, dtypes and every byte."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _seal(notes: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    text = f"{notes['run']} {notes['value']} {hash_tensors(tensors)}"
    return hashlib.sha256(text.encode()).hexdigest()
