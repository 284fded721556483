"""What single metrics say by themselves: two modes, the parts of TPOT, the cost of a transfer, the proxy."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from taskrunner.analysis.load import LEAST_MS, MOST_MS, Measurement, Sweep
from taskrunner.inference.results.modes import bimodal

SLOW_FIRST_P = 0.05


def by_pattern(measurements: Iterable[Measurement]) -> dict[str, list[Measurement]]:
    """The measurements of each pattern, in order of time."""
    found: dict[str, list[Measurement]] = defaultdict(list)
    for one in measurements:
        found[one.pattern].append(one)
    return dict(found)


def usual(sweep: Sweep) -> list[Measurement]:
    """What counts, without special patterns: those that no comparison names, beside one equal to them."""
    named = {name for one in sweep.schedule.get("comparisons", []) for pair in one["pairs"] for name in pair}
    keys: dict[tuple[str, int, int], set[str]] = defaultdict(set)
    for one in sweep.counting():
        keys[one.backend, one.prompt_tokens, one.concurrency].add(one.pattern)
    return [
        one
        for one in sweep.counting()
        if one.pattern in named or len(keys[one.backend, one.prompt_tokens, one.concurrency]) == 1
    ]


def bytes_per_token(measurements: Iterable[Measurement]) -> float:
    """Bytes of KV cache that the servers have moved for a token; 0 where they do not say."""
    weights = []
    for one in measurements:
        moved = one.record["results"].get("kv_transfer") or {}
        if moved.get("bytes") and moved.get("external_tokens"):
            weights.append(float(moved["bytes"]) / float(moved["external_tokens"]))
    return float(np.median(weights)) if weights else 0.0


def modes(measurements: Iterable[Measurement], metric: str = "ttft") -> list[dict[str, Any]]:
    """Patterns whose requests come in two kinds: within a start, or from start to start.

    Within: a start by itself, or all starts after each was centred on its median. `slow_first` is the p value
    of Mann and Whitney (1947) that slow requests come earlier: NIXL's connections are set up by the first.
    """
    found = []
    for name, starts in by_pattern(measurements).items():
        values = [one.raw(metric) for one in starts]
        single = [bimodal(each) for each in values]
        centred = [value / float(np.median(each)) for each in values if each for value in each]
        # A single start tells the same before and after: its own scale does not matter.
        pooled = bimodal(centred) if len(starts) > 1 else single[0]
        within = [one for one in single if one["is_bimodal"]]
        if not within and not pooled["is_bimodal"]:
            continue
        split = pooled if pooled["is_bimodal"] and pooled["modes"] else None
        found.append(
            {
                "pattern": name,
                "starts": len(starts),
                "bimodal_starts": len(within),
                "modes": within[0]["modes"] if within else (split or {}).get("modes", []),
                "slow_first": _slow_first(values, single),
            }
        )
    return found


def _slow_first(values: Sequence[Sequence[float]], single: Sequence[Mapping[str, Any]]) -> float | None:
    from scipy.stats import mannwhitneyu

    slow: list[int] = []
    fast: list[int] = []
    for each, one in zip(values, single, strict=True):
        if one["is_bimodal"] and len(one["modes"]) == 2:
            middle = math.sqrt(one["modes"][0][0] * one["modes"][1][0])
            for index, value in enumerate(each):
                (slow if value > middle else fast).append(index)
    if not slow or not fast:
        return None
    return float(mannwhitneyu(slow, fast, alternative="less").pvalue)


def one_mode_per_start(measurements: Iterable[Measurement], metric: str = "ttft") -> list[dict[str, Any]]:
    """Patterns whose starts are of two kinds: each start has one mode, and they lie apart."""
    found = []
    for name, starts in by_pattern(measurements).items():
        values = [one.raw(metric) for one in starts]
        medians = [float(np.median(each)) for each in values if each]
        within = [float(np.std(np.log(each))) for each in values if len(each) > 1]
        if len(medians) < 3 or not within:
            continue
        logs = np.sort(np.log(medians))
        gaps = np.diff(logs)
        widest = int(gaps.argmax())
        others = [float(group.std()) for group in (logs[: widest + 1], logs[widest + 1 :]) if len(group) > 1]
        yardstick = max(float(np.median(within)), *others, 1e-9)
        if gaps[widest] > 4 * yardstick:
            found.append({"pattern": name, "starts": len(medians), "medians_ms": sorted(medians)})
    return found


def tpot_parts(measurements: Iterable[Measurement]) -> list[dict[str, Any]]:
    """The gaps between tokens in two clusters: GPU time, and the wait for other requests of the batch."""
    found = []
    for name, starts in by_pattern(measurements).items():
        gaps = [
            gap
            for one in starts
            for row in one.record.get("requests", [])
            for gap in row.get("itl") or []
            if gap > 0
        ]
        if len(gaps) < 24:
            continue
        split = bimodal(gaps[:20_000])
        mean = float(np.mean(gaps))
        compute, wait, share = mean, 0.0, 1.0
        if split["is_bimodal"] and len(split["modes"]) == 2:
            (compute, share), (slow, weight) = split["modes"]
            wait = (slow - compute) * weight
        found.append(
            {
                "pattern": name,
                "concurrency": starts[0].concurrency,
                "tpot_ms": mean,
                "compute_ms": compute,
                "wait_ms": wait,
                "compute_share": min(1.0, compute / mean),
                "fast_weight": share,
            }
        )
    return found


def proxy_overhead(measurements: Iterable[Measurement]) -> list[dict[str, Any]]:
    """Milliseconds of the TTFT that no server counts: proxy, network, HTTP, tokenizing; one value a start."""
    found = []
    for name, starts in by_pattern(measurements).items():
        values = [
            parts["other"]
            for one in starts
            if isinstance(parts := one.record["results"].get("ttft_parts"), Mapping) and "other" in parts
        ]
        if values:
            found.append(
                {
                    "pattern": name,
                    "starts": len(values),
                    "mean_ms": float(np.mean(values)),
                    "of_starts_ms": values,
                }
            )
    return found


def transfer_cost(measurements: Iterable[Measurement]) -> list[dict[str, Any]]:
    """What a token more costs in TTFT beyond prefill, by fabric: a slope for each block, then t over blocks.

    The value of a request is its TTFT less the time that the proxy waited for prefill: what is left is
    transfer, proxy and decode's first token, without prefill's own noise. Slopes are of concurrency 1.
    """
    from scipy.stats import t

    points: dict[str, dict[int, list[tuple[float, float, float]]]] = defaultdict(lambda: defaultdict(list))
    for one in measurements:
        if one.mode != "disaggregated" or one.concurrency != 1:
            continue
        rest = [
            row["ttft"] - row["proxy_prefill_time"]
            for row in one.record.get("requests", [])
            if not row.get("error")
            and all(
                isinstance(row.get(name), (int, float)) and LEAST_MS < row[name] < MOST_MS
                for name in ("ttft", "proxy_prefill_time")
            )
        ]
        if len(rest) > 1:
            error = max(float(np.std(rest, ddof=1)) / math.sqrt(len(rest)), 1e-6)
            points[one.backend][one.block].append((float(one.prompt_tokens), float(np.mean(rest)), error))
    found = []
    for backend, blocks in points.items():
        slopes = [_slope(each) for each in blocks.values() if len({x for x, _, _ in each}) > 1]
        if not slopes:
            continue
        mean = float(np.mean(slopes))
        half = None
        if len(slopes) > 1:
            half = float(t.ppf(0.975, len(slopes) - 1) * np.std(slopes, ddof=1) / math.sqrt(len(slopes)))
        found.append(
            {
                "backend": backend,
                "blocks": len(slopes),
                "us_per_token": mean * 1e3,
                "interval_us": None if half is None else [(mean - half) * 1e3, (mean + half) * 1e3],
                "points": [[x, y] for each in blocks.values() for x, y, _ in each],
            }
        )
    return found


def _slope(points: Sequence[tuple[float, float, float]]) -> float:
    x, y, error = (np.array(column) for column in zip(*points, strict=True))
    return float(np.polyfit(x, y, 1, w=1 / error)[0])
