"""The arithmetic of the gap, and that both networks are fine-tuned alike."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.speedrun_labels import LabelsBenchmark, configure, describe, summarise

CONFIG = LabelsBenchmark(
    Path("m"), Path("f"), dropout=0.3, scratch_dropout=0.2, redrawn_layers=1, runs=Path("r")
)


def test_means_deviations_and_the_gap():
    result = summarise([0.80, 0.82, 0.84], [0.76, 0.78, 0.77])
    assert result["means"] == pytest.approx([0.82, 0.77])
    assert result["standard_deviations"] == pytest.approx([0.02, 0.01])
    assert result["gap"] == pytest.approx(0.05)
    assert result["standard_error"] == pytest.approx(((4 + 1) * 1e-4 / 3) ** 0.5)
    assert describe(result).splitlines() == [
        "pretrained  82.0 ± 2.0 %   80.0 82.0 84.0",
        "scratch     77.0 ± 1.0 %   76.0 78.0 77.0",
        "gap +5.0 points, standard error 1.3",
    ]


def test_the_networks_differ_in_their_start_alone_and_in_what_suits_each():
    pretrained, scratch = (configure(CONFIG, 2, is_scratch) for is_scratch in (False, True))
    assert (pretrained.from_scratch, pretrained.redrawn_layers, pretrained.dropout) == (
        False,
        1,
        0.3,
    )
    assert (scratch.from_scratch, scratch.redrawn_layers, scratch.dropout) == (True, 0, 0.2)
    assert pretrained.out != scratch.out and pretrained.seed == scratch.seed == 2
    same = {"from_scratch": False, "redrawn_layers": 0, "dropout": None, "out": Path("o")}
    assert replace(pretrained, **same) == replace(scratch, **same)


@pytest.mark.errors
def test_one_seed_has_no_deviation():
    with pytest.raises(ValueError, match="seeds: expected 2 or more, got 1"):
        replace(CONFIG, seeds=1)
