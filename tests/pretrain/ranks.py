"""BERT's gradients from several processes; see tests/bert/training/ranks.py."""

import json
from pathlib import Path

import safetensors.torch
import torch

from bert import BertConfig, BertForPreTraining
from bert.packing import PackedBatch, PackedSequences
from bert.training.distributed import ALONE, World, join
from bert.training.gradients import WindowLosses, add_gradients
from bert.training.optimizer import build_optimizer
from bert.training.sharding import fill, own_part, shard
from bert.training.state import optimizer_tensors
from bert.training.step import take_step
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


OPTIMIZERS = ("adamw", "bert_adam", "muon")
STEPS = 3


def steps_of(world: World, optimizer: str) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Return the parameters after clipped steps in float64, with dropout, and this rank's bytes.

    Several processes cut the model; the word embedding is tied to the output.
    """
    torch.manual_seed(0)
    objective = PretrainingObjective(BertForPreTraining(CONFIG)).double().train()
    config = toy.config(
        accumulation=WINDOW, optimizer=optimizer, learning_rate=0.01, max_grad_norm=0.5
    )
    trained = objective if world.is_alone else shard(objective, world)
    by_name = build_optimizer(trained, config)
    norms = []
    for step in range(STEPS):
        window = [
            (index, batch(index))
            for index in range(step * WINDOW, (step + 1) * WINDOW)
            if world.owns(index, WINDOW)
        ]
        norms.append(
            take_step(trained, by_name, window, config, CPU, lambda: None, world).grad_norm
        )
    assert min(norms) > 0.5
    kept = {
        "parameters": sum(own_part(p.detach()).nbytes for p in trained.parameters()),
        "optimizer": sum(own_part(t).nbytes for t in optimizer_tensors(trained, by_name).values()),
        "emptied": 0 if world.is_alone else sum(p.nbytes for p in objective.parameters()),
    }
    fill(objective, trained)
    return {name: p.detach() for name, p in objective.named_parameters()}, kept


def write_steps(out: Path) -> None:
    """Write what each rank ends with, for each optimiser."""
    with join(toy.config(accumulation=WINDOW)) as world:
        for optimizer in OPTIMIZERS:
            found, kept = steps_of(world, optimizer)
            safetensors.torch.save_file(found, out / f"{optimizer}-{world.rank}.safetensors")
            (out / f"{optimizer}-{world.rank}.json").write_text(json.dumps(kept))


def gradients_alone() -> dict[str, torch.Tensor]:
    """Return those of one process."""
    return gradients_of(ALONE)[1]
