"""BERT on TRITON, interpreted: against REFERENCE with the same dropout masks, step by step."""

import pytest
import torch

from bert import BertConfig
from bert.encoder import Layer
from bert.heads import Pooler
from bert.model import init_weights
from bert.packing import PackedBatch
from bert.pretraining import BertForPreTraining
from kernels import REFERENCE, TORCH, TRITON, PackedSequences, choose
from tests.bert.training.toy import ToyObjective, run

CONFIG = BertConfig(
    vocab_size=50,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=48,
    max_position_embeddings=32,
    initializer_range=0.2,
)


def batch(step):
    """Two sequences of other lengths each step, three masked tokens, one of them not counted."""
    draw = torch.Generator().manual_seed(step)
    lengths = (1 + step % 3 * 4, 12 - step)
    rows = [torch.randint(1, 50, (length,), generator=draw).tolist() for length in lengths]
    labels = torch.tensor([step, -100, 49 - step])
    return PackedBatch.from_lists(rows), torch.tensor([0, 2, sum(lengths) - 1]), labels


def model_on(kernels, dtype):
    torch.manual_seed(0)
    return BertForPreTraining(CONFIG, kernels).to(dtype).train()


def losses_and_gradients(model, step):
    packed, masked, labels = batch(step)
    losses = model.losses(packed, masked, labels, torch.tensor([0, 1]), torch.tensor(1000 + step))
    model.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    return {k: v.detach() for k, v in losses.items()}, {
        name: parameter.grad.clone() for name, parameter in model.named_parameters()
    }


def assert_near(got, want, tolerance):
    assert got.keys() == want.keys()
    for name, value in want.items():
        error = (got[name].double() - value.double()).abs().max()
        assert error <= tolerance * value.abs().max().clamp(min=1e-3), name


@pytest.mark.parametrize("steps", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_training_is_that_of_the_reference(steps):
    """In float64, where no rounding hides an error: each loss, gradient and weight."""
    models = [model_on(kernels, torch.float64) for kernels in (TRITON, REFERENCE)]
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-2) for model in models]
    for step in range(steps):
        (losses, gradients), (true_losses, true_gradients) = (
            losses_and_gradients(model, step) for model in models
        )
        assert_near(losses, true_losses, 1e-9)
        assert_near(gradients, true_gradients, 1e-7)
        for optimizer in optimizers:
            optimizer.step()
    trained, expected = (dict(model.named_parameters()) for model in models)
    assert_near(trained, expected, 1e-6)


def test_a_step_under_autocast():
    """Products in bfloat16; parameters and their gradients stay in float32."""
    reference = model_on(REFERENCE, torch.float32)
    true_losses, true_gradients = losses_and_gradients(reference, 1)
    model = model_on(TRITON, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, gradients = losses_and_gradients(model, 1)
    assert {g.dtype for g in gradients.values()} == {torch.float32}
    assert_near(losses, true_losses, 0.05)
    assert_near(gradients, true_gradients, 0.3)


def test_what_students_look_at():
    ids = torch.randint(1, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 9)
    mask[1, 5:] = 0
    outputs = []
    for kernels in (TRITON, REFERENCE):
        model = model_on(kernels, torch.float32).bert.eval()
        with torch.no_grad():
            outputs.append(model(ids, mask, None, True, True))
    got, want = outputs
    for name in ("hidden_states", "attentions"):
        for a, b in zip(getattr(got, name), getattr(want, name), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.compile
def test_a_layer_compiles_as_one_graph():
    torch.manual_seed(0)
    layer = Layer(CONFIG, TRITON, 1).train()
    init_weights(layer, CONFIG)
    sequences = PackedSequences.from_lengths([5, 1, 3])
    hidden = torch.randn(9, 32, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    inputs = [hidden, *layer.parameters()]
    got, want = (
        torch.autograd.grad(call(hidden, sequences, torch.tensor(5)).sin().sum(), inputs)
        for call in (compiled, layer)
    )
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
@pytest.mark.compile
def test_batches_of_other_lengths_are_not_compiled_again():
    """The first batch is compiled as it is, the second for any lengths, the others not at all."""
    torch.manual_seed(0)
    layer, pooler = Layer(CONFIG, TRITON, 1).train(), Pooler(CONFIG)
    init_weights(layer, CONFIG)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    def call(hidden, sequences, seed):
        return pooler(layer(hidden, sequences, seed), sequences).sin().sum()

    compiled = torch.compile(call, fullgraph=True, backend=backend)
    for step, lengths in enumerate([(5, 2), (4, 3, 9), (7, 2), (2, 2, 2, 3), (11, 6)]):
        sequences, seed = PackedSequences.from_lengths(lengths), torch.tensor(step)
        hidden = torch.randn(sum(lengths), 32, requires_grad=True)
        got, want = (
            torch.autograd.grad(run_it(hidden, sequences, seed), [hidden, *layer.parameters()])
            for run_it in (compiled, call)
        )
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)
    assert len(graphs) == 2


def test_lamb_in_the_loop_is_resumed_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.setattr("bert.training.optimizer.choose", lambda name, device: TRITON)
    weights = []
    for budgets in (("4",), ("2", "4")):
        objective = ToyObjective()
        for budget in budgets:
            run(tmp_path / str(len(weights)), objective, optimizer="lamb", schedule="constant",
                warmup=0.0, budget=budget)  # fmt: skip
        weights.append(list(objective.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    monkeypatch.undo()
    plain = ToyObjective()
    run(tmp_path / "plain", plain, optimizer="lamb", schedule="constant", warmup=0.0, budget="4")
    for a, b in zip(weights[0], plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("device", "interpreted", "capability"),
    [("cuda", False, (9, 0)), ("cuda:1", False, (8, 0)), ("cpu", True, None)],
)
def test_triton_is_given_where_it_can_run(monkeypatch, device, interpreted, capability):
    monkeypatch.setattr("kernels.device.INTERPRETED", interpreted)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    assert choose("triton", device) is TRITON
    assert choose("auto", device) is TORCH  # not yet tried on a GPU
    assert choose("torch", device) is TORCH and choose("reference", device) is REFERENCE


@pytest.mark.errors
@pytest.mark.parametrize(
    ("device", "capability", "installed", "message"),
    [
        ("cpu", None, True, "expected torch or reference on cpu, since"),
        ("cuda", (7, 5), True, "expected torch or reference on cuda, since"),
        ("cuda", (9, 0), False, "expected torch or reference, since Triton isn't installed"),
    ],
)
def test_triton_is_refused_where_it_cannot(monkeypatch, device, capability, installed, message):
    monkeypatch.setattr("kernels.device.INTERPRETED", False)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    monkeypatch.setattr("kernels.selection.find_spec", lambda name: installed or None)
    with pytest.raises(ValueError, match=f"^kernels: {message}"):
        choose("triton", device)
    with pytest.raises(ValueError, match="^kernels: expected auto, torch, triton or reference, g"):
        choose("tritton", device)
