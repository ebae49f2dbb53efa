"""What a user sees while a run goes: one bar and lines above it; without a terminal, lines."""

import sys

from tqdm import tqdm

from bert.training.distributed import is_first_process
from bert.training.span import Span
from bert.training.state import TrainingState

LINE_SHARE = 0.1
"""Of the budget: what is between two lines where no terminal is, at most."""
LINE_SECONDS = 30.0
"""Of the run: the same, in time."""


def say(message: str) -> None:
    """Print a line to the standard error, above the bar if there is one; only the first does."""
    if is_first_process():
        tqdm.write(message, file=sys.stderr)


class ProgressBar:
    """A bar over the budget, whatever it counts; where no terminal is, a line now and then."""

    def __init__(self, total: Span) -> None:
        self._total = total
        self._speed: float | None = None
        self._next_part = 0
        self._next_at = 0.0
        self._bar = tqdm(
            total=1.0,
            bar_format="{percentage:3.0f}%|{bar}| {desc}",
            dynamic_ncols=True,
            disable=None if is_first_process() else True,
            leave=True,
        )

    def update(self, state: TrainingState, tokens_per_second: float) -> None:
        """Show where the run stands; the speed is that of the last twenty steps or so."""
        before = tokens_per_second if self._speed is None else self._speed
        self._speed = 0.95 * before + 0.05 * tokens_per_second
        done, left = share_and_seconds_left(self._total, state)
        text = describe(self._total, state, self._speed, left)
        if self._bar.disable:
            self._tell_when_due(text, done, state.elapsed)
        else:
            self._bar.set_description_str(text, refresh=False)
            self._bar.update(done - self._bar.n)

    def _tell_when_due(self, text: str, done: float, elapsed: float) -> None:
        """Print the text as a line, so that a log file shows life."""
        part = int(done / LINE_SHARE + 1e-9)
        if part >= self._next_part or elapsed >= self._next_at:
            self._next_part = part + 1
            self._next_at = elapsed + LINE_SECONDS
            say(text)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


def share_and_seconds_left(total: Span, state: TrainingState) -> tuple[float, float]:
    """Return the spent share of the budget, and how long the rest takes at this run's pace."""
    if total.seconds is not None:
        left = max(total.seconds - state.elapsed, 0.0)
        return 1.0 - left / total.seconds, left
    done, all_of_it = (
        (state.step, total.steps) if total.steps is not None else (state.tokens, total.tokens)
    )
    assert all_of_it is not None
    left = max(all_of_it - done, 0) * state.elapsed / max(done, 1)
    return min(done / all_of_it, 1.0), left


def describe(
    total: Span, state: TrainingState, tokens_per_second: float, seconds_left: float
) -> str:
    """Return the bar's text."""
    place = f"step {state.step}"
    if total.steps is not None:
        place += f"/{total.steps}"
    if total.tokens is not None:
        place += f", {_short(state.tokens)}/{_short(total.tokens)} tokens"
    loss = "loss -" if state.loss is None else f"loss {state.loss:.4f}"
    left = tqdm.format_interval(round(seconds_left))
    return f"{place}, {loss}, {_short(tokens_per_second)} tokens/s, {left} left"


def _short(number: int | float) -> str:
    return tqdm.format_sizeof(number)
