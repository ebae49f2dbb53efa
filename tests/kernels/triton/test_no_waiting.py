"""That nothing waits for the GPU or copies from the host: what a CUDA graph can't hold.

Tensors of the meta device stand in for a GPU's. They have no values: to ask for one, or for a
shape that depends on one, is an error, as is a copy to the host. Our launchers run on them as they
are, but for the kernels, which do nothing; `Crossings` notes each operation on tensors of two
devices, which is how a copy from the host shows. That each launch goes to the GPU that the tensors
are on is watched too: Triton launches on the current one.
"""

import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bert import BertConfig
from bert.packing import PackedBatch
from bert.pretraining import BertForPreTraining
from bert.training.lamb import Lamb
from bert.training.optimizer import set_learning_rate
from kernels import TRITON, Dropout, PackedSequences, lamb
from kernels import device as devices

CONFIG = BertConfig(
    vocab_size=97,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=96,
    max_position_embeddings=512,
)
BODIES = {
    definition._opoverload: definition._init_fn
    for name, definition in OPDEFS.items()
    if name.startswith("plainbert::")
}


class Crossings(TorchDispatchMode):
    """Run our operators by their bodies, and note what has tensors of more than one device."""

    def __init__(self):
        super().__init__()
        self.found = []
        self.ran = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in BODIES:
            self.ran.add(func.name().removeprefix("plainbert::"))
            with self:
                return BODIES[func](*args, **kwargs)
        result = func(*args, **kwargs)
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        if len({x.device.type for x in tensors}) > 1:
            self.found.append(func.name())
        return result


class Launches:
    """In a kernel's place: takes a grid and arguments, and does nothing."""

    current = "another"
    """The device that Triton would launch on."""

    def __getitem__(self, grid):
        assert all(type(programs) is int and programs > 0 for programs in grid)
        assert grid[0] < 2**31 and all(programs <= 65_535 for programs in grid[1:])
        assert self.current == "meta"
        return lambda *_, **__: None


@contextmanager
def on_the_device_of(tensor):
    before, Launches.current = Launches.current, tensor.device.type
    yield
    Launches.current = before


@pytest.fixture
def on_a_gpu(monkeypatch):
    """What the launchers ask of a GPU is answered, and tensors are made on what stands for it."""
    for name, module in list(sys.modules.items()):
        if name.startswith("kernels."):
            for kernel in [k for k in vars(module) if k.endswith("_kernel")]:
                monkeypatch.setattr(module, kernel, Launches())
    properties = SimpleNamespace(L2_cache_size=50 * 2**20, multi_processor_count=132)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: properties)
    monkeypatch.setattr("torch.cuda.device_of", on_the_device_of)
    monkeypatch.setattr(torch.Tensor, "data_ptr", lambda tensor: 16 * id(tensor))
    # torch lists once what a device's context affects: not while one of them is a stand-in.
    with torch.device("meta"):
        make = torch.tensor
        make(0)

    def make_on_the_host(data, dtype=None, device="meta"):  # and copy, as for a GPU
        return make(data, dtype=dtype, device="cpu").to(device)

    monkeypatch.setattr(torch, "tensor", make_on_the_host)
    with torch.device("meta"):
        yield
    devices.architecture.cache_clear()
    devices.multiprocessors.cache_clear()


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).all()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.cpu(),
        lambda x: x.tolist(),
    ],
    ids=["item", "bool", "nonzero", "mask", "cpu", "tolist"],
)
def test_the_watch_sees_a_wait(on_a_gpu, call):
    x = torch.ones(3)
    with Crossings(), pytest.raises((RuntimeError, NotImplementedError)):
        call(x)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: torch.tensor([1, 2]),
        lambda x: torch.ones(3, device="cpu").to(x.device),
        lambda x: x + torch.ones((), device="cpu"),
    ],
    ids=["list", "tensor", "a number of the host's"],
)
def test_the_watch_sees_a_copy(on_a_gpu, call):
    x = torch.ones(3)
    with Crossings() as watch:
        call(x)
    assert len(watch.found) == 1


def pretraining_step(lengths, dtype):
    """Give a step of training of a small BERT as a function of nothing."""
    model = BertForPreTraining(CONFIG, TRITON).to(dtype).train()
    batch = PackedBatch.from_lists([[1] * length for length in lengths], device="meta")
    masked, labels = torch.tensor([0, 3]), torch.tensor([5, 6])
    is_random, seed = torch.zeros(len(lengths), dtype=torch.int64), torch.tensor(1)

    def step():
        losses = model.losses(batch, masked, labels, is_random, seed)
        torch.stack(list(losses.values())).sum().backward()

    return model, step


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("lengths", [(5, 128), (300, 17)], ids=str)
def test_forward_and_backward_of_bert(on_a_gpu, lengths, dtype):
    _, step = pretraining_step(lengths, dtype)
    with Crossings() as watch:
        step()
    assert watch.found == []
    assert watch.ran == {
        f"{operation}{direction}"
        for operation in ("attention", "add_layer_norm", "layer_norm", "bias_gelu",
                          "embedding_layer_norm")
        for direction in ("", "_backward")
    } | {"linear_cross_entropy", "segment_sum"}  # fmt: skip


@pytest.mark.parametrize("lengths", [[1] * 70_000, [1] * 70_000 + [200]], ids=["short", "long"])
def test_more_sequences_than_a_grids_other_axes_have_places(on_a_gpu, lengths):
    """A GPU refuses a launch of more than 65,535 along y or z; `Launches` does as well."""
    sequences = PackedSequences.from_lengths(lengths, "meta")
    tokens = torch.ones(sum(lengths), 4, 16, dtype=torch.bfloat16, requires_grad=True)
    with Crossings() as watch:
        TRITON.attention(tokens, tokens, tokens, sequences).sum().backward()
        TRITON.attention_probabilities(tokens.detach(), tokens.detach(), sequences)
    assert watch.ran == {"attention", "attention_backward", "attention_probabilities"}


def test_what_pretraining_does_without(on_a_gpu):
    """Dropout before a head, and the probabilities for study."""
    x, seed = torch.ones(12, 64, requires_grad=True), torch.tensor(1)
    sequences = PackedSequences.from_lengths([7, 5], "meta")
    with Crossings() as watch:
        TRITON.dropout(x, Dropout(0.1, seed, 3)).sum().backward()
        query = x.detach().view(12, 4, 16)
        TRITON.attention_probabilities(query, query, sequences)
    assert watch.found == [] and watch.ran == {"dropout", "attention_probabilities"}


def test_a_step_of_lamb_after_the_first(on_a_gpu, monkeypatch):
    """The first makes the tables; then the rate changes in place, and the gradients stay."""
    tables = []

    def copied(device, rows):
        tables.append(rows)
        return torch.zeros(len(rows), len(rows[0]), dtype=torch.int64)

    monkeypatch.setattr(lamb, "_on", copied)
    model, step = pretraining_step((5, 9), torch.float32)
    groups = [{"params": list(model.parameters()), "weight_decay": 0.01, "is_adapted": True}]
    optimizer = Lamb(groups, lr=0.1, betas=(0.9, 0.999), eps=1e-6, kernels=TRITON)
    with Crossings():
        step()
        optimizer.step()
    assert len(tables) == 2  # of addresses, and of chunks
    with Crossings() as watch:
        optimizer.zero_grad(set_to_none=False)
        step()
        set_learning_rate(optimizer, 0.05)
        optimizer.step()
    assert watch.found == [] and len(tables) == 2 and "lamb_step" in watch.ran
