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
from taskrunner.analysis.spread import LEVEL, Spread, Start, blocks_for, detectable, spread, starts

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
    found = []
    for one in sweep.schedule.get("comparisons", []):
        metric = str(one.get("metric") or "ttft")
        metric = metric if metric in METRICS else "e2e_latency" if metric == "e2e" else "ttft"
        pairs = [(str(a), str(b)) for a, b in one.get("pairs", [])]
        more = (str(one.get("hypothesis") or ""), one.get("margin"), one.get("smallest_effect"))
        found.append(Asked(str(one["id"]), str(one.get("title") or ""), metric, pairs, *more))
    return found


def compare(sweep: Sweep) -> list[dict[str, Any]]:
    """All comparisons of a sweep's plan."""
    return compare_all(sweep.counting(), asked(sweep))


def compare_all(measurements: Sequence[Measurement], asked: Iterable[Asked]) -> list[dict[str, Any]]:
    """These comparisons, with p values corrected for their number (Holm, 1979)."""
    found = [comparison(measurements, one) for one in asked]
    with_p = [one for one in found if "p" in one]
    for one, value in zip(with_p, holm([one["p"] for one in with_p]), strict=True):
        one["p_holm"] = value
    return [judged(one) for one in found]


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
        return {**about, "why": "no matched pair has valid results on both sides"}
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
    every = starts(measurements, asked.metric, statistic)
    weights = _weights(pairs, {pattern: one.configuration for (pattern, _), one in cells.items()})
    yardstick = spread(every, weights) if len(blocks) > 1 else None
    about["table"] = [
        {"a": a, "b": b, "ratio": math.exp(float(np.mean(values)))} for (a, b), values in by_pair.items()
    ]
    if yardstick is None:
        return {**about, "why": "one start of each: no replicates"}
    size = math.sqrt(sum(weight**2 for weight in weights.values()) / len(blocks))
    about |= intervals(estimate, yardstick.sd * size, yardstick.freedom)
    about |= _yardstick(yardstick, every, len(blocks))
    about["paired"] = _paired(differences)
    about["p_signs"] = signs(differences) if len(blocks) >= FEWEST_SIGNS else None
    _table(about, by_pair, logs, yardstick)
    return about


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


def _weights(pairs: Sequence[Pair], configuration: Mapping[str, str]) -> dict[str, float]:
    """How much each configuration's start weighs in the difference."""
    weights: dict[str, float] = defaultdict(float)
    for a, b in pairs:
        weights[configuration[a]] -= 1 / len(pairs)
        weights[configuration[b]] += 1 / len(pairs)
    return dict(weights)


def intervals(estimate: float, error: float, freedom: float) -> dict[str, Any]:
    """95 % and 90 % intervals of the ratio, and the p value of no difference."""
    from scipy.special import stdtr, stdtrit

    half = {share: float(stdtrit(freedom, (1 + share) / 2)) * error for share in (0.95, 0.9)}
    value = abs(estimate) / error if error > 0 else math.inf
    return {
        "interval": [math.exp(estimate - half[0.95]), math.exp(estimate + half[0.95])],
        "interval_90": [math.exp(estimate - half[0.9]), math.exp(estimate + half[0.9])],
        "p": float(2 * stdtr(freedom, -value)),
    }


def _yardstick(yardstick: Spread, every: Sequence[Start], blocks: int) -> dict[str, Any]:
    pooled = yardstick.pooled
    return {
        "spread": yardstick.sd,
        "freedom": yardstick.freedom,
        "pooled": pooled,
        "unequal": yardstick.unequal,
        "detectable": detectable(blocks, pooled, yardstick.sd),
    }


def _paired(differences: Any) -> dict[str, Any] | None:
    """Student's paired t over the blocks alone: less powerful, and free of what is pooled."""
    from scipy.special import stdtrit

    count = len(differences)
    error = float(differences.std(ddof=1)) / math.sqrt(count)
    half = float(stdtrit(count - 1, 1 - LEVEL / 2)) * error
    centre = float(differences.mean())
    return {"ratio": math.exp(centre), "interval": [math.exp(centre - half), math.exp(centre + half)]}


def signs(differences: Any) -> float:
    """The p value of all sign flips of the blocks' differences (Fisher, 1935); exact up to 16 blocks."""
    values = np.asarray(differences)[:MOST_SIGNS]
    flips = np.array(list(itertools.product((1, -1), repeat=len(values))))
    means = np.abs(flips @ values) / len(values)
    return float(np.mean(means >= abs(values.mean()) - 1e-12))


def _table(
    about: dict[str, Any],
    by_pair: Mapping[Pair, Sequence[float]],
    logs: Mapping[Any, float],
    yardstick: Spread,
) -> None:
    """The ratio of each pair, with p values corrected for their number (Benjamini and Hochberg, 1995)."""
    from scipy.stats import false_discovery_control

    found = [Start(pattern, block, value) for (pattern, block), value in logs.items()]
    of_patterns = spread(found)
    if of_patterns is None:
        return
    error = of_patterns.sd * math.sqrt(2 / len(about["blocks"]))
    for row, values in zip(about["table"], by_pair.values(), strict=True):
        row |= intervals(float(np.mean(values)), error, yardstick.freedom)
    corrected = false_discovery_control([row["p"] for row in about["table"]])
    for row, value in zip(about["table"], corrected, strict=True):
        row["p_corrected"] = float(value)


def judged(one: dict[str, Any]) -> dict[str, Any]:
    """Add the verdict, and what it needs."""
    if "ratio" not in one:
        return {**one, "verdict": verdicts.NOT_MEASURABLE}
    if "interval" not in one:
        return {**one, "verdict": verdicts.OF_THESE_STARTS}
    smallest = verdicts.on_logarithms(one["smallest_effect"], one["reference_ms"])
    margin = verdicts.on_logarithms(one["margin"], one["reference_ms"], math.expm1(smallest))
    low, high = (math.log(value) for value in one["interval_90"])
    one = {**one, "smallest": math.expm1(smallest), "equivalence": math.expm1(margin)}
    if one["p_holm"] < LEVEL:
        differs = abs(one["estimate"]) >= smallest
        return {**one, "verdict": verdicts.DIFFERS if differs else verdicts.NEGLIGIBLE}
    if -margin < low and high < margin:
        return {**one, "verdict": verdicts.EQUIVALENT}
    needed = blocks_for(math.expm1(smallest), one["pooled"], one["spread"])
    more = max(1, needed - len(one["blocks"])) if needed else None
    return {**one, "verdict": verdicts.UNDECIDED, "more_blocks": more}
