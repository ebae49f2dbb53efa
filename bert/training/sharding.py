"""Parameters cut among the processes that train one model, so that none keeps all of it.

Each process keeps its rows of every parameter, of the gradient and of the optimiser's means (ZeRO
stage 3, Rajbhandari et al. 2020), by torch's `fully_shard`. A layer is put together right before
it computes, forward or backward, and cut again afterwards; what lies in no layer, such as the
embeddings, stays together from a forward pass to the end of its backward pass. A layer's gradient
is summed over the processes as soon as a backward pass has it, and is never kept whole. (In
bfloat16, autograd keeps the rounded matrices of all layers from one pass to the other.)

The caller's objective stays an ordinary module, as evaluation and saving need one. A twin of it
has the parts and is trained; the objective's own parameters are empty, but for the times at which
they are put together. Where nothing is cut, the twin is the objective itself.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from bert.encoder import Layer
from bert.training.distributed import World
from bert.training.objective import Objective

# The names of a twin's parameters that a backward pass has reached, by the twin.
_reached: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


def shard(objective: Objective[Any], world: World) -> Objective[Any]:
    """Return the twin of an objective, which has this process's parts; the objective is emptied.

    Args:
        objective: on its device, with the same values in every process.
        world: several processes, which all call this.

    Raises:
        ValueError: a parameter is a single number, which can't be cut.
    """
    # Imported here: it takes seconds, and a run in one process has no use for it.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for name, parameter in objective.named_parameters():
        if parameter.ndim == 0:
            raise ValueError(f"sharding: expected none, since {name} is one number, got full")
    tensors = [*objective.parameters(), *objective.buffers()]
    twin = copy.deepcopy(objective, {id(tensor): tensor for tensor in tensors})
    mesh = init_device_mesh(tensors[0].device.type, (world.size,))
    reached = _reached[twin] = set()
    # From the inside out: what is cut already is left out further outside.
    for name, module in reversed(list(twin.named_modules())):
        if module is twin or isinstance(module, Layer):
            cut = cast(Any, fully_shard(module, mesh=mesh))
            # A sum, not a mean: a micro-batch's loss is divided by the terms of all before.
            cut.set_gradient_divide_factor(1.0)
            cut.set_force_sum_reduction_for_comms(True)
            # Else a process whose micro-batch uses fewer parameters would sum fewer numbers.
            cut.set_reduce_scatter_unused_params(True)
            _note_reached(cut, name, reached)
    _empty(objective)
    return twin


def _note_reached(module: nn.Module, prefix: str, reached: set[str]) -> None:
    """From the first forward pass on, note which parameters a backward pass reaches."""

    def begin(*_: Any) -> None:
        handle.remove()
        for name, parameter in module.named_parameters(prefix):
            if parameter.requires_grad and not is_part(parameter):
                parameter.register_post_accumulate_grad_hook(
                    lambda _, name=name: reached.add(name)
                )

    handle = module.register_forward_pre_hook(begin)


def is_sharded(objective: nn.Module) -> bool:
    """Say whether its parameters are parts."""
    return objective in _reached


def passes_in_step(own: int, most: int) -> list[tuple[int, float]]:
    """List the passes of a process over its micro-batches of a step: their places, and weights.

    A pass needs the parts of all processes, so each makes as many as any other: one that has
    fewer micro-batches repeats its last one, whose weight is 0 then.

    Args:
        own: how many this process has, one or more.
        most: how many the process with the most has.
    """
    return [(place, 1.0) for place in range(own)] + [(own - 1, 0.0)] * (most - own)


def drop_unreached(objective: nn.Module, world: World) -> None:
    """Set a gradient to None that no process's passes have reached, as it is where nothing is cut.

    torch fills up with zeros what one process has and another hasn't; an optimiser would take a
    step with zeros, and none without a gradient.
    """
    reached = _reached[objective]
    parameters = dict(objective.named_parameters())
    own = [name for name in parameters if name not in reached]
    for name in set(own).intersection(*world.gather(own)):
        parameters[name].grad = None
    reached.clear()


def cut_again(objective: nn.Module) -> None:
    """Cut what a forward pass without a backward pass has left together."""
    if is_sharded(objective):
        cast(Any, objective).reshard()


@contextmanager
def put_together(objective: nn.Module, twin: nn.Module) -> Iterator[None]:
    """Let the objective have all its parameters for a while; every process calls this."""
    fill(objective, twin)
    try:
        yield
    finally:
        if objective is not twin:
            _empty(objective)


def fill(objective: nn.Module, twin: nn.Module) -> None:
    """Give the objective all its parameters, from the parts of all processes, which call this."""
    if objective is not twin:
        targets = dict(objective.named_parameters())
        for name, parameter in twin.named_parameters():
            targets[name].data = whole(parameter.detach())


def _empty(objective: nn.Module) -> None:
    for parameter in objective.parameters():
        parameter.data = parameter.data.new_empty(0)


def whole(tensor: Tensor) -> Tensor:
    """Put a tensor together from the parts of all processes, which call this."""
    return cast(Any, tensor).full_tensor() if is_part(tensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process has: all of one that isn't cut."""
    return cast(Any, tensor).to_local() if is_part(tensor) else tensor


def cut_like(tensor: Tensor, example: Tensor) -> Tensor:
    """Cut a tensor that each process has whole as another of its shape is cut."""
    if not is_part(example):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    layout, here = cast(Any, example), tensor.to(example.device)
    return distribute_tensor(here, layout.device_mesh, layout.placements, src_data_rank=None)


def is_part(tensor: Tensor) -> bool:
    """Say whether this process has a part of the tensor alone."""
    # Not isinstance(tensor, DTensor), for the import's sake.
    return hasattr(tensor, "full_tensor")
