"""Write a model as a directory that Hugging Face's class of the same name loads."""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from bert.architectures import ARCHITECTURES, Model
from bert.weight_names import to_theirs


@runtime_checkable
class SavesItself(Protocol):
    """A tokenizer, as far as saving a model needs one."""

    @property
    def vocab_size(self) -> int:
        """How many ids it gives."""
        ...

    def save(self, directory: Path, *, model_max_length: int) -> object:
        """Write the tokenizer's files, with the tokens that the model takes at most."""
        ...


def save_pretrained(
    model: Model,
    directory: Path | str,
    tokenizer: SavesItself | None = None,
    model_card: str | None = None,
) -> None:
    """Write a directory that Hugging Face's class of the same name loads.

    Each file is written aside, brought to the disk and moved into place by one rename. A symbolic
    link of a file's name is replaced by the file; what it pointed to stays as it was.

    Args:
        model: one of bert's models.
        directory: made if it isn't there; files of other names in it stay.
        tokenizer: its files are written too.
        model_card: the text of README.md.

    Raises:
        ValueError: a model that isn't one of bert's, a tokenizer with more tokens than it has, or
            another process is saving there.
        OSError: the files can't be written; it names the path, and what was there is whole.
    """
    directory = Path(directory)
    if type(model) not in ARCHITECTURES:
        raise ValueError(f"model: expected one of bert's models, got {type(model).__name__}")
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory}: expected a directory, got a file")
    if tokenizer is not None and tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"tokenizer: expected at most the model's {model.config.vocab_size} tokens "
            f"(vocab_size), got {tokenizer.vocab_size}"
        )
    weights = _their_state(model)
    values = model.config.to_dict(ARCHITECTURES[type(model)])
    values["dtype"] = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    with _staging(directory) as aside:
        (aside / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        if model_card is not None:
            (aside / "README.md").write_text(model_card, encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save(aside, model_max_length=model.config.max_position_embeddings)
        size = sum(weight.nbytes for weight in weights.values())
        try:
            save_file(weights, aside / "model.safetensors", metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(
                f"{directory / 'model.safetensors'}: could not write {size} bytes: {error}"
            ) from None


def _their_state(model: Model) -> dict[str, Tensor]:
    """Cut and name the weights as Hugging Face does; a tied matrix is left out."""
    state: dict[str, Tensor] = {}
    for name, weight in model.state_dict().items():
        theirs = to_theirs(name)
        parts = weight.detach().cpu().contiguous().chunk(len(theirs))
        state |= dict(zip(theirs, parts, strict=True))
    if "cls.predictions.decoder.weight" in state:
        # Hugging Face adds this one, and ties the two biases only where the matrices are tied.
        state["cls.predictions.decoder.bias"] = state["cls.predictions.bias"].clone()
    return state


@contextmanager
def _staging(directory: Path) -> Iterator[Path]:
    """Give a place to write files, and move them into the directory when all are written."""
    directory.mkdir(parents=True, exist_ok=True)
    lock = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{directory}: another process is saving here") from None
        for left in directory.glob(".saving-*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        aside = Path(tempfile.mkdtemp(prefix=".saving-", dir=directory))
        try:
            yield aside
            # safetensors writes its files for the owner alone; this one went by the umask.
            mode = (aside / "config.json").stat().st_mode & 0o777
            written = sorted(aside.iterdir(), key=lambda file: file.name == "config.json")
            for file in written:
                file.chmod(mode)
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
            for file in written:
                file.replace(directory / file.name)
            os.fsync(lock)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    finally:
        os.close(lock)
