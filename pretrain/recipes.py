"""Named settings of `bert pretrain --recipe`, on the books that come with the repository.

What a run of each should look like, seed by seed, is in benchmarks/results/known_curves.md; how
speedrun-books was found, and what it reaches, in benchmarks/results/speedrun.md.
Imports no torch, so that `--help` answers at once.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pretrain.config import CONFIG_DEFAULTS

BOOKS = Path(__file__).parents[1] / "demo" / "data" / "books"


def _books(
    model: str, initializer_range: float, learning_rate: float, budget: str, **training: Any
) -> dict[str, Any]:
    """Set up a small BERT from random weights: short pairs, small batches, many steps."""
    return {
        "files": tuple(BOOKS / f"train-{part:02d}.txt.xz" for part in range(3)),
        "validation_files": (BOOKS / "validation.txt.xz",),
        "model": model,
        "max_length": 64,
        "tokens_per_batch": 1024,
        "mask_rate": 0.2,
        "dropout": 0.0,
        "initializer_range": initializer_range,
        "evaluation_tokens": 20_000,
        "training": replace(
            CONFIG_DEFAULTS,
            budget=budget,
            learning_rate=learning_rate,
            evaluate_every="30s",
            checkpoint_every="1min",
            **training,
        ),
    }


_SPEEDRUN = _books("tiny", 0.05, 2e-3, "30min", optimizer="muon", eps=1e-4) | {
    "max_length": 128,
    "phases": ("64:1024:0.8", "128:1024:0.2"),
    "word_vectors": True,
    "vector_window": 2,
    "local_start": True,
}

RECIPES: dict[str, dict[str, Any]] = {
    "tiny-books": _books("tiny", 0.05, 2e-3, "5min"),
    "mini-books": _books("mini", 0.035, 1e-3, "8min"),
    "speedrun-books": _SPEEDRUN,
}
"""The fields of PretrainConfig that each recipe sets."""
