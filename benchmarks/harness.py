"""Time rival calls fairly: in turns, each with cold caches, as medians and ratios with spreads.

Rivals take turns (A B A B …), so that a clock that slows down slows both. Before each call the
second level cache is overwritten, as other layers would have done. On a GPU, events on the device
are what is timed; the overwriting also keeps it busy while the call is still being launched, so a
launch costs nothing unless it takes longer than that.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

Call = Callable[[], object]
FLUSHED_BYTES = 2**30  # many times the largest cache: a third of a millisecond on an H100


class Clock(Protocol):
    """Run a call and give its seconds."""

    def __call__(self, call: Call) -> float: ...  # noqa: D102


class GpuClock:
    """Seconds between two events on the current device, after its caches were overwritten."""

    def __init__(self, device: torch.device):
        self._flushed = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device=device)

    def __call__(self, call: Call) -> float:
        """See `Clock`."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flushed.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def cpu_clock(call: Call) -> float:
    """Seconds on the host's clock; see `Clock`."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Spread:
    """The median of a sample, and where its middle half lies."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(sample: list[float]) -> "Spread":
        """Summarise at least two numbers."""
        low, median, high = statistics.quantiles(sample, n=4, method="inclusive")
        return Spread(median, low, high)

    def scaled(self, factor: float) -> "Spread":
        """Change the unit."""
        return Spread(self.median * factor, self.low * factor, self.high * factor)


def in_turns(
    rivals: Mapping[str, Call], clock: Clock, rounds: int, warmup: int = 3
) -> dict[str, list[float]]:
    """Give each rival's seconds, round by round; the warm-up's rounds are not among them."""
    if rounds < 2:
        raise ValueError(f"rounds: expected at least 2, got {rounds}")
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for turn in range(warmup + rounds):
        for name, call in rivals.items():
            taken = clock(call)
            if turn >= warmup:
                seconds[name].append(taken)
    return seconds


def ratio(ours: list[float], theirs: list[float]) -> Spread:
    """How many times as long theirs takes, from the ratio of each round."""
    return Spread.of([b / a for a, b in zip(ours, theirs, strict=True)])
