"""The counted operations against torch's own count of a real step, and what a run logs of them."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bert import BertConfig, BertForPreTraining, PackedBatch
from bert.finetuning import (
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)
from bert.training.config import TrainingConfig
from bert.training.hardware import choose_hardware
from bert.training.log import read_log
from bert.training.throughput import peak_memory, peak_speed, training_operations
from kernels import REFERENCE
from tests.bert.training.toy import Clock, ToyObjective, run

SHAPE = BertConfig(
    vocab_size=50, hidden_size=24, num_hidden_layers=3, num_attention_heads=3,
    intermediate_size=40, max_position_embeddings=64,
)  # fmt: skip
LENGTHS = [5, 2, 17, 32]  # of one token einsum makes no matrix product, which torch counts


def batch():
    return PackedBatch.from_lists([torch.randint(1, 50, (n,)).tolist() for n in LENGTHS])


def test_pretraining_is_counted_to_the_operation():
    model = BertForPreTraining(SHAPE, REFERENCE).train()
    places, labels = torch.tensor([1, 7, 30]), torch.tensor([3, 4, 5])
    with FlopCounterMode(display=False) as counter:
        losses = model.losses(batch(), places, labels, torch.tensor([0, 1, 1, 0]))
        sum(losses.values()).backward()
    assert training_operations(SHAPE, LENGTHS, classes=2, decoded=3) == counter.get_total_flops()


def test_classification_is_counted_to_the_operation():
    config = SHAPE.with_labels(["a", "b", "c"])
    model = BertForSequenceClassification(config, REFERENCE).train()
    with FlopCounterMode(display=False) as counter:
        model.logits(batch(), torch.tensor(3)).sum().backward()
    assert training_operations(config, LENGTHS, classes=3) == counter.get_total_flops()


@pytest.mark.parametrize("kind", [BertForQuestionAnswering, BertForTokenClassification])
def test_a_classifier_of_tokens_is_counted_to_the_operation(kind):
    model = kind(SHAPE, REFERENCE).train()
    with FlopCounterMode(display=False) as counter:
        model.logits(batch(), torch.tensor(3)).sum().backward()
    assert training_operations(SHAPE, LENGTHS, token_classes=2) == counter.get_total_flops()


@pytest.mark.parametrize("frozen", [0, 1, 3])
@pytest.mark.parametrize("kind", [BertForSequenceClassification, BertForTokenClassification])
def test_frozen_layers_are_counted_to_the_operation(kind, frozen):
    model = kind(SHAPE, REFERENCE).train()
    model.bert.freeze(frozen)
    with FlopCounterMode(display=False) as counter:
        model.logits(batch(), torch.tensor(3)).sum().backward()
    head = "classes" if kind is BertForSequenceClassification else "token_classes"
    counted = training_operations(SHAPE, LENGTHS, frozen_layers=frozen, **{head: 2})
    assert counted == counter.get_total_flops()


class Counted(ToyObjective):
    """A toy that claims a round number of operations."""

    def operations(self, batch):
        return 1000 * len(batch.ids)


def test_a_run_logs_the_share_of_the_peak_that_it_reached(tmp_path, monkeypatch):
    """Ten samples a step of 1,000 operations each, in 4 forward passes of a second."""
    monkeypatch.setattr("bert.training.loop.peak_speed", lambda hardware: 1e5)
    clock = Clock()

    def tick(batch):
        clock.now += 1.0

    run(tmp_path, Counted(before=tick), accumulation=4, clock=clock)
    (start,) = read_log(tmp_path / "log.jsonl", "start")
    assert start["peak_operations_per_second"] == 1e5
    assert json.loads((tmp_path / "run.json").read_text())["peak_operations_per_second"] == 1e5
    shares = [line["utilization"] for line in read_log(tmp_path / "log.jsonl", "step")]
    assert shares == [10_000 / 4 / 1e5] * 6


def test_nothing_is_measured_or_logged_where_nobody_counts(tmp_path, monkeypatch):
    def fail(hardware):
        raise AssertionError

    monkeypatch.setattr("bert.training.loop.peak_speed", fail)
    run(tmp_path)
    assert all("utilization" not in line for line in read_log(tmp_path / "log.jsonl"))


def test_the_peak_is_faster_than_small_products_and_memory_is_in_bytes():
    hardware = choose_hardware(TrainingConfig(device="cpu", precision="float32"))
    assert 1e8 < peak_speed(hardware) < 1e14
    before = peak_memory(hardware.device)
    held = torch.ones(60_000_000)  # 240 MB, which no test before this one has touched at once
    assert peak_memory(hardware.device) >= max(before, held.nbytes)
