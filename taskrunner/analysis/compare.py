"""Comparisons of a sweep: one primary number each, with its interval and its verdict.

Matched patterns are averaged on logarithms within each block; the difference of two configurations is that of
their starts, whose spread is pooled over all replicated configurations.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from taskrunner.analysis import verdicts
from taskrunner.analysis.load import METRICS, Measurement, Sweep
from taskrunner.analysis.spread import LEVEL, Spread, blocks_for, least, spread, starts

MOST_SIGNS = 16
"""Blocks up to which all sign flips are tried."""
FEWEST_SIGNS = 6
Pair = tuple[str, str]


class Asked(NamedTuple):
    """A comparison that is asked for: `b` against `a` over pairs of patterns (a, b)."""

    id: str
    title: str
    metric: str
    pairs: Sequence[Pair]
    hypothesis: str = ""
    margin: Any = None
    smallest_effect: Any = None


def asked(sweep: Sweep) -> list[Asked]:
    """The comparisons of the plan that the sweep is of."""
    stated = [
        Asked(**{name: one[name] for name in Asked._fields}) for one in sweep.schedule.get("comparisons", [])
    ]
    return [one._replace(metric=_metric(one.metric)) for one in stated]


def _metric(name: str) -> str:
    return name if name in METRICS else "e2e_latency" if name == "e2e" else "ttft"


def compare(sweep: Sweep) -> list[dict[str, Any]]:
    """All comparisons of a sweep's plan."""
    return compare_all(sweep.counting(), asked(sweep))


def compare_all(measurements: Sequence[Measurement], asked: Iterable[Asked]) -> list[dict[str, Any]]:
    """These comparisons, with p values corrected for their number (Holm, 1979)."""
    return all_judged([comparison(measurements, one) for one in asked])


def all_judged(comparisons: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The verdicts of all that are made at once: p values are corrected for their number."""
    with_p = [one for one in comparisons if "p" in one]
    for one, value in zip(with_p, holm([one["p"] for one in with_p]), strict=True):
        one["p_holm"] = value
    return [_judged(one) for one in comparisons]


def holm(values: Sequence[float]) -> list[float]:
    """The p values corrected for their number (Holm, 1979), in their order."""
    corrected = [0.0] * len(values)
    least = 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        least = max(least, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = least
    return corrected


def comparison(measurements: Sequence[Measurement], asked: Asked, statistic: str = "mean") -> dict[str, Any]:
    """One comparison: ratio b / a with its intervals; without a verdict."""
    cells: dict[tuple[str, int], Measurement] = {(one.pattern, one.block): one for one in measurements}
    pairs, blocks = complete(asked.pairs, cells, asked.metric, statistic)
    about = {
        **asked._asdict(),
        "statistic": statistic,
        "pairs": [list(pair) for pair in pairs],
        "left_out": [list(pair) for pair in asked.pairs if pair not in pairs],
        "blocks": blocks,
    }
    if not pairs:
        return {**about, "why": "no matched pair has valid results on both sides in one block"}
    logs = {
        key: math.log(one.value(asked.metric, statistic) or math.nan)
        for key, one in cells.items()
        if key[1] in blocks and any(key[0] in pair for pair in pairs)
    }
    by_pair = {pair: [logs[pair[1], block] - logs[pair[0], block] for block in blocks] for pair in pairs}
    differences = np.mean(list(by_pair.values()), axis=0)
    estimate = float(differences.mean())
    reference = math.exp(float(np.mean([logs[a, block] for a, _ in pairs for block in blocks])))
    about |= {"ratio": math.exp(estimate), "reference_ms": reference, "estimate": estimate}
    about["a"], about["b"] = _sides(cells[pairs[0][0], blocks[0]], cells[pairs[0][1], blocks[0]])
    about["difference_ms"] = reference * math.expm1(estimate)
    about["queueing"] = sum(cells[a, blocks[0]].queues or cells[b, blocks[0]].queues for a, b in pairs)
    configuration = {pattern: one.configuration for (pattern, _), one in cells.items()}
    about["table"] = [
        {"a": a, "b": b, "ratio": math.exp(float(np.mean(values)))} for (a, b), values in by_pair.items()
    ]
    weights, sums = _weights(pairs, configuration)
    yardstick = spread(starts(measurements, asked.metric, statistic), weights) if len(blocks) > 1 else None
    if yardstick is None:
        few = "one start of each" if len(blocks) < 2 else "one configuration"
        return {**about, "why": f"{few}: no replicates"}

    def error(count: int) -> tuple[float, float]:
        variance, freedom = yardstick.of_block(*sums)
        return math.sqrt(variance / count), freedom * (count - 1) / (len(blocks) - 1)

    about |= intervals(estimate, *error(len(blocks)))
    about |= {
        "spread": yardstick.sd,
        "freedom": error(len(blocks))[1],
        "pooled": yardstick.pooled,
        "unequal": yardstick.unequal,
        "detectable": least(*error(len(blocks))),
        "paired": _paired(differences),
        "p_signs": signs(differences) if FEWEST_SIGNS <= len(blocks) <= MOST_SIGNS else None,
        "blocks_for_smallest": blocks_for(math.expm1(_smallest(about)), error),
    }
    _judge_pairs(about, by_pair, configuration, yardstick)
    return about


def _smallest(one: Mapping[str, Any]) -> float:
    return verdicts.on_logarithms(one["smallest_effect"], one["reference_ms"])


def complete(
    pairs: Iterable[Pair], cells: Mapping[tuple[str, int], Measurement], metric: str, statistic: str
) -> tuple[list[Pair], list[int]]:
    """The pairs and blocks such that every pair has both sides in every block: the most of them."""
    there: dict[Pair, frozenset[int]] = {}
    every = {block for _, block in cells}
    for pair in pairs:
        sides = [
            {block for block in every if (one := cells.get((name, block))) and one.value(metric, statistic)}
            for name in pair
        ]
        if both := frozenset(sides[0] & sides[1]):
            there[pair] = both
    best: tuple[list[Pair], list[int]] = ([], [])
    for blocks in set(there.values()):
        kept = [pair for pair, have in there.items() if blocks <= have]
        if (len(blocks) > 1, len(kept) * len(blocks)) > (len(best[1]) > 1, len(best[0]) * len(best[1])):
            best = kept, sorted(blocks)
    return best


def _sides(a: Measurement, b: Measurement) -> tuple[str, str]:
    """What tells the two sides apart, in a word."""
    return (a.backend, b.backend) if a.backend != b.backend else (a.pattern, b.pattern)


def _weights(pairs: Sequence[Pair], configuration: Mapping[str, str]) -> tuple[set[str], tuple[float, float]]:
    """The configurations that are compared, and the sums of squares of what the start of each, and what each
    pattern, weighs in the difference.
    """
    of_starts: dict[str, float] = defaultdict(float)
    of_patterns: dict[str, float] = defaultdict(float)
    for pair in pairs:
        for pattern, weight in zip(pair, (-1 / len(pairs), 1 / len(pairs)), strict=True):
            of_starts[configuration[pattern]] += weight
            of_patterns[pattern] += weight
    squares = [sum(weight**2 for weight in each.values()) for each in (of_starts, of_patterns)]
    return set(of_starts), (squares[0], squares[1])


def intervals(estimate: float, error: float, freedom: float) -> dict[str, Any]:
    """95 % and 90 % intervals of the ratio, and the p value of no difference."""
    from scipy.special import stdtr, stdtrit

    half = {share: float(stdtrit(freedom, (1 + share) / 2)) * error for share in (0.95, 0.9)}
    value = abs(estimate) / error if error > 0 else math.inf if estimate else 0.0
    return {
        "interval": [math.exp(estimate - half[0.95]), math.exp(estimate + half[0.95])],
        "interval_90": [math.exp(estimate - half[0.9]), math.exp(estimate + half[0.9])],
        "p": float(2 * stdtr(freedom, -value)),
    }


def _paired(differences: Any) -> dict[str, Any]:
    """Student's paired t over the blocks alone: less powerful, and free of what is pooled."""
    from scipy.special import stdtrit

    count = len(differences)
    error = float(differences.std(ddof=1)) / math.sqrt(count)
    half = float(stdtrit(count - 1, 1 - LEVEL / 2)) * error
    centre = float(differences.mean())
    return {"ratio": math.exp(centre), "interval": [math.exp(centre - half), math.exp(centre + half)]}


def signs(differences: Any) -> float:
    """The p value of all sign flips of the blocks' differences (Fisher, 1935); exact up to 16 blocks."""
    values = np.asarray(differences)
    flips = np.array(list(itertools.product((1, -1), repeat=len(values))))
    means = np.abs(flips @ values) / len(values)
    return float(np.mean(means >= abs(values.mean()) - 1e-12))


def _judge_pairs(
    about: dict[str, Any],
    by_pair: Mapping[Pair, Sequence[float]],
    configuration: Mapping[str, str],
    yardstick: Spread,
) -> None:
    """The interval of each pair's ratio; p values are corrected for their number (Benjamini, Hochberg)."""
    from scipy.stats import false_discovery_control

    for row, (pair, values) in zip(about["table"], by_pair.items(), strict=True):
        variance, freedom = yardstick.of_block(*_weights([pair], configuration)[1])
        row |= intervals(float(np.mean(values)), math.sqrt(variance / len(values)), freedom)
    corrected = false_discovery_control([row["p"] for row in about["table"]])
    for row, value in zip(about["table"], corrected, strict=True):
        row["p_corrected"] = float(value)


def _judged(one: dict[str, Any]) -> dict[str, Any]:
    """Add the verdict, and what it needs."""
    if "ratio" not in one:
        return {**one, "verdict": verdicts.NOT_MEASURABLE}
    if "interval" not in one:
        return {**one, "verdict": verdicts.OF_THESE_STARTS}
    smallest = _smallest(one)
    margin = verdicts.on_logarithms(one["margin"], one["reference_ms"], math.expm1(smallest))
    low, high = (math.log(value) for value in one["interval_90"])
    one = {**one, "smallest": math.expm1(smallest), "equivalence": math.expm1(margin)}
    if one["p_holm"] < LEVEL:
        differs = abs(one["estimate"]) >= smallest
        return {**one, "verdict": verdicts.DIFFERS if differs else verdicts.NEGLIGIBLE}
    if -margin < low and high < margin:
        return {**one, "verdict": verdicts.EQUIVALENT}
    needed = one["blocks_for_smallest"]
    more = max(1, needed - len(one["blocks"])) if needed else None
    return {**one, "verdict": verdicts.UNDECIDED, "more_blocks": more}
