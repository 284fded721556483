"""How sure a statistic is: 95 % intervals of what one start of the servers says.

They cover other requests to the same servers, not another start of them: that differs by more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .schema import TOO_SMALL

CONFIDENCE = 0.95
RESAMPLES = 2000
FEWEST_GROUPS = 12
"""Requests under which a resampled percentile says nothing."""


def resampled(groups: Sequence[Any], of: Callable[[Any], Any], n: int = RESAMPLES) -> Any:
    """Values of a statistic over resamples of whole groups: what one request brought varies together.

    `of` gets an array and returns a vector. Cluster bootstrap: Davison and Hinkley, Bootstrap Methods and
    their Application (1997), 3.8. Fixed seed.
    """
    chance, count = np.random.default_rng(0), len(groups)
    draws = (chance.integers(0, count, count) for _ in range(n))
    return np.array([of(np.concatenate([groups[i] for i in draw])) for draw in draws])


def middle(values: Any) -> list[float | None]:
    """The range between the outer 2.5 % on both sides."""
    half = (1 - CONFIDENCE) / 2 * 100
    return [float(value) for value in np.percentile(values, [half, 100 - half])]


def percentile_interval(ordered: Any, p: float) -> list[float | None] | str:
    """An interval that holds the percentile with the confidence: the narrowest two-sided one of order
    statistics, else one from below only ([low, None] has the largest sample above it in 95 % of cases), or
    "n too small".

    `ordered` are independent samples, ascending. With n samples the largest is above the percentile with the
    probability 1 - p^n: p95 needs 59 samples, p99 299. Hahn and Meeker, Statistical Intervals (1991), 5.2.
    """
    n = len(ordered)
    if 1 - p**n < CONFIDENCE:
        return TOO_SMALL
    below = np.cumsum([_binomial(n, k, p) for k in range(n + 1)])  # P(at most k samples are below it)
    # Between the samples with the ranks l and u (from 0) with the probability P(l + 1 <= K <= u).
    centre, best = n * p, None
    for low in range(n):
        high = int(np.searchsorted(below, below[low] + CONFIDENCE))
        if high >= n:
            break
        width = (high - low, abs(low + high - 2 * centre))
        if best is None or width < best[0]:
            best = (width, low, high)
    if best is None:
        lower = int(np.searchsorted(below, 1 - CONFIDENCE, side="right")) - 1
        return [float(ordered[max(lower, 0)]), None]
    return [float(ordered[best[1]]), float(ordered[best[2]])]


def _binomial(n: int, k: int, p: float) -> float:
    logarithm = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(logarithm + k * math.log(p) + (n - k) * math.log1p(-p))
