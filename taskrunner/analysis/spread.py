"""How much starts of one configuration differ, pooled over all that are replicated: the yardstick.

Model, on logarithms: pattern + block + start + rest, where the rest is what a pattern's requests add within a
start. A comparison of few patterns has more of the rest than one of many; of patterns of one configuration it
has nothing of the starts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from taskrunner.analysis.load import Measurement

LEVEL, POWER = 0.05, 0.8
UNEQUAL_P = 0.01
"""Below it configurations spread differently (Brown and Forsythe, 1974): only those compared are pooled."""
MOST_BLOCKS = 100
LARGEST = 700.0
"""Of a logarithm whose exponential is a number."""


SAME = 1e-10
"""A singular value below this share of the largest one is rounding."""


class Start(NamedTuple):
    """One start of a configuration: the mean logarithm over its patterns, each without its own mean."""

    configuration: str
    block: int
    value: float


class Starts(NamedTuple):
    """All starts, and what their patterns add: `rest` is its variance with `freedom`, `share` the mean of 1 /
    number of patterns.
    """

    found: Sequence[Start]
    rest: float
    freedom: int
    share: float


class Spread(NamedTuple):
    """Variances on logarithms: of a start's mean, and of a pattern within it, with degrees of freedom."""

    starts: float
    freedom: int
    rest: float
    rest_freedom: int
    share: float
    pooled: int
    """Configurations that it is pooled over."""
    blocks: int
    unequal: bool

    @property
    def sd(self) -> float:
        """The standard deviation of a start's mean."""
        return math.sqrt(self.starts)

    def of_block(self, of_starts: float, of_patterns: float) -> tuple[float, float]:
        """The variance of a weighted sum of one block's cells, and its degrees of freedom (Satterthwaite,
        1946).

        `of_starts` is the sum of squares of the weights that each configuration has, `of_patterns` that of
        each pattern.
        """
        more = max(0.0, of_patterns - of_starts * self.share)
        parts = (of_starts * self.starts, self.freedom), (more * self.rest, self.rest_freedom)
        variance = sum(part for part, _ in parts)
        below = sum(part**2 / freedom for part, freedom in parts if part > 0 and freedom)
        return variance, variance**2 / below if below > 0 else float(self.freedom)


def starts(measurements: Iterable[Measurement], metric: str, statistic: str = "mean") -> Starts:
    """The starts of each configuration; a pattern that one of them lacks counts in the others."""
    values: dict[str, dict[tuple[str, int], float]] = defaultdict(dict)
    for one in measurements:
        value = one.value(metric, statistic)
        if value is not None:
            values[one.configuration][one.pattern, one.block] = math.log(value)
    found: list[Start] = []
    rest, freedom = 0.0, 0
    shares = []
    for configuration, cells in sorted(values.items()):
        patterns, blocks = (sorted(set(names)) for names in zip(*cells, strict=True))
        fitted, residuals, left = _two_ways(cells, patterns, blocks)
        found += [Start(configuration, block, value) for block, value in zip(blocks, fitted, strict=True)]
        rest += float(residuals @ residuals)
        freedom += left
        shares += [len(blocks) / len(cells)]
    return Starts(
        found, rest / freedom if freedom else 0.0, freedom, float(np.mean(shares)) if shares else 1.0
    )


def _two_ways(
    cells: Mapping[tuple[Any, Any], float], rows: Sequence[Any], columns: Sequence[Any]
) -> tuple[list[float], Any, int]:
    """Least squares with a term for each row and each column, also where cells are missing.

    Gives the columns' terms (their mean is that of the cells), the residuals, their degrees of freedom.
    """
    numbers = [{name: number for number, name in enumerate(names)} for names in (rows, columns)]
    row = np.array([numbers[0][name] for name, _ in cells])
    column = np.array([numbers[1][name] for _, name in cells])
    values = np.array(list(cells.values()))
    # There may be thousands of rows, and there are few columns: the rows are eliminated.
    there = np.zeros((len(rows), len(columns)))
    there[row, column] = 1.0
    counts = there.sum(axis=1)
    sums = np.bincount(row, values, len(rows))
    weighted = there / counts[:, None]
    left = np.diag(there.sum(axis=0)) - there.T @ weighted
    right = np.bincount(column, values, len(columns)) - weighted.T @ sums
    terms, _, rank, _ = np.linalg.lstsq(left, right, rcond=SAME)
    own = (sums - there @ terms) / counts
    residuals = values - own[row] - terms[column]
    centred = terms - terms.mean() + values.mean()
    return [float(value) for value in centred], residuals, len(cells) - len(rows) - int(rank)


def spread(every: Starts, compared: Iterable[str] = ()) -> Spread | None:
    """The residual of configuration + block; None without replicates.

    If the configurations spread differently, only the `compared` ones are pooled.
    """
    counts: dict[str, int] = defaultdict(int)
    for one in every.found:
        counts[one.configuration] += 1
    replicated = [one for one in every.found if counts[one.configuration] > 1]
    own, unequal = set(compared), False
    fit = _fit(replicated)
    if fit is None:
        return None
    if own and own < {one.configuration for one in replicated} and _unequal(replicated, fit[2]):
        part = [one for one in replicated if one.configuration in own]
        if (narrow := _fit(part)) is not None:
            replicated, fit, unequal = part, narrow, True
    pooled = len({one.configuration for one in replicated})
    blocks = len({one.block for one in replicated})
    return Spread(fit[0], fit[1], every.rest, every.freedom, every.share, pooled, blocks, unequal)


def _fit(found: Sequence[Start]) -> tuple[float, int, Any] | None:
    """The variance of the residuals of configuration + block, its degrees of freedom, the residuals."""
    configurations = sorted({one.configuration for one in found})
    blocks = sorted({one.block for one in found})
    if len(configurations) < 2 or len(blocks) < 2:
        return None
    cells = {(one.configuration, one.block): one.value for one in found}
    _, residuals, freedom = _two_ways(cells, configurations, blocks)
    if freedom < 1:
        return None
    return float(residuals @ residuals) / freedom, freedom, residuals


def between(every: Starts) -> float | None:
    """The standard deviation between starts of one configuration; None for a single start."""
    values = [one.value for one in every.found]
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


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


def least(error: float, freedom: float) -> float:
    """The least ratio, less one, that is found in four of five: (t(1 - level/2) + t(power)) * error."""
    from scipy.special import stdtrit

    factor = stdtrit(freedom, 1 - LEVEL / 2) + stdtrit(freedom, POWER)
    return math.expm1(min(float(factor) * error, LARGEST))


def blocks_for(effect: float, error: Callable[[int], tuple[float, float]]) -> int | None:
    """How many blocks find a ratio of 1 + effect in four of five sweeps; None for more than a hundred.

    `error` gives the standard error of so many blocks, and its degrees of freedom.
    """
    return next((blocks for blocks in range(2, MOST_BLOCKS + 1) if least(*error(blocks)) <= effect), None)
