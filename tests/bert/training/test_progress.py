import io
import sys

import pytest

from bert.training.progress import ProgressBar, describe, say, share_and_seconds_left
from bert.training.span import Span
from bert.training.state import TrainingState


def test_the_time_left_is_the_budgets_or_what_the_rest_takes():
    state = TrainingState(step=25, elapsed=50.0)
    assert share_and_seconds_left(Span(steps=100), state) == (0.25, 150.0)
    assert share_and_seconds_left(Span(seconds=200.0), state) == (0.25, 150.0)
    state.tokens = 500
    assert share_and_seconds_left(Span(tokens=2000), state) == (0.25, 150.0)


@pytest.mark.parametrize("total", [Span(steps=3), Span(tokens=3), Span(seconds=3.0)])
def test_the_ends(total):
    assert share_and_seconds_left(total, TrainingState())[0] == 0.0
    over = TrainingState(step=9, tokens=9, elapsed=9.0)
    assert share_and_seconds_left(total, over) == (1.0, 0.0)


def test_the_text():
    state = TrainingState(step=7, loss=2.5, elapsed=1.0)
    text = describe(Span(steps=10), state, 12345.0, 65.4)
    assert text == "step 7/10, loss 2.5000, 12.3k tokens/s, 01:05 left"
    text = describe(Span(seconds=10.0), TrainingState(), 0.0, 3605.0)
    assert text == "step 0, loss -, 0.00 tokens/s, 1:00:05 left"
    state.tokens = 1_234_567
    text = describe(Span(tokens=20_000_000), state, 12345.0, 65.4)
    assert text == "step 7, 1.23M/20.0M tokens, loss 2.5000, 12.3k tokens/s, 01:05 left"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_the_bar_is_for_terminals_and_lines_are_for_all(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream())
    bar = ProgressBar(Span(steps=4))
    bar.update(TrainingState(step=1, loss=2.0, elapsed=1.0), 100.0)
    bar.update(TrainingState(step=4, loss=1.5, elapsed=2.0), 300.0)
    say("a line")
    bar.close()
    shown = sys.stderr.getvalue()
    assert "a line\n" in shown
    assert ("100%" in shown) == ("%" in shown) == (stream is Terminal)
    assert "loss 1.5000, 110 tokens/s" in shown


@pytest.mark.parametrize(
    ("steps", "taken", "step_seconds", "told"),
    [
        (200, 200, 0.01, [1, *range(20, 201, 20)]),  # each tenth of the budget
        (1000, 99, 1.0, [1, 31, 61, 91]),  # within a tenth, each half minute
        (3, 3, 1.0, [1, 2, 3]),
    ],
)
def test_without_a_terminal_a_line_comes_each_tenth_or_half_minute(
    monkeypatch, steps, taken, step_seconds, told
):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    bar = ProgressBar(Span(steps=steps))
    for step in range(1, taken + 1):
        bar.update(TrainingState(step=step, loss=2.0, elapsed=step * step_seconds), 100.0)
    lines = sys.stderr.getvalue().splitlines()
    assert [int(line.split()[1].partition("/")[0]) for line in lines] == told
