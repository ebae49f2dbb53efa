"""A BERT that is stopped within a step, with its pairs and masks, ends as if it had not been."""

import itertools
import os
import signal
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from bert.training.log import read_log
from pretrain.corpus import TOKENS
from pretrain.objective import PretrainingObjective
from pretrain.run import pretrain
from tests.pretrain.test_objectives import config  # noqa: F401

ACCUMULATION, STEPS = 3, 6


@pytest.fixture
def stop_at(monkeypatch):
    """Let a signal come in the n-th forward pass from now on."""
    forward = PretrainingObjective.forward

    def arrange(at):
        calls = itertools.count(1)

        def signalled(self, batch, dropout_seed):
            if next(calls) == at:
                os.kill(os.getpid(), signal.SIGTERM)
            return forward(self, batch, dropout_seed)

        monkeypatch.setattr(PretrainingObjective, "forward", signalled)

    return arrange


def end_of(result):
    """The weights, and what each step found."""
    timed = ("elapsed", "tokens_per_second", "utilization")
    steps = [
        {key: value for key, value in line.items() if key not in timed}
        for line in read_log(result.run_dir / "log.jsonl", "step")
    ]
    return safetensors.torch.load_file(result.model / "model.safetensors"), steps


# The four numbers of workers of one run: as it is started, and each time that it goes on.
@pytest.mark.parametrize(
    "workers",
    [(0, 0, 0, 0), pytest.param((2, 4, 0, 2), marks=pytest.mark.slow)],
)
def test_stopped_in_mid_accumulation_it_ends_bit_equal(config, tmp_path, stop_at, workers):  # noqa: F811
    training = replace(
        config.training,
        budget=f"{STEPS}",
        accumulation=ACCUMULATION,
        evaluate_every=None,
        threads=1,
    )
    run = replace(config, whole_words=True, training=training)
    whole = pretrain(replace(run, out=tmp_path / "whole"))
    weights, steps = end_of(whole)
    assert len(steps) == STEPS
    # In the first step after the start, in the second, in the third: 2 + 5 + 8 micro-batches.
    stopped = []
    for at, count in zip((2, 5, 8, 99), workers, strict=True):
        stop_at(at)
        result = pretrain(replace(run, training=replace(training, loader_workers=count)))
        stopped.append(result.training.step)
    assert stopped == [0, 1, 3, STEPS]
    got, found = end_of(result)
    assert found == steps
    assert got.keys() == weights.keys()
    assert all(torch.equal(got[name], weights[name]) for name in weights)


@pytest.mark.errors
def test_data_that_were_damaged_since_are_named(config):  # noqa: F811
    short = replace(config, training=replace(config.training, budget="2"))
    pretrain(short)
    longer = replace(config, training=replace(config.training, budget="4"))
    for part in ("train", "validation"):
        path = config.out / "data" / part / TOKENS
        whole = path.read_bytes()
        path.write_bytes(bytes([whole[0] ^ 1, *whole[1:]]))
        with pytest.raises(ValueError, match=f"{part}/{TOKENS}: its SHA-256 is not the one in"):
            pretrain(longer)
        path.write_bytes(whole)
    assert pretrain(longer).training.step == 4
