"""What those who study training get: models of the steps on the way, and lines of statistics."""

from dataclasses import replace

import pytest
import torch

from bert import load_pretrained
from bert.training.config import TrainingConfig
from bert.training.log import read_log
from pretrain.config import PretrainConfig
from pretrain.run import pretrain
from pretrain.snapshots import Snapshots, is_snapshot_step
from tests.pretrain.test_run import story


def test_the_steps():
    assert [step for step in range(70) if is_snapshot_step(step)] == [0, 1, 2, 4, 8, 16, 32, 64]


def names(home):
    return sorted(path.name for path in home.iterdir())


def writer(text):
    def save(directory):
        (directory / "model").write_text(text)

    return save


def test_a_resumed_run_keeps_what_was_and_makes_again_what_comes(tmp_path):
    home = tmp_path / "snapshots"
    first = Snapshots(home, writer("first"), 5)
    assert first.is_due(3)  # the first one to come deletes what is left
    for step in range(9):
        first(step)
    assert [step for step in range(9) if first.is_due(step)] == [0, 1, 2, 4, 8]
    (home / ".step-00000016.partial").mkdir()  # it was killed here
    second = Snapshots(home, writer("second"), 6)
    second(3)
    assert names(home) == ["step-00000000", "step-00000001", "step-00000002"]
    for step in range(4, 10):
        second(step)
    texts = {path.name: (path / "model").read_text() for path in home.iterdir()}
    assert texts == {
        **{f"step-{step:08d}": "first" for step in (0, 1, 2)},
        **{f"step-{step:08d}": "second" for step in (4, 8)},
    }


@pytest.mark.errors
def test_one_that_cannot_be_written_leaves_nothing(tmp_path):
    def save(directory):
        writer("half")(directory)
        raise OSError("disk full")

    with pytest.raises(OSError, match=r"disk full.* 4 bytes .*step-00000000"):
        Snapshots(tmp_path, save, 4)(0)
    assert names(tmp_path) == []


@pytest.fixture
def config(tmp_path):
    (tmp_path / "train.txt").write_text(story(20, 0))
    (tmp_path / "shape.json").write_text(
        '{"model_type": "bert", "vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 1,'
        ' "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 32,'
        ' "hidden_act": "gelu", "type_vocab_size": 2, "initializer_range": 0.02}'
    )
    return PretrainConfig(
        files=(tmp_path / "train.txt",),
        out=tmp_path / "run",
        model=str(tmp_path / "shape.json"),
        vocab_size=100,
        max_length=32,
        tokens_per_batch=128,
        dropout=0.0,
        snapshots=True,
        training=TrainingConfig(budget="5", learning_rate=1e-2, checkpoint_every="3"),
    )


def weights(directory):
    return load_pretrained(directory).state_dict()


def test_a_run_keeps_models_that_load_and_changes_nothing_by_it(config, tmp_path):
    result = pretrain(config)
    home = config.out / "snapshots"
    assert names(home) == [f"step-{step:08d}" for step in (0, 1, 2, 4)]
    files = {"config.json", "manifest.json", "model.safetensors", "tokenizer.json"}
    assert files <= set(names(home / "step-00000000"))
    plain = pretrain(replace(config, out=tmp_path / "plain", snapshots=False))
    assert not (tmp_path / "plain" / "snapshots").exists()
    one, other = weights(result.model), weights(plain.model)
    assert all(torch.equal(one[name], other[name]) for name in one)

    first = weights(home / "step-00000000")
    fourth = weights(home / "step-00000004")
    assert any(not torch.equal(first[name], fourth[name]) for name in first)
    resumed = replace(
        config, out=tmp_path / "more", resume=str(config.out / "checkpoints" / "step-00000003")
    )
    pretrain(resumed)
    assert names(tmp_path / "more" / "snapshots") == ["step-00000004"]
    again = weights(tmp_path / "more" / "snapshots" / "step-00000004")
    assert all(torch.equal(fourth[name], again[name]) for name in fourth)


def test_transformers_loads_a_snapshot(config):
    transformers = pytest.importorskip("transformers")
    pretrain(replace(config, training=replace(config.training, budget="1")))
    path = config.out / "snapshots" / "step-00000001"
    model = transformers.AutoModelForPreTraining.from_pretrained(path)
    theirs = model.bert.embeddings.word_embeddings.weight
    assert torch.equal(theirs, load_pretrained(path).bert.embeddings.word.weight)
    assert transformers.AutoTokenizer.from_pretrained(path).vocab_size == theirs.shape[0]


def test_statistics_and_utilization_are_in_the_log(config):
    statistics = replace(config.training, statistics_every=2)
    pretrain(replace(config, snapshots=False, training=statistics))
    lines = list(read_log(config.out / "log.jsonl", "statistics"))
    assert [line["step"] for line in lines] == [2, 4]
    ((one, other),) = lines[0]["attention_entropy"]  # a layer of two heads
    assert 0 < one < lines[0]["log_length"] and 0 < other < lines[0]["log_length"]
    assert "model.bert.encoder.layers.0.attention.qkv.weight" in lines[0]["update_ratio"]
    (start,) = read_log(config.out / "log.jsonl", "start")
    assert start["peak_operations_per_second"] > 1e6
    for line in read_log(config.out / "log.jsonl", "step"):
        assert 0 < line["utilization"] < 1.5  # the peak is measured in a busy moment, at times
    assert next(read_log(config.out / "log.jsonl", "checkpoint"))["peak_memory"] > 50_000_000
