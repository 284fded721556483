"""When the client itself was late: a clock that ticks in its loop, and the time between two ticks that came
late. What arrived meanwhile has the time of its end.
"""

from __future__ import annotations

import asyncio
import bisect
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

POLL_S = 0.005
"""Seconds between two ticks."""
TICK_S = 0.001
"""What libuv's timers are rounded to."""
SHORTEST_S = 0.0005
"""A tick that is late by less is on time."""


class Stall(NamedTuple):
    """When the loop did not run, as far as a late tick tells; times of time.perf_counter."""

    start: float
    end: float


def watch(loop: asyncio.AbstractEventLoop, stalls: list[Stall], over: Callable[[], bool]) -> None:
    """Note the stalls of a loop until it is `over`."""

    def tick(before: float) -> None:
        now = time.perf_counter()
        late = now - before - POLL_S - TICK_S
        if late > SHORTEST_S:
            # A tick falls into a stall anywhere: so that was twice as long, but began after the tick before.
            stalls.append(Stall(max(before, now - 2 * late), now))
        if not over():
            loop.call_later(POLL_S, tick, now)

    loop.call_later(POLL_S, tick, time.perf_counter())


class Lateness:
    """How late the times may be that a client has noted between `began` and `ended`."""

    def __init__(self, stalls: Sequence[Stall], began: float, ended: float) -> None:
        self.stalls = sorted(stall for stall in stalls if stall.end > began and stall.start < ended)
        self._ends = [stall.end for stall in self.stalls]
        self.window = max(ended - began, 0.0)

    def at(self, noted: float) -> float:
        """Seconds by which something may have come earlier than it was noted; 0 outside of stalls.

        What has piled up is worked off after the tick: so what is noted before the next one counts, too.
        """
        index = bisect.bisect_left(self._ends, noted - POLL_S)
        late = 0.0
        for stall in self.stalls[index : index + 2]:
            if stall.start < noted <= stall.end + POLL_S:
                late = max(late, min(noted, stall.end) - stall.start)
        return late

    def quantile(self, p: float) -> float:
        """Seconds that what comes at any moment of the window would be late by, in the share p of moments.

        A stall of length L makes late by more than x in max(0, L - x) of the time, so that a long one counts
        as the many polls that it has swallowed.
        """
        lengths = [stall.end - stall.start for stall in self.stalls]
        low, high = 0.0, max(lengths, default=0.0)
        for _ in range(60):
            x = (low + high) / 2
            if sum(max(0.0, length - x) for length in lengths) > (1 - p) * self.window:
                low = x
            else:
                high = x
        return high if low else 0.0

    def told(self) -> dict[str, Any]:
        """Milliseconds, for a result."""
        lengths = [stall.end - stall.start for stall in self.stalls]
        return {
            "unit": "ms",
            "stalls": len(lengths),
            "max": max(lengths, default=0.0) * 1e3,
            "p50": self.quantile(0.5) * 1e3,
            "p99": self.quantile(0.99) * 1e3,
            "share": sum(lengths) / self.window if self.window else 0.0,
        }
