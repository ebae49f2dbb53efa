"""The harness on clocks that are made up, and the benchmark's dry mode."""

import dataclasses
import json

import pytest
import torch
from torch.utils._pytree import tree_map

pytest.importorskip("triton")

from benchmarks import kernel_speed
from benchmarks.harness import Spread, in_turns, ratio
from benchmarks.kernel_speed import card_of, main
from benchmarks.workloads import TINY, operation_of, verify, workloads
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


def test_a_wrong_operation_is_named_and_the_others_are_timed(monkeypatch, tmp_path, capsys):
    wrong = dataclasses.replace(TORCH, dropout=lambda x, dropout: 1.1 * TORCH.dropout(x, dropout))
    monkeypatch.setattr(kernel_speed, "TORCH", wrong)
    assert main(["--dry", "--rounds", "2", "--json", str(tmp_path / "times.json")]) == 1
    written = json.loads((tmp_path / "times.json").read_text())
    assert list(written["untimed"]) == ["dropout, tiny"]
    assert "NOT TIMED: dropout, value 0: error" in capsys.readouterr().out
    timed = {m["operation"] for m in written["measured"]}
    assert "dropout" not in timed and "lamb_step" in timed


@pytest.mark.parametrize(
    ("device", "card"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("AMD Instinct MI300X", "MI300X"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA A100-SXM4-40GB", None),
        ("NVIDIA H200", None),
    ],
)
def test_a_card_is_known_by_its_name(device, card):
    assert card_of(device) == card


@pytest.mark.errors
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "1"], "--rounds: expected at least 2, got 1"),
        (["--json", "nowhere/times.json"], "--json: expected a file in a folder that is there"),
    ],
)
def test_mistakes_are_found_before_anything_is_timed(capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        main(["--dry", *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_nothing_is_measured(capsys):
    assert main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1
