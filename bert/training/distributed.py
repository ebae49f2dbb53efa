"""Several processes that train one model together, as torchrun starts them.

Each has a copy of the model, or its part of one (sharding.py), and takes its share of a step's
micro-batches. Counts, losses and gradients are summed over the processes, so that all take the
same step, and the first process alone decides and writes. A run without torchrun is the case of
one process, in which nothing is said to anybody.

What talks is called by every process, in the same order. Beside the gradients only JSON is sent:
torch's own collectives of objects would unpickle what comes from the network.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bert.training.config import TrainingConfig

PATIENCE = timedelta(days=7)
"""How long the others wait while the first prepares the data, or saves what came out."""


class ProcessLost(ConnectionError):
    """Another process of the run has ended, or is silent; this one can't go on without it."""


class WrongForAll(ValueError):
    """A mistake that every process finds by itself, so that one need tell it."""

    is_everyones = True


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them."""

    rank: int = 0
    size: int = 1
    local_rank: int | None = None
    """The number on its machine, which is its GPU's too; None where it is alone."""
    timeout: str = ""
    """How long a process waits for the others, for the message."""
    patient: Any = None
    """The same processes as a group that waits longer."""

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there is no other."""
        return self.size == 1

    def owns(self, micro_batch: int, accumulation: int) -> bool:
        """Say whether a micro-batch is this process's: of a step's, it has every `size`-th."""
        return micro_batch % accumulation % self.size == self.rank

    def share(self, accumulation: int) -> int:
        """Return how many of a step's micro-batches are this process's."""
        return len(range(self.rank, accumulation, self.size))

    def gather(self, value: Any) -> list[Any]:
        """Return every process's value, by rank; whatever JSON can say, NaN too."""
        if self.is_alone:
            return [value]
        message = _to_tensor(value)
        with self._talking():
            sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            dist.all_gather(sizes, torch.tensor([len(message)]))
            padded = torch.zeros(max(map(int, sizes)), dtype=torch.uint8)
            padded[: len(message)] = message
            messages = [torch.empty_like(padded) for _ in range(self.size)]
            dist.all_gather(messages, padded)
        return [_to_value(m[: int(n)]) for m, n in zip(messages, sizes, strict=True)]

    def from_first(self, value: Any) -> Any:
        """Return the first process's value; the others' are ignored."""
        if self.is_alone:
            return value
        message = _to_tensor(value if self.is_first else None)
        size = torch.tensor([len(message)])
        with self._talking():
            dist.broadcast(size, src=0)
            if not self.is_first:
                message = torch.empty(int(size), dtype=torch.uint8)
            dist.broadcast(message, src=0)
        return _to_value(message)

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors by those of the first process."""
        if not self.is_alone:
            with self._talking():
                for tensor in tensors:
                    dist.broadcast(tensor.detach(), src=0)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Make each `.grad` the sum of all processes'; one that only others have counts as zero.

        One that nobody has stays None. Every process gets the same bits.
        """
        if self.is_alone:
            return
        has_gradient = torch.tensor([int(p.grad is not None) for p in parameters])
        with self._talking():
            dist.all_reduce(has_gradient, dist.ReduceOp.MAX)
            under_way = []
            for parameter, anywhere in zip(parameters, has_gradient.tolist(), strict=True):
                if anywhere:
                    if parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)
                    under_way.append(dist.all_reduce(parameter.grad, async_op=True))
            for work in under_way:
                work.wait()

    @contextmanager
    def first_goes_ahead(self) -> Iterator[None]:
        """Let the first process do something, such as preparing files, before the others do it."""
        if not self.is_first:
            self.wait_for_all()
        yield
        if self.is_first:
            self.wait_for_all()

    def wait_for_all(self) -> None:
        """Wait until every process is here, for days if need be."""
        if not self.is_alone:
            with self._talking():
                dist.barrier(group=self.patient)

    @contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise self._lost(error) from error

    @contextmanager
    def talking_within(self) -> Iterator[None]:
        """Run what talks in the midst of something else, as passes over cut parameters do.

        Raises:
            ProcessLost: for an error of torch.distributed or gloo; others are what they are.
        """
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, dist.DistError) or "gloo" in str(error):
                raise self._lost(error) from error
            raise

    def _lost(self, error: RuntimeError) -> ProcessLost:
        return ProcessLost(
            f"process {self.rank} of {self.size}: another one has ended, or said nothing for "
            f"{self.timeout} (training.timeout); the last checkpoint serves: "
            f"{str(error).strip().splitlines()[0]}"
        )


ALONE = World()


@contextmanager
def join(config: TrainingConfig) -> Iterator[World]:
    """Enter the world that torchrun's environment tells of, and leave it together.

    Messages and a CPU's gradients go through gloo, a GPU's gradients through NCCL.

    Raises:
        WrongForAll: the configuration has no work for each process, or one GPU for all of them.
    """
    rank, size, local_rank = _environment()
    if size == 1:
        yield ALONE
        return
    if config.accumulation < size:
        raise WrongForAll(
            f"accumulation: expected {size} or more, a micro-batch of each step for each of the "
            f"{size} processes, got {config.accumulation}"
        )
    if ":" in config.device:
        raise WrongForAll(
            f"device: expected auto, cpu or cuda, since each of the {size} processes has its own, "
            f"got {config.device!r}"
        )
    uses_gpu = config.device != "cpu" and torch.cuda.is_available()
    if uses_gpu:
        torch.cuda.set_device(local_rank)
    timeout = timedelta(seconds=config.timeout_seconds())
    dist.init_process_group("cpu:gloo,cuda:nccl" if uses_gpu else "gloo", timeout=timeout)
    try:
        patient = dist.new_group(backend="gloo", timeout=PATIENCE)
        world = World(rank, size, local_rank, config.timeout, patient)
        yield world
        # torchrun ends the others as soon as one has an exit code: none may be at work then.
        world.wait_for_all()
    finally:
        dist.destroy_process_group()


def is_first_process() -> bool:
    """Say whether this process is the one that speaks to the user."""
    return _environment()[0] == 0


def _environment() -> tuple[int, int, int]:
    """Read what torchrun tells a process: its rank, the world's size, its rank on the machine."""
    size = _number("WORLD_SIZE", "1")
    if size == 1:
        return 0, 1, 0
    return _number("RANK"), size, _number("LOCAL_RANK")


def _number(name: str, default: str = "") -> int:
    text = os.environ.get(name, default)
    if not text.isdecimal():
        raise ValueError(f"{name}: expected the number that torchrun sets, got {text!r}")
    return int(text)


def _to_tensor(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _to_value(message: Tensor) -> Any:
    return json.loads(message.numpy().tobytes())
