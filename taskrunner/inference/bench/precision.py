"""When a measurement has enough requests: its medians are known well enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..results.intervals import percentile_interval
from .connection import Exchange

GROWTH = 1.2
"""From one look to the next: so few looks that stopping at a lucky one costs little coverage."""


class Target(NamedTuple):
    """The half width of the 95 % intervals of the median TTFT and TPOT, as a share of the medians, and the
    least number of requests.
    """

    share: float
    least: int
    output_tokens: int


class Enough:
    """Hears of each exchange, and says whether no more requests are needed.

    The intervals are distribution-free, of order statistics. They are looked at whenever there are a fifth
    more requests; as only their width decides, not where the medians are, the medians are not biased.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._next = float(target.least)
        self._ttft: list[float] = []
        self._tpot: list[float] = []

    def __call__(self, exchange: Exchange) -> bool:
        times = [at for at, data in exchange.pieces if b"data:" in data]
        if exchange.broken or exchange.status != 200 or not times:
            return False
        self._ttft.append(times[0] - exchange.scheduled)
        if self._target.output_tokens > 1:
            self._tpot.append((times[-1] - times[0]) / (self._target.output_tokens - 1))
        if len(self._ttft) < self._next:
            return False
        self._next = len(self._ttft) * GROWTH
        return all(known(values, self._target.share) for values in (self._ttft, self._tpot) if values)


def known(values: Sequence[float], share: float) -> bool:
    """Whether the median's interval is at most so wide to both sides, as a share of the median."""
    ordered = np.sort(np.asarray(values))
    interval = percentile_interval(ordered, 0.5)
    if isinstance(interval, str) or interval[0] is None or interval[1] is None:
        return False
    return interval[1] - interval[0] <= 2 * share * float(np.median(ordered))
