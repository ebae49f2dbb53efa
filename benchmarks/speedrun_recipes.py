"""What the speedrun tried: each recipe by its name, most of them one change to another.

What each gave is in results/speedrun.md. Imports no torch.
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
        self, shape: Mapping[str, Any] | None = None, training: Any = None, **pretraining: Any
    ) -> "Recipe":
        """Make another recipe, with some fields changed."""
        return Recipe(
            {**self.shape, **(shape or {})},
            {**self.pretraining, **pretraining},
            {**self.training, **(training or {})},
        )


TINY = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 512,
}
PLAIN = Recipe(
    TINY,
    {"max_length": LENGTH, "tokens_per_batch": 32 * LENGTH},
    {"learning_rate": 1e-3, "warmup": 0.05, "betas": (0.9, 0.98), "eps": 1e-6},
)
RECIPES = {"plain": PLAIN}
