import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bert.training.config import Schedule, TrainingConfig
from bert.training.schedule import is_due, is_spent, learning_rate, progress_at
from bert.training.span import Place, Span

SCHEDULES = get_args(Schedule)


def rate(progress, **settings):
    return learning_rate(TrainingConfig(learning_rate=2.0, **settings), progress)


def at(steps=0, tokens=0, seconds=0.0):
    return Place(steps, tokens, seconds)


def test_warm_up_then_linear_to_zero():
    got = [rate(p, warmup=0.2) for p in (0.0, 0.1, 0.2, 0.6, 1.0)]
    assert got == pytest.approx([0, 1, 2, 1, 0])


def test_warm_up_then_constant():
    got = [rate(p, warmup=0.5, schedule="constant") for p in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert got == pytest.approx([0, 1, 2, 2, 2])


def test_cosine_is_at_half_of_the_peak_in_the_middle():
    got = [rate(p, warmup=0.2, schedule="cosine") for p in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)]
    half = math.sqrt(0.5)  # the cosine of an eighth of a turn
    assert got == pytest.approx([1, 2, 1 + half, 1, 1 - half, 0])


def test_inverse_sqrt_halves_while_the_progress_grows_fourfold():
    got = [rate(p, warmup=0.04, schedule="inverse_sqrt") for p in (0.02, 0.04, 0.16, 0.64)]
    assert got == pytest.approx([1, 2, 1, 0.5])


def test_wsd_stays_and_then_falls_fast_at_first():
    wsd = {"schedule": "wsd", "warmup": 0.1, "cooldown": 0.4}
    got = [rate(p, **wsd) for p in (0.05, 0.1, 0.6, 0.7, 1.0)]
    assert got == pytest.approx([1, 2, 2, 1, 0])
    assert rate(0.79, schedule="wsd") == 2.0 > rate(0.81, schedule="wsd")


def rates_of_transformers(make, steps, **settings):
    """The rates of a schedule of transformers at steps 0, 1, …"""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = make(optimizer, **settings)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_they_are_those_of_transformers(schedule):
    """Where a step's beginning is its place in the run, as transformers takes it."""
    from transformers import optimization as theirs

    warmup, cooldown, steps = 7, 12, 60
    make, settings = {
        "linear": (theirs.get_linear_schedule_with_warmup, {"num_training_steps": steps}),
        "constant": (theirs.get_constant_schedule_with_warmup, {}),
        "cosine": (theirs.get_cosine_schedule_with_warmup, {"num_training_steps": steps}),
        "inverse_sqrt": (theirs.get_inverse_sqrt_schedule, {}),
        "wsd": (
            theirs.get_wsd_schedule,
            {"num_training_steps": steps, "num_decay_steps": cooldown, "decay_type": "1-sqrt"},
        ),
    }[schedule]
    expected = rates_of_transformers(make, steps, num_warmup_steps=warmup, **settings)
    shares = {"warmup": warmup / steps}
    if schedule == "wsd":
        shares["cooldown"] = cooldown / steps
    got = [rate(k / steps, schedule=schedule, **shares) for k in range(steps)]
    # 1 − √x loses digits where x is near 1: x is off by 1e-16, the rate by a little more.
    assert got == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_no_warm_up():
    assert rate(0.0, warmup=0.0) == 2.0


@given(st.floats(0, 1), st.floats(0.01, 0.8), st.sampled_from(SCHEDULES))
def test_the_rate_lies_between_zero_and_the_peak(progress, warmup, schedule):
    value = rate(progress, warmup=warmup, schedule=schedule)
    assert 0 <= value <= 2.0 and math.isfinite(value)


@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from(SCHEDULES))
def test_after_the_warm_up_it_never_rises(one, other, schedule):
    earlier, later = sorted((max(one, 0.1), max(other, 0.1)))
    rates = [rate(p, warmup=0.1, schedule=schedule) for p in (earlier, later)]
    assert rates[0] >= rates[1]


def test_steps_take_their_middle_so_that_none_is_wasted():
    progress = [progress_at(Span(steps=4), at(k, 9**9, 1e9), 1e9) for k in range(4)]
    assert progress == [0.125, 0.375, 0.625, 0.875]


def test_tokens_are_a_share_of_the_budget():
    progress = [progress_at(Span(tokens=400), at(9, n, 1e9), 1e9) for n in (0, 100, 399, 410)]
    assert progress == [0.0, 0.25, 0.9975, 1.0]


def test_wall_clock_follows_the_clock_without_the_reserve():
    total = Span(seconds=100.0)
    assert progress_at(total, at(7, 7, 40.0), 20.0) == 0.5
    assert progress_at(total, at(7, 7, 90.0), 20.0) == 1.0
    assert progress_at(total, at(7, 7, 0.0), 200.0) == 1.0


def test_a_budget_is_spent_when_nothing_more_fits():
    assert [is_spent(Span(steps=3), at(k), 0.0) for k in (2, 3, 4)] == [False, True, True]
    tokens = [is_spent(Span(tokens=30), at(1, n), 0.0) for n in (29, 30, 31)]
    assert tokens == [False, True, True]
    total = Span(seconds=10.0)
    assert not is_spent(total, at(seconds=6.9), 2.0, 1.0)
    assert is_spent(total, at(seconds=7.1), 2.0, 1.0)
    assert not is_spent(total, at(seconds=7.0), 2.0, 1.0)
    assert is_spent(total, at(seconds=8.0), 2.0)


def test_intervals():
    every = Span(steps=10)
    assert [k for k in range(1, 35) if is_due(every, at(k), at(k - 1))] == [10, 20, 30]
    # One at step 13, out of turn, doesn't shift the next.
    assert [k for k in range(13, 25) if is_due(every, at(k), at(13))] == list(range(20, 25))
    assert not is_due(every, at(20), at(20))
    assert not is_due(None, at(20), at(10))
    tokens = Span(tokens=100)  # steps of 30 tokens
    due = [k for k in range(1, 14) if is_due(tokens, at(k, 30 * k), at(k - 1, 30 * k - 30))]
    assert due == [4, 7, 10]  # 120, 210, 300
    assert is_due(tokens, at(7, 210), at(6, 199)) and not is_due(tokens, at(7, 299), at(6, 200))
    seconds = Span(seconds=5.0)
    assert [t for t in range(10) if is_due(seconds, at(1, 9, t), at(0, 0, 2.0))] == [7, 8, 9]
    assert not is_due(seconds, at(1, 9, 1e9), at(1, 9, 0.0))
