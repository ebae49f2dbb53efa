"""BERT's gradients from several processes; see tests/bert/training/ranks.py."""

from pathlib import Path

import safetensors.torch
import torch

from bert import BertConfig, BertForPreTraining
from bert.packing import PackedBatch, PackedSequences
from bert.training.distributed import ALONE, World, join
from bert.training.gradients import WindowLosses, add_gradients
from pretrain.batches import PretrainingBatch
from pretrain.objective import PretrainingObjective
from tests.bert.training import toy
from tests.bert.training.ranks import CPU

CONFIG = BertConfig(
    vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=24, max_position_embeddings=20,
)  # fmt: skip
WINDOW = 5


def batch(index: int) -> PretrainingBatch:
    """Draw a micro-batch of its own size: index 1 has no masked token."""
    generator = torch.Generator().manual_seed(index)
    lengths = torch.randint(3, 20, (2 + index % 3,), generator=generator).tolist()
    tokens = sum(lengths)
    masked = torch.arange(0, 0 if index == 1 else tokens, 4 + index)
    positions = torch.cat([torch.arange(length) for length in lengths])
    packed = PackedBatch(
        torch.randint(5, 50, (tokens,), generator=generator),
        (positions > 1).long(),
        positions,
        PackedSequences.from_lengths(lengths),
    )
    return PretrainingBatch(
        packed,
        masked,
        torch.randint(5, 50, (len(masked),), generator=generator),
        torch.randint(0, 2, (len(lengths),), generator=generator),
    )


def gradients_of(world: World) -> tuple[WindowLosses, dict[str, torch.Tensor]]:
    """Return a window's losses and gradients in float64, with dropout, from this rank's share."""
    torch.manual_seed(0)
    objective = PretrainingObjective(BertForPreTraining(CONFIG)).double().train()
    window = [(index, batch(index)) for index in range(WINDOW) if world.owns(index, WINDOW)]
    losses = add_gradients(objective, window, seed=3, hardware=CPU, world=world)
    return losses, {n: p.grad for n, p in objective.named_parameters() if p.grad is not None}


def write_gradients(out: Path) -> None:
    """Write them from each rank."""
    with join(toy.config(accumulation=WINDOW)) as world:
        _, found = gradients_of(world)
        safetensors.torch.save_file(found, out / f"{world.rank}.safetensors")


def gradients_alone() -> dict[str, torch.Tensor]:
    """Return those of one process."""
    return gradients_of(ALONE)[1]
