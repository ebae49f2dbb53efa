"""`bert pretrain film RUN --text FILE`: what each snapshot of a run knows, and how far it came.

It leaves film.json, with the bands of frequency and a frame for each snapshot, and the same as a
picture, film.png. Of a frame `loss` and `band_losses` are nats a token; `heads` has the scores of
all heads, layer by layer, by type (bert/internals/head_types.py), and `uniform_head` those of a
head that looks at all tokens alike; `drift` is each matrix's way (bert/internals/drift.py) from
the first snapshot, the one before, and the last.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bert.checkpoint import load_pretrained
from bert.config import read_json
from bert.internals.drift import drift, matrices
from bert.pretraining import BertForPreTraining
from bert.tokenization import Tokenizer
from bert.training.checkpoint_files import list_checkpoints, read_checkpoint, step_of
from bert.training.config import TrainingConfig
from bert.training.hardware import choose_hardware
from bert.training.progress import say
from bert.training.run_directory import refuse_file
from pretrain.corpus import Corpus
from pretrain.documents import describe_sources
from pretrain.film.config import FilmConfig
from pretrain.film.heads import described, score_heads, uniform
from pretrain.film.losses import Bands, labels_of, mask_each_once, read_windows, token_losses
from pretrain.film.picture import draw_film


def run(config: FilmConfig) -> int:
    """Run the command; return its exit code."""
    written = config.home / "film.json"
    if written.exists() and not config.overwrite:
        raise ValueError(f"out: expected no film, got {written} (--overwrite replaces it)")
    refuse_file(config.home)
    film = make_film(config)
    config.home.mkdir(parents=True, exist_ok=True)
    partial = written.with_name(".film.json.partial")
    partial.write_text(json.dumps(film, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, written)
    draw_film(film, config.home / "film.png")
    say(f"film: {written}")
    return 0


def make_film(config: FilmConfig) -> dict[str, Any]:
    """Measure each snapshot.

    Returns:
        What film.json holds.

    Raises:
        ValueError: the run has no snapshots or they are damaged, or the text, the run and its data
            don't fit together; the message names the file or the argument.
    """
    snapshots = find_snapshots(config.run)
    tokenizer = Tokenizer.load(snapshots[0])
    counts = _training_corpus(config, tokenizer).token_counts()
    (source,) = describe_sources([config.text])
    last = _load(snapshots[-1], config.device)
    longest = min(config.max_length or _run_length(config.run), _positions(last))
    windows = read_windows(config.text, tokenizer, longest, config.tokens)
    batches = mask_each_once(windows, tokenizer)
    bands = Bands(torch.from_numpy(counts), labels_of(batches))
    say(f"{len(snapshots)} snapshots; {sum(band.tokens for band in bands.bands):,} tokens of text")
    frames = []
    for step, model, moved in _walk(snapshots, matrices(last), config.device):
        losses = token_losses(model, batches)
        loss, heads = float(losses.mean()), score_heads(model, windows, tokenizer)
        say(f"step {step:,}: {loss:.3f} nats; heads of a known type: {len(heads.found())}")
        frames.append(
            {
                "step": step,
                "loss": loss,
                "band_losses": bands.means(losses),
                "heads": described(heads),
                "drift": moved,
            }
        )
    return {
        "run": str(config.run),
        "text": source,
        "max_length": longest,
        "uniform_head": uniform(score_heads(last, windows, tokenizer)),
        "bands": [asdict(band) for band in bands.bands],
        "frames": frames,
    }


def find_snapshots(run: Path) -> list[Path]:
    """List a run's snapshots, the first first, every byte of them checked.

    Raises:
        ValueError: there are none, or one is damaged.
    """
    home = run / "snapshots"
    found = list_checkpoints(home) if home.is_dir() else []
    if not found:
        raise ValueError(
            f"run: expected a run of bert pretrain that kept snapshots, got none in {home}"
        )
    for path in found:
        read_checkpoint(path, is_left=lambda name: True)
    return found


def _training_corpus(config: FilmConfig, tokenizer: Tokenizer) -> Corpus:
    """Open the text that the run was trained on."""
    home = config.data or config.run / "data" / "train"
    if not home.is_dir():
        hint = "" if config.data else " (a run that was given --data has it there)"
        raise ValueError(f"data: expected the prepared text of the run{hint}, got none in {home}")
    corpus = Corpus.open(home)
    corpus.check_tokenizer(tokenizer)
    return corpus


def _run_length(run: Path) -> int:
    """Look up how long the run's pairs may be."""
    length = read_json(run / "run.json").get("identity", {}).get("max_length")
    if not isinstance(length, int):
        raise ValueError(f"{run / 'run.json'}: expected a run of bert pretrain, got another")
    return length


def _positions(model: BertForPreTraining) -> int:
    return model.config.max_position_embeddings


def _load(path: Path, device: str) -> BertForPreTraining:
    chosen = choose_hardware(TrainingConfig(device=device))
    return load_pretrained(path, BertForPreTraining, kernels=chosen.kernels).to(chosen.device)


def _walk(
    snapshots: list[Path], last: dict[str, Tensor], device: str
) -> Iterator[tuple[int, BertForPreTraining, dict[str, dict[str, float | None]]]]:
    """Load the snapshots one by one: yield each step, its model, and how far it has moved."""
    first = previous = None
    for path in snapshots:
        model = _load(path, device)
        now = matrices(model)
        first, previous = first or now, previous or now
        moved = {
            "from_first": drift(now, first),
            "from_previous": drift(now, previous),
            "from_last": drift(now, last),
        }
        yield step_of(path), model, moved
        previous = now
