"""How much starts of one configuration differ, pooled over all that are replicated: the yardstick."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from taskrunner.analysis.load import Measurement

LEVEL, POWER = 0.05, 0.8
UNEQUAL_P = 0.01
"""Below it configurations spread differently (Brown and Forsythe, 1974): only those compared are pooled."""
MOST_BLOCKS = 100


class Start(NamedTuple):
    """One start of a configuration: the mean logarithm over the patterns that all its starts have."""

    configuration: str
    block: int
    value: float


class Spread(NamedTuple):
    """The standard deviation between starts, on logarithms, and its degrees of freedom."""

    sd: float
    freedom: int
    pooled: int
    """Configurations that it is pooled over."""
    unequal: bool


def starts(measurements: Iterable[Measurement], metric: str, statistic: str = "mean") -> list[Start]:
    """A value for each start of a configuration; patterns that one of its starts lacks are left out."""
    values: dict[str, dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for one in measurements:
        value = one.value(metric, statistic)
        if value is not None:
            values[one.configuration][one.block][one.pattern] = math.log(value)
    found = []
    for configuration, blocks in values.items():
        shared = sorted(set.intersection(*(set(each) for each in blocks.values())))
        for block, each in sorted(blocks.items()):
            if shared:
                found.append(Start(configuration, block, float(np.mean([each[name] for name in shared]))))
    return found


def spread(found: Sequence[Start], compared: Iterable[str] = ()) -> Spread | None:
    """The residual of configuration + block; None without replicates.

    If the configurations spread differently, only the `compared` ones are pooled.
    """
    replicated = [
        one for one in found if sum(other.configuration == one.configuration for other in found) > 1
    ]
    whole = _fit(replicated)
    if whole is None:
        return None
    own = set(compared)
    if own and own < {one.configuration for one in replicated} and _unequal(replicated, whole[2]):
        part = _fit([one for one in replicated if one.configuration in own])
        if part is not None:
            return Spread(part[0], part[1], len(own), True)
    return Spread(whole[0], whole[1], len({one.configuration for one in replicated}), False)


def between(found: Sequence[Start]) -> float | None:
    """The standard deviation between starts of one configuration; None for a single start."""
    values = [one.value for one in found]
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _fit(found: Sequence[Start]) -> tuple[float, int, Any] | None:
    """Least squares with a term for each configuration and each block, also where cells are missing."""
    configurations = sorted({one.configuration for one in found})
    blocks = sorted({one.block for one in found})
    if len(configurations) < 2 or len(blocks) < 2:
        return None
    design = np.zeros((len(found), len(configurations) + len(blocks)))
    for row, one in enumerate(found):
        design[row, configurations.index(one.configuration)] = 1.0
        design[row, len(configurations) + blocks.index(one.block)] = 1.0
    values = np.array([one.value for one in found])
    solution, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    freedom = len(found) - int(rank)
    if freedom < 1:
        return None
    residuals = values - design @ solution
    return float(math.sqrt(float(residuals @ residuals) / freedom)), freedom, residuals


def _unequal(found: Sequence[Start], residuals: Any) -> bool:
    """Brown and Forsythe's test on the residuals of the configurations."""
    from scipy.stats import levene

    groups: Mapping[str, list[float]] = defaultdict(list)
    for one, residual in zip(found, residuals, strict=True):
        groups[one.configuration].append(float(residual))
    if min(map(len, groups.values())) < 3:
        return False  # two residuals of a configuration are each other's opposite, more or less
    p = float(levene(*groups.values(), center="median").pvalue)
    return math.isfinite(p) and p < UNEQUAL_P


def detectable(blocks: int, configurations: int, sd: float) -> float | None:
    """The least ratio, less one, that is found in four of five sweeps; None without replicates.

    (t(1 - level/2) + t(power)) * sqrt(2 / blocks) * sd, with (configurations - 1) * (blocks - 1) degrees of
    freedom.
    """
    from scipy.special import stdtrit

    freedom = (configurations - 1) * (blocks - 1)
    if freedom < 1:
        return None
    factor = stdtrit(freedom, 1 - LEVEL / 2) + stdtrit(freedom, POWER)
    return math.exp(float(factor) * math.sqrt(2 / blocks) * sd) - 1


def blocks_for(effect: float, configurations: int, sd: float) -> int | None:
    """How many blocks find a ratio of 1 + effect in four of five sweeps; None for more than a hundred."""
    for blocks in range(2, MOST_BLOCKS + 1):
        least = detectable(blocks, configurations, sd)
        if least is not None and least <= effect:
            return blocks
    return None
