"""The model's arithmetic against sums done by hand."""

import pytest

pytest.importorskip("triton")

from benchmarks.roofline import (
    CARDS,
    RECORD,
    SHAPES,
    Shape,
    attention_work,
    busy,
    predict,
    shared_share,
)
from kernels.aot import read_record
from kernels.gpus import ARCHITECTURES

BASE = SHAPES[0]


def one(shape, card, operation, direction):
    found = [
        p
        for p in predict(shape, card, read_record(RECORD))
        if (p.operation, p.direction) == (operation, direction)
    ]
    assert len(found) == 1
    return found[0]


def test_layer_norm_on_an_h100_takes_its_bytes_over_the_bandwidth():
    """32,768 rows of 768 in and out, two bytes each, and two float32 a row; over 3.35 TB/s."""
    found = one(BASE, "H100", "layer_norm", "forward")
    moved = 32768 * 768 * 4 + 32768 * 8
    assert found.megabytes == pytest.approx(moved / 1e6, abs=0.01)
    assert (found.binds, found.microseconds) == ("memory", pytest.approx(moved / 3.35e6, abs=0.01))


def test_attention_of_512_tokens_on_an_a100_by_hand():
    """Two products of 2·64 operations a score; 12 heads of 64 sequences; 312 TFLOP/s."""
    found = one(SHAPES[1], "A100", "attention", "forward")
    scores = 64 * 12 * 512 * 512
    assert found.busy["matrix"] == pytest.approx(scores * 256 / 312e6, rel=0.002)
    assert found.microseconds == max(found.busy.values()) == found.busy[found.binds]


def test_loop_counts_become_time():
    """2 instructions of a special unit in each of 4 warps, for 256 elements: 1 an element."""
    card, record = CARDS["H100"], {"instructions_per_element": 64.0, "special": 2}
    record |= {"matrix_work": 1.5, "limit": "shared (then issue, 50%)"}

    class Case:
        elements, constants = 256, {"num_warps": 4}

    work = next(iter(attention_work(Shape("", 64, 1, 0, 1, 512), set())))
    units = busy(work, card, Case, record)
    cycle = 1 / (1830 * 132)
    assert units["exponential"] == pytest.approx(512**2 / 16 * cycle)
    assert units["issue"] == pytest.approx(512**2 * 64 / 32 / 4 * cycle)
    assert units["matrix"] == pytest.approx(512**2 * 256 * 1.5 / 4096 * cycle)
    assert units["shared"] == pytest.approx(2 * units["issue"])
    assert units["memory"] == pytest.approx((4 * 512 * 64 * 2 + 4 * 512) / 3.35e6)


@pytest.mark.parametrize(
    ("limit", "share"),
    [
        ("shared (then matrix, 80%)", ("matrix", 1.25)),
        ("matrix (then shared, 80%)", ("matrix", 0.8)),
        ("memory (then issue, 31%)", None),
    ],
)
def test_shared_memory_is_read_from_the_record(limit, share):
    assert shared_share(limit) == share


@pytest.mark.errors
def test_what_cannot_be_read_is_refused():
    with pytest.raises(ValueError, match="^limit: expected 'unit .then unit, percent.', got 'x'$"):
        shared_share("x")
    with pytest.raises(ValueError, match="^kernels_aot.json: expected 'layer_norm forward' on sm"):
        predict(BASE, "A100", {})


@pytest.mark.parametrize(
    ("name", "teraflops"), [("A100", 312), ("H100", 989), ("B200", 2250), ("MI300X", 1307)]
)
def test_cards_reach_the_peaks_of_their_data_sheets(name, teraflops):
    card = CARDS[name]
    machine = ARCHITECTURES[card.architecture]
    cycles = card.ghz * 1e9 * card.multiprocessors
    assert machine.matrix_flops * cycles == pytest.approx(teraflops * 1e12, rel=0.005)
    assert machine.memory_bytes * cycles == pytest.approx(card.bandwidth, rel=0.01)
