"""What a training run will take, guessed from the model's shape: memory, and time."""

import math
from dataclasses import dataclass

from bert.config import BertConfig
from bert.training.config import TrainingConfig
from bert.training.hardware import Hardware
from bert.training.throughput import matmul_speed, training_operations

MATMUL_SHARE = 0.7
"""What a step reaches of the speed of its largest matrix products, as measured on a CPU."""


@dataclass(frozen=True)
class Estimate:
    """Memory in bytes, without Python's and torch's own 0.3 GB; time without evaluations."""

    parameters: int
    state_bytes: int
    """Weights, and of those that are trained the gradients and the optimiser's two means."""
    activation_bytes: int
    """What a micro-batch's forward pass keeps for the backward pass."""
    step_tokens: float
    step_seconds: float

    def describe(self, config: TrainingConfig, hardware: Hardware) -> list[str]:
        """Say it in lines for a user."""
        total = config.total()
        if total.seconds is not None:
            steps = max(1, round(total.seconds / self.step_seconds))
            length = f"{_duration(total.seconds)}, about {steps} steps"
        elif total.tokens is not None:
            steps = math.ceil(total.tokens / self.step_tokens)
            seconds = steps * self.step_seconds
            length = f"{total.tokens:,} tokens, about {steps} steps and {_duration(seconds)}"
        else:
            assert total.steps is not None
            seconds = total.steps * self.step_seconds
            length = f"{total.steps} steps, about {_duration(seconds)}"
        gigabytes = (self.state_bytes + self.activation_bytes) / 1e9
        return [
            f"parameters: {self.parameters:,}",
            f"memory: about {gigabytes:.2f} GB on {hardware.device} "
            f"({self.state_bytes / 1e9:.2f} weights, gradients and optimiser, "
            f"{self.activation_bytes / 1e9:.2f} activations of a micro-batch)",
            f"time: {length} at {_duration(self.step_seconds)} a step, "
            "guessed from the speed of a matrix product just now",
        ]


def estimate(
    model: BertConfig,
    hardware: Hardware,
    *,
    parameters: int,
    frozen: int = 0,
    frozen_layers: int | None = None,
    batch_tokens: float,
    mean_length: float,
    accumulation: int = 1,
    decoded_tokens: float = 0,
) -> Estimate:
    """Guess what training takes, from closed forms and a measured matrix product.

    Args:
        model: its shape.
        hardware: where; its speed is measured.
        parameters: of the model with its heads.
        frozen: of these, those that aren't trained.
        frozen_layers: the lowest layers, which aren't trained, nor are the embeddings; None: all
            is.
        batch_tokens: tokens of a micro-batch.
        mean_length: tokens of a sequence, on average.
        accumulation: micro-batches of a step.
        decoded_tokens: tokens of a micro-batch that get logits over the vocabulary.
    """
    hidden, inner, layers = model.hidden_size, model.intermediate_size, model.num_hidden_layers
    trained = layers if frozen_layers is None else layers - frozen_layers
    embedded = 6 * hidden if frozen_layers is None else 0
    activations = batch_tokens * (
        embedded + trained * layer_bytes(model, mean_length)
    ) + decoded_tokens * 4 * (2 * model.vocab_size + 6 * hidden)
    lengths = [max(round(mean_length), 1)] * max(round(batch_tokens / mean_length), 1)
    operations = training_operations(
        model, lengths, decoded=round(decoded_tokens), frozen_layers=frozen_layers
    )
    speed = MATMUL_SHARE * matmul_speed(hardware, max(round(batch_tokens), 1), hidden, inner)
    return Estimate(
        parameters,
        16 * parameters - 12 * frozen,
        round(activations),
        accumulation * batch_tokens,
        accumulation * operations / speed,
    )


def layer_bytes(model: BertConfig, length: float) -> float:
    """Return the bytes that a layer keeps for a token, in float32 with the TORCH kernels.

    Counted over the saved tensors: 34 bytes for each unit of width, 8 for each of the
    feed-forward, and for each head and token looked at 4, or with dropout 9.
    """
    drops = model.attention_probs_dropout_prob > 0
    attention = (9 if drops else 4) * model.num_attention_heads * length
    return 34 * model.hidden_size + 8 * model.intermediate_size + attention


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
