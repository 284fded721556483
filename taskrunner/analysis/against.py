"""Two sweeps of one plan: a version, an image or an instance type against another."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from taskrunner.analysis import verdicts
from taskrunner.analysis.compare import all_judged, intervals
from taskrunner.analysis.load import METRICS, Measurement, Sweep
from taskrunner.analysis.spread import blocks_for, least
from taskrunner.errors import NotFoundError


def against(sweep: Sweep, other: Sweep, margin: str = "5 %") -> list[dict[str, Any]]:
    """This sweep against another, metric by metric, over the patterns that both have in all their blocks.

    Blocks of two sweeps have nothing in common: the unit is the block, and Welch's t (1947) compares their
    means. `regression` is true where this one is slower. Raises NotFoundError where they
    have nothing in common.
    """
    comparisons = [_compared(sweep, other, metric, margin) for metric in METRICS]
    if not any(one["pairs"] for one in comparisons):
        raise NotFoundError(
            f"{sweep.name} and {other.name} have no pattern in common", "give sweeps of one plan"
        )
    return all_judged(comparisons)


def _compared(sweep: Sweep, other: Sweep, metric: str, margin: str) -> dict[str, Any]:
    mine, theirs = (_logs(one.counting(), metric) for one in (sweep, other))
    names = sorted(_in_all(mine) & _in_all(theirs))
    about: dict[str, Any] = {
        "id": metric,
        "title": "this sweep against the other",
        "metric": metric,
        "hypothesis": "",
        "margin": margin,
        "smallest_effect": margin,
        "a": other.name,
        "b": sweep.name,
        "pairs": [[name, name] for name in names],
        "left_out": [[name, name] for name in sorted(_in_any(mine) & _in_any(theirs) - set(names))],
        "blocks": sorted(mine),
    }
    if not names:
        return {**about, "why": "no pattern has valid results in all blocks of both"}
    values = [
        [float(np.mean([block[name] for name in names])) for block in one.values()] for one in (theirs, mine)
    ]
    estimate = float(np.mean(values[1]) - np.mean(values[0]))
    reference = math.exp(float(np.mean(values[0])))
    about |= {
        "estimate": estimate,
        "ratio": math.exp(estimate),
        "reference_ms": reference,
        "difference_ms": reference * math.expm1(estimate),
        "regression": estimate > 0,
        "table": [{"a": name, "b": name, "ratio": _ratio(theirs, mine, name)} for name in names],
    }
    if min(map(len, values)) < 2:
        return {**about, "why": "one block on one side: no replicates"}
    smallest = math.expm1(verdicts.on_logarithms(margin, reference))
    return about | _welch(estimate, smallest, *values)


def _logs(measurements: Iterable[Measurement], metric: str) -> dict[int, dict[str, float]]:
    """The logarithms of the means by block and pattern."""
    found: dict[int, dict[str, float]] = defaultdict(dict)
    for one in measurements:
        value = one.value(metric)
        if value is not None:
            found[one.block][one.pattern] = math.log(value)
    return dict(found)


def _in_all(blocks: dict[int, dict[str, float]]) -> set[str]:
    return set.intersection(*map(set, blocks.values())) if blocks else set()


def _in_any(blocks: dict[int, dict[str, float]]) -> set[str]:
    return set[str]().union(*blocks.values())


def _ratio(theirs: dict[int, dict[str, float]], mine: dict[int, dict[str, float]], name: str) -> float:
    means = [float(np.mean([block[name] for block in one.values()])) for one in (theirs, mine)]
    return math.exp(means[1] - means[0])


def _welch(estimate: float, smallest: float, a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    shares = [float(np.var(values, ddof=1)) / len(values) for values in (a, b)]
    error = math.sqrt(sum(shares))
    freedom = min(len(a), len(b)) - 1.0
    if error > 0:
        freedom = sum(shares) ** 2 / sum(
            share**2 / (len(values) - 1) for share, values in zip(shares, (a, b), strict=True)
        )
    sd = error / math.sqrt(1 / len(a) + 1 / len(b))
    return {
        **intervals(estimate, error, freedom),
        "spread": sd,
        "freedom": freedom,
        "pooled": 2,
        "unequal": False,
        "detectable": least(error, freedom),
        "blocks_for_smallest": blocks_for(
            smallest, lambda blocks: (sd * math.sqrt(2 / blocks), 2.0 * (blocks - 1))
        ),
    }
