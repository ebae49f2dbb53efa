"""`bert inspect`: load a model, look at it, write the page."""

import os
import sys
from pathlib import Path

from bert.checkpoint import model_directory
from bert.internals.page.collect import Reading, collect
from bert.internals.page.config import Inspect
from bert.internals.page.render import render
from bert.training.config import TrainingConfig
from bert.with_tokenizer import load_with_tokenizer

CARD = 20_000
"""Characters of a model's card that the page takes."""


def run(command: Inspect) -> int:
    """Write the page, say where it is, and return the exit code."""
    if command.out.exists() and not command.overwrite:
        raise ValueError(f"out: expected a new file, or --overwrite, got {command.out}")
    model, tokenizer = load_with_tokenizer(
        command.model, None, TrainingConfig(device=command.device, kernels=command.kernels)
    )
    if command.other is not None:
        print("patching from the other text takes a while: many runs", file=sys.stderr)
    payload = collect(
        model,
        tokenizer,
        Reading(command.text, command.pair, command.answer, command.other, command.other_answer),
        name=_name(command.model.resolve()),
        card=_card(model_directory(command.model)),
        max_length=command.max_length,
        top_k=command.top_k,
    )
    page = render(payload).encode("utf-8")
    _write(command.out, page)
    print(
        f"{command.out}: {len(payload.tokens)} tokens, {len(page) / 1e6:.1f} MB, computed by "
        f"{payload.backend}; open it in a browser"
    )
    return 0


def _name(directory: Path) -> str:
    """Call a model what its directory is called; a run's model, what the run is."""
    return directory.parent.name if directory.name == "model" else directory.name


def _card(directory: Path) -> str:
    path = directory / "README.md"
    if not path.is_file():
        return ""
    text = path.read_text(encoding="utf-8", errors="replace")
    return text if len(text) <= CARD else f"{text[:CARD]}…"


def _write(path: Path, content: bytes) -> None:
    """Write the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
