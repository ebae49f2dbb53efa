"""`bert doctor`: what it says of this machine, and that it sees what is wrong."""

import dataclasses
import importlib.metadata
import importlib.util
import re
import shutil
import sys
import types
from collections import namedtuple

import pytest
import torch

from bert import doctor
from bert.cli import main
from bert.doctor import Finding, greatest_differences
from kernels import REFERENCE, TORCH

CPU = torch.device("cpu")


def findings(look):
    return {finding.name: finding for finding in look()}


def test_on_this_machine(capsys):
    code = main(["doctor"])
    out, err = capsys.readouterr()
    assert err == ""
    *lines, blank, verdict = out.splitlines()
    names = [line[:16].rstrip() for line in lines]
    assert all(len(line) > 16 and line[16] != " " for line in lines), "not aligned"
    expected = {
        "python", "plainbert", "disk", "packages", "extra report", "extra parity", "cpu",
        "torch", "device", "precision", "kernels", "speed", "kernels package", "self-check",
    }  # fmt: skip
    assert expected <= set(names)
    text = dict(zip(names, (line[16:] for line in lines), strict=True))
    assert torch.__version__ in text["torch"] and f"torch {torch.__version__}" in text["packages"]
    assert text["kernels package"].startswith("ours; transformers")
    assert re.match(r"\d[\d,]* GFLOP/s in matrix products", text["speed"])
    assert code == 0 and verdict == "no problems found", out


def test_what_is_wrong_is_marked_and_counted(monkeypatch, capsys):
    def broken():
        yield Finding("fine", "as it should be")
        raise RuntimeError("fell over")

    def bad():
        yield Finding("bad", "too small", ok=False)

    looks = (("broken", broken), ("bad", bad))
    monkeypatch.setattr(doctor, "EXAMINATIONS", looks)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out == (
        "fine            as it should be\n"
        "broken          PROBLEM: RuntimeError: fell over\n"
        "bad             PROBLEM: too small\n"
        "\n"
        "2 problems found\n"
    )
    monkeypatch.setattr(doctor, "EXAMINATIONS", looks[1:])
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out.endswith("\n1 problem found\n")


def test_too_little_room(monkeypatch):
    usage = namedtuple("usage", "total used free")
    assert all(finding.ok for finding in doctor._system())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 10**8))
    monkeypatch.setattr(doctor, "_memory", lambda: (8 * 10**9, 5 * 10**8))
    found = findings(doctor._system)
    assert (found["disk"].ok, found["memory"].ok) == (False, False)
    assert found["memory"].text == "0.5 GB of 8.0 GB free"
    monkeypatch.setattr(doctor, "_memory", lambda: (None, None))
    assert "memory" not in findings(doctor._system)


def test_packages_and_extras(monkeypatch):
    required = ["torch>=2.8", "tyro>=1.0", 'scikit-learn>=1.4; extra == "report"',
                'matplotlib>=3; extra == "report"', 'ruff>=1; extra == "dev"']  # fmt: skip
    there = {"torch": "2.13.0", "tyro": "1.0.17", "matplotlib": "3.11"}
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: required)
    monkeypatch.setattr(doctor, "_version", there.get)
    found = findings(doctor._packages)
    assert found["packages"] == Finding("packages", "torch 2.13.0, tyro 1.0.17")
    assert found["extra report"] == Finding(
        "extra report", "matplotlib 3.11, scikit-learn absent (pip install -e .[report])"
    )
    assert "extra dev" not in found
    del there["tyro"]
    assert findings(doctor._packages)["packages"].ok is False


def test_another_package_of_the_name_kernels(monkeypatch, tmp_path):
    foreign = types.ModuleType("kernels")
    foreign.__file__ = str(tmp_path / "kernels" / "__init__.py")
    monkeypatch.setitem(sys.modules, "kernels", foreign)
    (found,) = doctor._name_of_kernels()
    assert not found.ok and found.text.endswith(f"got {foreign.__file__}")


def test_transformers_misled_by_the_name(monkeypatch):
    utils = pytest.importorskip("transformers").utils
    monkeypatch.setattr(utils, "is_kernels_available", lambda: True)
    (found,) = doctor._name_of_kernels()
    assert not found.ok and found.text == "transformers takes it for the library of that name"


def test_without_transformers(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (found,) = doctor._name_of_kernels()
    assert found == Finding("kernels package", "ours; transformers isn't installed")


def test_the_self_check_passes_the_same_kernels():
    assert greatest_differences(REFERENCE, REFERENCE, CPU) == (0.0, 0.0)


def off_by(operation, factor):
    """An operation whose outcome is slightly wrong."""

    def wrong(*args, **kwargs):
        result = operation(*args, **kwargs)
        return (result[0] * factor, result[1]) if isinstance(result, tuple) else result * factor

    return wrong


OPERATIONS = [
    "attention", "layer_norm", "add_layer_norm", "bias_gelu", "embedding_layer_norm",
    "linear_cross_entropy",
]  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_self_check_sees_an_operation_that_is_wrong(name, monkeypatch):
    import kernels

    wrong = dataclasses.replace(TORCH, **{name: off_by(getattr(TORCH, name), 1 + 3e-4)})
    values, gradients = greatest_differences(wrong, REFERENCE, CPU)
    assert values > doctor.TOLERANCE
    monkeypatch.setattr(kernels, "best_for", lambda device: wrong, raising=False)
    (found,) = doctor._self_check()
    assert not found.ok


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, *grads):
        return grads[0] * 1.001


def test_the_self_check_sees_a_gradient_that_is_wrong():
    def gelu(x, bias, form="erf"):
        return TORCH.bias_gelu(WrongBackward.apply(x), bias, form)

    values, gradients = greatest_differences(
        dataclasses.replace(TORCH, bias_gelu=gelu), REFERENCE, CPU
    )
    assert values < doctor.TOLERANCE and gradients > doctor.GRADIENT_TOLERANCE


@pytest.mark.parametrize(
    ("differences", "ok"),
    [((1e-6, 1e-5), True), ((1e-4, 1e-5), False), ((1e-6, 1e-3), False)],
)
def test_the_self_check_judges_both(differences, ok, monkeypatch):
    monkeypatch.setattr(doctor, "greatest_differences", lambda *_: differences)
    (found,) = doctor._self_check()
    assert found.ok is ok


def test_the_self_check_sees_nan(monkeypatch):
    import kernels

    nan = dataclasses.replace(TORCH, bias_gelu=off_by(TORCH.bias_gelu, float("nan")))
    monkeypatch.setattr(kernels, "best_for", lambda device: nan, raising=False)
    (found,) = doctor._self_check()
    assert not found.ok and "nan" in found.text


def test_the_self_check_leaves_the_random_state():
    before = torch.random.get_rng_state()
    list(doctor._self_check())
    assert torch.equal(before, torch.random.get_rng_state())
