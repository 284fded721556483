"""Servers beside tools, and tools beside each other: how much of what one layer can do another one reaches.

Tools measure a pattern once, so these are ratios of single runs: with their range, without a verdict.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from taskrunner.analysis.load import Measurement, Sweep
from taskrunner.analysis.shapes import by_pattern, bytes_per_token, usual

Tool = Mapping[str, Any]
EXPECTED = {
    "CMP-05": (0.3, 0.5),
    "CMP-06": (0.69, 1.0),
    "CMP-07": (3.0, 5.0),
    "CMP-08": (0.6, 0.8),
    "CMP-10": (2.0, 5.0),
}
"""Between which values each ratio is expected; nothing is for CMP-09."""
LARGEST = 1e9
"""Of a bandwidth in Gbit/s, or of a ratio."""


def layers(
    sweep: Sweep, bandwidths: Iterable[Mapping[str, Any]], tpot_parts: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """CMP-05 to CMP-10, those for which there are results on both sides."""
    tools = [one for one in sweep.tools if one.get("valid")]
    rows = [
        *(
            _row("CMP-05", f"KV cache over {one['backend']} / a network tool, bandwidth", [one["share"]])
            for one in bandwidths
            if one["share"]
        ),
        *_gpu_share(tpot_parts),
        _row(
            "CMP-07",
            "nixlbench over LIBFABRIC / over UCX, bandwidth",
            _ratios(_named(tools, "nixlbench"), lambda one: one.get("backend"), ("LIBFABRIC", "UCX"), _kind),
        ),
        *_overhead(sweep, tools),
        _row(
            "CMP-09",
            "ucx_perftest with GPU memory / with the host's, bandwidth",
            _ratios(_named(tools, "ucx_perftest"), lambda one: one.get("memory"), ("cuda", "host"), _proven),
        ),
        _row("CMP-10", "a KV cache by nixlbench / at the line rate, time", list(_times_of_theory(tools))),
    ]
    return [row for row in rows if row["values"]]


def _row(id: str, title: str, values: Sequence[float]) -> dict[str, Any]:
    """A comparison: the geometric mean of its ratios, and whether that is in the range that is expected."""
    expected = EXPECTED.get(id)
    row: dict[str, Any] = {"id": id, "title": title, "values": list(values), "expected": expected}
    if values:
        row["ratio"] = math.exp(float(np.mean(np.log(values))))
        row["as_expected"] = expected[0] <= row["ratio"] <= expected[1] if expected else None
    return row


def _named(tools: Iterable[Tool], name: str) -> list[Tool]:
    return [one for one in tools if one.get("tool") == name]


def _proven(record: Tool) -> str:
    """The fabric that a tool has used, by its proof; "" where there is none."""
    crossed = record.get("fabric")
    return str(crossed.get("proven") or "") if isinstance(crossed, Mapping) else ""


def _kind(record: Tool) -> Hashable:
    return str(record.get("scheme")), str(record.get("memory"))


def _number(value: object) -> float:
    """What can be compared, else 0."""
    return float(value) if isinstance(value, (int, float)) and 0 < value < LARGEST else 0.0


def _rows(record: Tool) -> Iterator[tuple[tuple[Hashable, Hashable], float]]:
    """What was measured, by its size, and the bandwidth."""
    rows = record.get("rows")
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, Mapping) and (gbps := _number(row.get("bandwidth_gbps"))):
            yield (str(row.get("size_bytes")), str(row.get("batch"))), gbps


def _ratios(
    tools: Iterable[Tool],
    side: Callable[[Tool], object],
    sides: tuple[str, str],
    match: Callable[[Tool], Hashable],
) -> list[float]:
    """Bandwidths of one side over those of the other, for each size that both have: the best run of each."""
    best: dict[Hashable, dict[str, float]] = defaultdict(dict)
    for one in tools:
        for size, gbps in _rows(one):
            by_side = best[match(one), size]
            by_side[str(side(one))] = max(by_side.get(str(side(one)), 0.0), gbps)
    first, second = sides
    return [each[first] / each[second] for each in best.values() if each.get(first) and each.get(second)]


def _gpu_share(tpot_parts: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The GPU's share of TPOT for each number of streams."""
    shares: dict[int, list[float]] = defaultdict(list)
    for one in tpot_parts:
        shares[one["concurrency"]].append(one["compute_share"])
    for streams, values in sorted(shares.items()):
        many = "s" if streams > 1 else ""
        yield _row("CMP-06", f"the GPU's share of TPOT at {streams} stream{many}", values)


def _overhead(sweep: Sweep, tools: Iterable[Tool]) -> Iterator[dict[str, Any]]:
    """The time that nixlbench takes for a prompt's KV cache, of what disaggregation adds to the TTFT."""
    fastest: dict[str, float] = defaultdict(float)
    for tool in _named(tools, "nixlbench"):
        for _, gbps in _rows(tool):
            fastest[_proven(tool)] = max(fastest[_proven(tool)], gbps)
    single = [one for one in usual(sweep) if one.concurrency == 1]
    size = bytes_per_token(single)
    medians = {name: _median(starts) for name, starts in by_pattern(single).items()}
    alone = {one.prompt_tokens: medians[one.pattern] for one in single if one.mode == "unified"}
    shares: dict[str, dict[int, float]] = defaultdict(dict)
    for one in single:
        added = (medians[one.pattern] or 0.0) - (alone.get(one.prompt_tokens) or math.inf)
        if size and one.mode == "disaggregated" and fastest.get(one.backend) and added > 0:
            took_ms = one.prompt_tokens * size * 8 / fastest[one.backend] / 1e6
            shares[one.backend][one.prompt_tokens] = took_ms / added
    for backend, values in shares.items():
        title = f"nixlbench over {backend} / what disaggregation adds to the TTFT, time"
        yield _row("CMP-08", title, list(values.values()))


def _median(starts: Iterable[Measurement]) -> float | None:
    """The median TTFT of a pattern over its starts, in milliseconds."""
    values = [value for one in starts if (value := one.value("ttft", "p50"))]
    return float(np.median(values)) if values else None


def _times_of_theory(tools: Iterable[Tool]) -> Iterator[float]:
    for one in tools:
        cache = one.get("kv_cache")
        share = _number(cache.get("ratio_to_line_rate")) if isinstance(cache, Mapping) else 0.0
        if share:
            yield 1 / share


def bandwidths(sweep: Sweep) -> list[dict[str, Any]]:
    """The bandwidth at which each backend moved the KV cache, and what a tool has reached over that fabric.

    1e9 bit/s, by the servers' own times of transfers; `raw_gbps` is the best valid run of a network tool.
    """
    raw: dict[str, float] = {}
    for record in sweep.tools:
        summary, proven = record.get("summary"), _proven(record)
        value = _number(summary.get("bandwidth_gbps")) if isinstance(summary, Mapping) else 0.0
        if record.get("valid") and proven and value:
            raw[proven] = max(raw.get(proven, 0.0), value)
    achieved: dict[str, list[float]] = defaultdict(list)
    for one in usual(sweep):
        moved = one.record["results"].get("kv_transfer") or {}
        if moved.get("bytes") and moved.get("transfer_ms"):
            achieved[one.backend].append(float(moved["bytes"]) * 8 / float(moved["transfer_ms"]) / 1e6)
    return [
        {
            "backend": backend,
            "achieved_gbps": float(np.median(values)),
            "raw_gbps": raw.get(backend),
            "share": float(np.median(values)) / raw[backend] if raw.get(backend) else None,
        }
        for backend, values in achieved.items()
    ]
