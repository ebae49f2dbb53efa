import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert.training.config import TrainingConfig
from bert.training.schedule import is_due, is_spent, learning_rate, progress_of_step
from bert.training.span import Span


def rate(progress, **settings):
    return learning_rate(TrainingConfig(learning_rate=2.0, **settings), progress)


def test_warm_up_then_linear_to_zero():
    got = [rate(p, warmup=0.2) for p in (0.0, 0.1, 0.2, 0.6, 1.0)]
    assert got == pytest.approx([0, 1, 2, 1, 0])


def test_warm_up_then_constant():
    got = [rate(p, warmup=0.5, schedule="constant") for p in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert got == pytest.approx([0, 1, 2, 2, 2])


def test_no_warm_up():
    assert rate(0.0, warmup=0.0) == 2.0


@given(
    st.floats(0, 1),
    st.floats(0, 0.99),
    st.sampled_from(["linear", "constant"]),
)
def test_the_rate_lies_between_zero_and_the_peak(progress, warmup, schedule):
    value = rate(progress, warmup=warmup, schedule=schedule)
    assert 0 <= value <= 2.0 and math.isfinite(value)


def test_steps_take_their_middle_so_that_none_is_wasted():
    progress = [progress_of_step(Span(steps=4), k, 1e9, 1e9) for k in range(4)]
    assert progress == [0.125, 0.375, 0.625, 0.875]


def test_wall_clock_follows_the_clock_without_the_reserve():
    total = Span(seconds=100.0)
    assert progress_of_step(total, 7, 40.0, 20.0) == 0.5
    assert progress_of_step(total, 7, 90.0, 20.0) == 1.0
    assert progress_of_step(total, 7, 0.0, 200.0) == 1.0


def test_a_budget_is_spent_when_nothing_more_fits():
    assert [is_spent(Span(steps=3), k, 0.0, 0.0) for k in (2, 3, 4)] == [False, True, True]
    total = Span(seconds=10.0)
    assert not is_spent(total, 0, 6.9, 2.0, 1.0)
    assert is_spent(total, 0, 7.1, 2.0, 1.0)
    assert not is_spent(total, 0, 7.0, 2.0, 1.0)
    assert is_spent(total, 0, 8.0, 2.0)


def test_intervals():
    every = Span(steps=10)
    assert [k for k in range(1, 35) if is_due(every, k, k - 1, 0.0, 0.0)] == [10, 20, 30]
    # One at step 13, out of turn, doesn't shift the next.
    assert [k for k in range(13, 25) if is_due(every, k, 13, 0.0, 0.0)] == list(range(20, 25))
    assert not is_due(every, 20, 20, 0.0, 0.0)
    assert not is_due(None, 20, 10, 1e9, 0.0)
    seconds = Span(seconds=5.0)
    assert [t for t in range(10) if is_due(seconds, 1, 0, float(t), 2.0)] == [7, 8, 9]
    assert not is_due(seconds, 1, 1, 1e9, 0.0)
