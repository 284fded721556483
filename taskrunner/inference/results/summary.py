"""What a list of samples says, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .schema import TOO_SMALL

CONFIDENCE = 0.95
RESAMPLES = 2000
PERCENTILES = (50, 90, 95, 99)
SPLIT = 10.0
"""By how much the BIC of two components must be lower: Kass and Raftery (1995), "very strong"."""
SMALLEST = 12


def summary(values: Sequence[float], raw: bool = True) -> dict[str, Any]:
    """n, mean, stdev, min, max, p50 to p99, their intervals, and the raw values; same unit as the input.

    The mean's and the median's interval are bootstrapped (percentile method, 2,000 resamples, a fixed
    seed). A percentile's is the one-sided or two-sided distribution-free one from order statistics (Hahn
    and Meeker, Statistical Intervals, 5.2), or "n too small".
    """
    data = np.asarray(values, dtype=float)
    n = len(data)
    if not n:
        return {"n": 0}
    found: dict[str, Any] = {
        "n": n, "mean": float(data.mean()), "stdev": float(data.std(ddof=1)) if n > 1 else 0.0,
        "min": float(data.min()), "max": float(data.max()),
    }  # fmt: skip
    for p in PERCENTILES:
        found[f"p{p}"] = float(np.percentile(data, p))
    if n > 1:
        resampled = np.random.default_rng(0).choice(data, (RESAMPLES, n)) if n <= 5000 else None
        if resampled is not None:
            found["mean_interval"] = _middle(resampled.mean(axis=1))
            found["p50_interval"] = _middle(np.median(resampled, axis=1))
    ordered = np.sort(data)
    for p in PERCENTILES[1:]:
        found[f"p{p}_interval"] = percentile_interval(ordered, p / 100)
    if raw:
        found["raw"] = [round(float(value), 9) for value in data]
    return found


def _middle(values: Any) -> list[float]:
    half = (1 - CONFIDENCE) / 2 * 100
    return [float(value) for value in np.percentile(values, [half, 100 - half])]


def percentile_interval(ordered: Any, p: float) -> list[float | None] | str:
    """An interval that holds the percentile with the confidence: two-sided where the samples allow that, else
    from below only ([low, None] has the largest sample above it in 95 % of cases), or "n too small".

    `ordered` are the samples, ascending. With n samples the largest is above the percentile with the
    probability 1 - p^n: p95 needs 59 samples, p99 299.
    """
    n = len(ordered)
    if 1 - p**n < CONFIDENCE:
        return TOO_SMALL
    below = np.cumsum([_binomial(n, k, p) for k in range(n + 1)])  # P(at most k samples are below it)
    half = (1 - CONFIDENCE) / 2
    low = int(np.searchsorted(below, half, side="right")) - 1
    high = int(np.searchsorted(below, 1 - half, side="left")) + 1
    if high >= n:
        lower = int(np.searchsorted(below, 1 - CONFIDENCE, side="right")) - 1
        return [float(ordered[max(lower, 0)]), None]
    return [float(ordered[max(low, 0)]), float(ordered[high])]


def _binomial(n: int, k: int, p: float) -> float:
    logarithm = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(logarithm + k * math.log(p) + (n - k) * math.log1p(-p))


def bimodal(values: Sequence[float]) -> dict[str, Any]:
    """Whether the samples come in two kinds: a mixture of two normals against one, on the logarithms, by BIC.

    `cv` is the coefficient of variation, which is no test (any long tail has a large one). `modes` are the
    two (centre, weight), the lower first, where they are found. `dip` and `p_value` are Hartigan's (1985),
    where the library diptest is installed.
    """
    data = np.asarray(values, dtype=float)
    mean = float(data.mean()) if len(data) else 0.0
    found: dict[str, Any] = {
        "cv": float(data.std(ddof=1) / mean) if len(data) > 1 and mean else 0.0,
        "is_bimodal": False, "dip": None, "p_value": None, "modes": [],
    }  # fmt: skip
    if len(data) < SMALLEST or data.min() <= 0 or np.ptp(data) == 0:
        return found
    logs = np.log(data)
    one = _normal(logs, logs.mean(), logs.std())
    best, centres, weight = _two(logs)
    n = len(logs)
    gain = (2 * math.log(n) - 2 * np.log(one).sum()) - (5 * math.log(n) - 2 * best)
    if gain > SPLIT:
        order = np.argsort(centres)
        weights = np.array([1 - weight, weight])
        found["is_bimodal"] = True
        found["modes"] = [[float(np.exp(centres[i])), float(weights[i])] for i in order]
    try:
        import diptest  # type: ignore[import-not-found]
    except ImportError:
        return found
    dip, p_value = diptest.diptest(data)
    return {**found, "dip": float(dip), "p_value": float(p_value)}


def _two(logs: Any) -> tuple[float, Any, float]:
    """The two normals that fit best: expectation-maximisation from several splits of the sorted samples."""
    ordered, floor = np.sort(logs), max(logs.std() * 0.02, 1e-9)
    best: tuple[float, Any, float] = (-math.inf, np.zeros(2), 0.5)
    for share in (0.2, 0.35, 0.5, 0.65, 0.8):
        cut = min(max(2, int(len(logs) * share)), len(logs) - 2)
        centres = np.array([ordered[:cut].mean(), ordered[cut:].mean()])
        spreads = np.maximum([ordered[:cut].std(), ordered[cut:].std()], floor)
        weight = 1 - cut / len(logs)
        for _ in range(200):
            each = np.stack([(1 - weight) * _normal(logs, centres[0], spreads[0]),
                             weight * _normal(logs, centres[1], spreads[1])])  # fmt: skip
            whole = np.maximum(each.sum(axis=0), 1e-300)
            likelihood = float(np.log(whole).sum())
            shares = each / whole
            sums = np.maximum(shares.sum(axis=1), 1e-9)
            moved = (shares * logs).sum(axis=1) / sums
            spreads = np.maximum(np.sqrt((shares * (logs - moved[:, None]) ** 2).sum(axis=1) / sums), floor)
            weight, still = float(sums[1] / len(logs)), bool(np.allclose(moved, centres, rtol=1e-9))
            centres = moved
            if still:
                break
        if likelihood > best[0] and 0.02 < weight < 0.98:
            best = (likelihood, centres, weight)
    return best


def _normal(x: Any, centre: Any, spread: Any) -> Any:
    spread = max(float(spread), 1e-12)
    return np.exp(-0.5 * ((x - centre) / spread) ** 2) / (spread * math.sqrt(2 * math.pi))
