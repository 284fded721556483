"""What a list of samples says, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .intervals import FEWEST_GROUPS, middle, percentile_interval, resampled
from .schema import TOO_SMALL

PERCENTILES = (50, 90, 95, 99)
MOST_RESAMPLED = 5000
"""Samples from which on the mean's and the median's interval take too long, and are of no interest."""


def summary(values: Sequence[float], raw: bool = True) -> dict[str, Any]:
    """n, mean, stdev, min, max, p50 to p99, their intervals, and the raw values; same unit as the input.

    The values are independent: one of each request. The mean's and the median's interval are bootstrapped
    (percentile method, 2,000 resamples, a fixed seed), those of other percentiles are of order statistics.
    """
    data = np.asarray(values, dtype=float)
    figures = _figures(data)
    if 1 < len(data) <= MOST_RESAMPLED:
        resamples = np.random.default_rng(0).choice(data, (2000, len(data)))
        figures["mean_interval"] = middle(resamples.mean(axis=1))
        figures["p50_interval"] = middle(np.median(resamples, axis=1))
    ordered = np.sort(data)
    for p in PERCENTILES[1:]:
        if len(data):
            figures[f"p{p}_interval"] = percentile_interval(ordered, p / 100)
    if raw and len(data):
        figures["raw"] = [round(float(value), 6) for value in data]
    return figures


def summary_of_groups(groups: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The same of values that belong together, as the gaps of one stream do: whole groups are resampled.
    Without raw values.
    """
    parts = [np.asarray(group, dtype=float) for group in groups if len(group)]
    data = np.concatenate(parts) if parts else np.empty(0)
    figures = _figures(data)
    if not len(data):
        return figures
    names = ["mean", *(f"p{p}" for p in PERCENTILES)]
    if len(parts) < FEWEST_GROUPS:
        return {**figures, **{f"{name}_interval": TOO_SMALL for name in names}}
    # A percentile of few groups has no interval that holds; of large ones, fewer resamples do.
    n = max(200, min(2000, 40_000_000 // len(data)))
    values = resampled(parts, lambda all: np.array([all.mean(), *np.percentile(all, PERCENTILES)]), n)
    return {**figures, **{f"{name}_interval": middle(values[:, i]) for i, name in enumerate(names)}}


def _figures(data: Any) -> dict[str, Any]:
    n = len(data)
    if not n:
        return {"n": 0}
    return {
        "n": n,
        "mean": float(data.mean()),
        "stdev": float(data.std(ddof=1)) if n > 1 else 0.0,
        "min": float(data.min()),
        "max": float(data.max()),
        **{f"p{p}": float(np.percentile(data, p)) for p in PERCENTILES},
    }
