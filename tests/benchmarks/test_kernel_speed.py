"""The harness on clocks that are made up, and the benchmark's dry mode."""

import dataclasses
import json

import pytest
import torch
from torch.utils._pytree import tree_map

pytest.importorskip("triton")

from benchmarks.harness import Spread, in_turns, ratio
from benchmarks.kernel_speed import TINY, main, operation_of, verify, workloads
from kernels import TORCH


def test_rivals_take_turns_and_the_warm_up_is_left_out():
    order = []

    def clock(call):
        order.append(call())
        return float(len(order))

    seconds = in_turns({"a": lambda: "a", "b": lambda: "b"}, clock, rounds=2, warmup=1)
    assert order == ["a", "b"] * 3
    assert seconds == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_medians_spreads_and_ratios():
    assert Spread.of([5.0, 1.0, 3.0, 2.0, 4.0]) == Spread(3.0, 2.0, 4.0)
    assert ratio([1.0, 2.0, 4.0], [2.0, 4.0, 4.0]) == Spread(2.0, 1.5, 2.0)


@pytest.mark.errors
def test_one_round_has_no_spread():
    with pytest.raises(ValueError, match="^rounds: expected at least 2, got 1$"):
        in_turns({}, lambda call: 0.0, rounds=1)


@pytest.mark.parametrize("name", ["layer_norm", "attention", "lamb_step"])
def test_a_wrong_kernel_is_not_timed(name):
    work = next(w for w in workloads(TINY, torch.device("cpu")) if w.name == name)

    right = operation_of(TORCH, work)
    verify(work, right)
    with pytest.raises(AssertionError, match=f"^{name}, value 0: error"):
        verify(work, lambda *inputs: tree_map(lambda y: 1.1 * y, right(*inputs)))


def test_dry_mode_verifies_and_writes(tmp_path, capsys):
    assert main(["--dry", "--rounds", "2", "--json", str(tmp_path / "times.json")]) == 0
    written = json.loads((tmp_path / "times.json").read_text())
    operations = {m["operation"].split(",")[0] for m in written["measured"]}
    fields = {f.name for f in dataclasses.fields(TORCH)} - {"name", "attention_probabilities"}
    assert operations == fields and written["dry"]
    assert capsys.readouterr().out.startswith("dry mode: TORCH against REFERENCE")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_nothing_is_measured(capsys):
    assert main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1
