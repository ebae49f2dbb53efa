"""The arithmetic of the table, and which fine-tunings it compares; the runs are the demo's."""

from pathlib import Path

import pytest

from benchmarks.pretraining_gain import summarise, variants
from demo import recipe


def test_means_gaps_and_the_greater_spread():
    summary = summarise(
        [{"pretrained": 0.70, "scratch": 0.60}, {"pretrained": 0.64, "scratch": 0.61}]
    )
    assert summary["gaps"] == pytest.approx([0.10, 0.03])
    assert summary["mean_gap"] == pytest.approx(0.065)
    assert summary["spread"] == pytest.approx(0.06)  # the pretrained ones are farther apart
    assert summary["table"]["scratch"] == {
        "seeds": [0.60, 0.61],
        "mean": pytest.approx(0.605),
        "sd": pytest.approx(0.00707, abs=1e-5),
    }


def test_each_variant_differs_from_the_demo_in_one_way():
    demo = recipe.finetuning(Path("m"), Path("o"), 0, "9s", from_scratch=False)
    others = variants(demo)
    table = [
        (other.redrawn_layers, other.train_rows, other.from_scratch, other.dropout)
        for other in others.values()
    ]
    assert table == [
        (0, 500, False, 0.5),
        (1, 500, False, 0.5),
        (2, 500, False, 0.3),
        (0, 500, True, 0.5),
        (2, None, False, 0.5),
        (0, None, True, 0.3),
    ]
    assert {other.training for other in others.values()} == {demo.training}
