"""That a CUDA graph replays each operation, and a step of training with LAMB, to the bit.

`make gpu-check` runs these. They were written where no GPU was, and have not run yet; the step of
training is rehearsed on a CPU, where a "graph" is the call itself.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from benchmarks.roofline import SHAPES
from benchmarks.workloads import TINY, cast, operation_of, values, workloads
from bert import BertConfig
from bert.packing import PackedBatch
from bert.pretraining import BertForPreTraining
from bert.training.config import TrainingConfig
from bert.training.optimizer import build_optimizer, set_learning_rate
from kernels import TORCH, TRITON

NAMES = [work.name for work in workloads(TINY, torch.device("cpu")) if work.name != "lamb_step"]
TRIALS = 3


def capture(call, device):
    """Record what a call launches, after two calls outside, as CUDA graphs want it."""
    if device == "cpu":
        call()
        call()
        return SimpleNamespace(replay=call)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [128, 512])
def test_a_graph_replays_an_operation(name, length):
    """Outputs and gradients, for inputs and dropout seeds that change between replays."""
    shape = SHAPES[0]._replace(sequences=1024 // length, length=length)
    work = next(w for w in workloads(shape, torch.device("cuda")) if w.name == name)
    inputs, operation = cast(work.inputs(), work.dtype), operation_of(TRITON, work)
    got: list[Tensor] = []

    def call():
        got[:] = values(operation, inputs)

    graph = capture(call, "cuda")
    for trial in range(TRIALS):
        with torch.no_grad():
            for x in tree_leaves(inputs):
                if isinstance(x, Tensor):
                    x.copy_(x.roll(1, 0)) if x.ndim else x.add_(1)
        graph.replay()
        want = values(operation, inputs)
        for index, (a, b) in enumerate(zip(got, want, strict=True)):
            assert torch.equal(a, b), f"value {index} differs in trial {trial}"


class Training:
    """A model, its optimiser and a batch, all of which stay where they are."""

    def __init__(self, device, lengths):
        config = BertConfig(
            vocab_size=97,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=512,
        )
        torch.manual_seed(0)
        model = BertForPreTraining(config, TORCH if device == "cpu" else TRITON)
        self.model = model.to(device).train()
        training = TrainingConfig(
            optimizer="lamb", kernels="torch" if device == "cpu" else "triton"
        )
        self.optimizer = build_optimizer(self.model, training)
        self.batch = PackedBatch.from_lists([[1] * length for length in lengths], device=device)
        self.masked, self.labels = (torch.tensor(ids, device=device) for ids in ([0, 3], [5, 6]))
        self.is_random = torch.zeros(len(lengths), dtype=torch.int64, device=device)
        self.seed = torch.tensor(0, device=device)
        self.first = [p.detach().clone() for p in self.model.parameters()]

    def step(self):
        self.optimizer.zero_grad(set_to_none=False)
        losses = self.model.losses(self.batch, self.masked, self.labels, self.is_random, self.seed)
        torch.stack(list(losses.values())).sum().backward()
        self.optimizer.step()

    @torch.no_grad()
    def begin_again(self):
        """Undo the steps that came before the capture."""
        for parameter, first in zip(self.model.parameters(), self.first, strict=True):
            parameter.copy_(first)
        for state in self.optimizer.state.values():
            for tensor in state.values():
                tensor.zero_()

    def renew(self, trial):
        """Put other tokens, masks and another rate in the places of the last."""
        draw = torch.Generator().manual_seed(trial)
        self.batch.input_ids.copy_(
            torch.randint(1, 97, self.batch.input_ids.shape, generator=draw)
        )
        self.labels.copy_(torch.randint(1, 97, self.labels.shape, generator=draw))
        self.seed.fill_(1000 + trial)
        set_learning_rate(self.optimizer, 0.01 * (trial + 1))


@pytest.mark.parametrize("lengths", [(5, 128, 17), (300, 17)], ids=str)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_graph_replays_training(device, lengths):
    """Losses, gradients, dropout and LAMB, in one graph; the count of steps goes on in it."""
    eager, replayed = Training(device, lengths), Training(device, lengths)
    graph = capture(replayed.step, device)
    replayed.begin_again()
    for trial in range(TRIALS):
        for training in (eager, replayed):
            training.renew(trial)
        eager.step()
        graph.replay()
        pairs = zip(eager.model.named_parameters(), replayed.model.parameters(), strict=True)
        for (name, a), b in pairs:
            assert torch.equal(a, b), f"{name} differs after trial {trial}"
    moved = zip(eager.model.parameters(), eager.first, strict=True)
    assert all(not torch.equal(now, first) for now, first in moved)
