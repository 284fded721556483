"""Whether samples come in two kinds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

SPLIT = 10.0
"""By how much the BIC of two components must be lower: Kass and Raftery (1995), "very strong"."""
APART = 2.0
"""Ashman's D of two components that are clearly separate: Ashman, Bird and Zepf (1994)."""
FEWEST, FEWEST_EACH, FEWEST_DIP = 12, 3, 90
DIP_P = 0.05
SPLITS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95)
"""Shares of the samples with which the lower kind begins."""


def bimodal(values: Sequence[float]) -> dict[str, Any]:
    """Whether positive samples come in two kinds.

    `is_bimodal` when, on logarithms, a mixture of two normals of one variance beats a single one by more than
    10 in BIC, its centres are more than two standard deviations apart (Ashman's D > 2), each kind has three
    samples, and a gap wider than the standard deviation within a kind lies between them; or, from 90 samples
    on, when Hartigan's dip test (1985) rejects one mode (p < 0.05).

    `cv` is the coefficient of variation, which is no test: any long tail has a large one. `modes` are the two
    [centre, weight], the lower first, in the unit of the samples. `dip` and `p_value` are None where there
    are fewer samples, or the library diptest is not installed.
    """
    data = np.asarray(values, dtype=float)
    mean = float(data.mean()) if len(data) else 0.0
    result: dict[str, Any] = {
        "cv": float(data.std(ddof=1) / mean) if len(data) > 1 and mean else 0.0,
        "is_bimodal": False,
        "dip": None,
        "p_value": None,
        "modes": [],
    }
    if len(data) < FEWEST or data.min() <= 0 or np.ptp(data) == 0:
        return result
    logs = np.sort(np.log(data))
    centres, spread, weight, likelihood = _two(logs)
    n = len(logs)
    one = -n / 2 * (math.log(2 * math.pi * logs.var()) + 1)
    gain = (2 * math.log(n) - 2 * one) - (4 * math.log(n) - 2 * likelihood)
    apart = (centres[1] - centres[0]) / max(spread, 1e-12) > APART
    if gain > SPLIT and apart and _gap(logs, centres) > spread:
        result["is_bimodal"] = True
    if n >= FEWEST_DIP:
        _dip(result, data)
    if result["is_bimodal"]:
        result["modes"] = [[math.exp(centres[0]), 1 - weight], [math.exp(centres[1]), weight]]
    return result


def _gap(logs: Any, centres: tuple[float, float]) -> float:
    """The widest gap between the centres with enough samples on each side."""
    gaps = np.diff(logs)[FEWEST_EACH - 1 : len(logs) - FEWEST_EACH]
    left, right = (
        logs[FEWEST_EACH - 1 : len(logs) - FEWEST_EACH],
        logs[FEWEST_EACH : len(logs) - FEWEST_EACH + 1],
    )
    between = gaps[(right > centres[0]) & (left < centres[1])]
    return float(between.max()) if len(between) else 0.0


def _dip(result: dict[str, Any], data: Any) -> None:
    try:
        import diptest
    except ImportError:
        return
    dip, p_value = diptest.diptest(data)
    result["dip"], result["p_value"] = float(dip), float(p_value)
    result["is_bimodal"] = result["is_bimodal"] or result["p_value"] < DIP_P


def _two(logs: Any) -> tuple[tuple[float, float], float, float, float]:
    """The two normals of one variance that fit best, by expectation-maximisation from several splits of the
    sorted samples, all at once: centres, standard deviation, weight of the upper one, log likelihood.
    """
    n, floor = len(logs), max(float(logs.std()) * 0.01, 1e-9)
    cuts = [min(max(1, int(n * share)), n - 1) for share in SPLITS]
    centres = np.array([[logs[:cut].mean(), logs[cut:].mean()] for cut in cuts])
    spread = np.array([(logs[:cut].var() * cut + logs[cut:].var() * (n - cut)) / n for cut in cuts])
    spread = np.maximum(np.sqrt(spread), floor)
    weight = 1 - np.array(cuts) / n
    likelihood = np.full(len(cuts), -math.inf)
    left = np.arange(len(cuts))  # the splits that still change
    for _ in range(500):
        scale, upper = spread[left], weight[left]
        each = np.exp(-0.5 * ((logs - centres[left][:, :, None]) / scale[:, None, None]) ** 2)
        each *= (np.stack([1 - upper, upper], axis=1) / (scale[:, None] * math.sqrt(2 * math.pi)))[:, :, None]
        density = np.maximum(each.sum(axis=1), 1e-300)
        before, likelihood[left] = likelihood[left], np.log(density).sum(axis=1)
        shares = each / density[:, None, :]
        sums = np.maximum(shares.sum(axis=2), 1e-9)
        centres[left] = (shares * logs).sum(axis=2) / sums
        rest = (shares * (logs - centres[left][:, :, None]) ** 2).sum(axis=(1, 2))
        spread[left] = np.maximum(np.sqrt(rest / n), floor)
        weight[left] = sums[:, 1] / n
        left = left[likelihood[left] - before >= 1e-7 * n]
        if not len(left):
            break
    apart = np.where(centres[:, 0] < centres[:, 1], likelihood, -math.inf)
    best = int(apart.argmax())
    if apart[best] == -math.inf:
        return (float(logs[0]), float(logs[-1])), floor, 0.5, -math.inf
    low, high = map(float, centres[best])
    return (low, high), float(spread[best]), float(weight[best]), float(apart[best])
