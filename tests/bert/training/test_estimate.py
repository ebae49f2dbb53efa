"""The guesses of a dry run, against what training really keeps."""

import pytest
import torch

from bert.config import BertConfig
from bert.finetuning import BertForSequenceClassification
from bert.packing import PackedBatch
from bert.training.config import TrainingConfig
from bert.training.estimate import Estimate, estimate
from bert.training.hardware import Hardware, choose_hardware

CPU = choose_hardware(TrainingConfig(device="cpu", precision="float32"))


def saved_bytes(config, lengths, frozen_layers=None):
    """The bytes that a forward pass keeps for the backward pass, parameters not counted."""
    model = BertForSequenceClassification(config).train()
    if frozen_layers is not None:
        model.bert.freeze(frozen_layers)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage
        return tensor

    batch = PackedBatch.from_lists([[7] * length for length in lengths])
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.logits(batch, torch.tensor(3)).sum()
        return sum(storage.nbytes() for storage in saved.values())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(
    ("hidden", "heads", "inner", "length"), [(96, 3, 200, 40), (64, 4, 256, 90)]
)
def test_the_activations_are_what_a_forward_pass_keeps(dropout, hidden, heads, inner, length):
    config = BertConfig(
        vocab_size=50,
        hidden_size=hidden,
        num_hidden_layers=3,
        num_attention_heads=heads,
        intermediate_size=inner,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    guess = estimate(
        config, CPU, parameters=1, batch_tokens=8.0 * length, mean_length=float(length)
    )
    assert guess.activation_bytes == pytest.approx(saved_bytes(config, [length] * 8), rel=0.05)


@pytest.mark.parametrize("frozen_layers", [0, 2])
def test_what_is_frozen_keeps_nothing(frozen_layers):
    config = BertConfig(
        vocab_size=50, hidden_size=96, num_hidden_layers=3, num_attention_heads=3,
        intermediate_size=200,
    )  # fmt: skip
    settings = {"parameters": 1000, "batch_tokens": 320.0, "mean_length": 40.0}
    guess = estimate(config, CPU, **settings, frozen=600, frozen_layers=frozen_layers)
    saved = saved_bytes(config, [40] * 8, frozen_layers)
    assert guess.activation_bytes == pytest.approx(saved, rel=0.05)
    assert guess.state_bytes == 16 * 400 + 4 * 600


def test_the_time_grows_with_the_work():
    config = BertConfig.preset("tiny")
    small, large = (
        estimate(config, CPU, parameters=1, batch_tokens=tokens, mean_length=32.0, accumulation=2)
        for tokens in (64.0, 4096.0)
    )
    assert large.step_seconds > 8 * small.step_seconds > 0


def test_it_is_told_in_the_units_of_the_budget():
    guess = Estimate(1_000_000, 16_000_000, 84_000_000, 2000.0, 0.5)
    hardware = Hardware(torch.device("cpu"), "float32", "")
    in_steps = guess.describe(TrainingConfig(budget="600"), hardware)
    assert in_steps == [
        "parameters: 1,000,000",
        "memory: about 0.10 GB on cpu (0.02 weights, gradients and optimiser, "
        "0.08 activations of a micro-batch)",
        "time: 600 steps, about 5 min at 500 ms a step, "
        "guessed from the speed of a matrix product just now",
    ]
    in_time = guess.describe(TrainingConfig(budget="2min"), hardware)
    assert in_time[2].startswith("time: 2 min, about 240 steps")
    in_tokens = guess.describe(TrainingConfig(budget="1.2Mtok"), hardware)
    assert in_tokens[2].startswith("time: 1,200,000 tokens, about 600 steps and 5 min at 500 ms ")
