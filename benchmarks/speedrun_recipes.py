"""What the speedrun compares: each recipe by its name, most of them one change to another.

Imports no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LENGTH = 128
"""Tokens of a pair that is judged, and the most that a recipe may train on."""


@dataclass(frozen=True)
class Recipe:
    """What a run of `bert pretrain` is told."""

    shape: Mapping[str, Any]
    """Fields of BertConfig."""
    pretraining: Mapping[str, Any]
    """Fields of PretrainConfig."""
    training: Mapping[str, Any]
    """Fields of TrainingConfig."""

    def but(
        self,
        shape: Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
        **pretraining: Any,
    ) -> "Recipe":
        """Make another recipe, with some fields changed."""
        return Recipe(
            {**self.shape, **(shape or {})},
            {**self.pretraining, **pretraining},
            {**self.training, **(training or {})},
        )


PLAIN = Recipe(
    {
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 512,
    },
    {"max_length": LENGTH, "tokens_per_batch": 32 * LENGTH},
    {"learning_rate": 1e-3, "warmup": 0.05, "betas": (0.9, 0.98), "eps": 1e-6},
)
COUNTED = PLAIN.but(
    training={"learning_rate": 2e-3, "eps": 1e-4},
    tokens_per_batch=1024,
    mask_rate=0.2,
    dropout=0.0,
    initializer_range=0.05,
    word_vectors=True,
)
MUON = COUNTED.but(
    training={"optimizer": "muon", "learning_rate": 4e-3},
    phases=("64:1024:0.8", "128:1024:0.2"),
)
LOCAL = MUON.but(local_start=True)
FAST = LOCAL.but(vector_window=2)
BEST = FAST.but(training={"learning_rate": 2e-3})
WIDE = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}

RECIPES = {
    "plain": PLAIN,
    "counted": COUNTED,
    "muon": MUON,
    "local": LOCAL,
    "local-adamw": LOCAL.but(training={"optimizer": "adamw", "learning_rate": 2e-3}),
    "local-fast": LOCAL.but(training={"learning_rate": 8e-3}),
    "local-window5": LOCAL.but(vector_window=5),
    "local-window3": LOCAL.but(vector_window=3),
    "fast": FAST,
    "fast-wide": FAST.but(shape=WIDE),
    "fast-deep": FAST.but(shape={"num_hidden_layers": 4}),
    "best": BEST,
}
