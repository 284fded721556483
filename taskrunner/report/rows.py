"""What the figures and tables of a report are drawn from: flat rows, milliseconds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from taskrunner.analysis.load import METRICS, Measurement, Sweep

MOST_POINTS = 6000
"""Requests that are drawn; of more, every n-th."""


def cells(sweep: Sweep) -> list[dict[str, Any]]:
    """A row for each measurement, with its figures and whether it counts."""
    return [_cell(one) for one in sweep.measurements]


def _cell(one: Measurement) -> dict[str, Any]:
    results = one.record["results"]
    figures = {
        f"{metric}_{name}": _rounded(one.value(metric, name))
        for metric in METRICS
        for name in ("mean", "p50", "p99")
    }
    return {
        "pattern": one.pattern,
        "backend": one.backend,
        "prompt": one.prompt_tokens,
        "streams": one.concurrency,
        "block": one.block,
        "start": one.start,
        **figures,
        "tps": _rounded(results.get("throughput_tps")),
        "requests": results.get("completed"),
        "queues": one.queues,
        "counts": not one.why,
        "why": one.why,
        "link": f"#start-{one.start}",
    }


def _rounded(value: Any) -> float | None:
    return float(f"{value:.6g}") if isinstance(value, (int, float)) and math.isfinite(value) else None


def requests(sweep: Sweep) -> list[dict[str, Any]]:
    """A row for each request that counts, in order of time within its start."""
    found = []
    for one in sweep.counting():
        for index, value in enumerate(one.raw("ttft")):
            found.append(
                {
                    "pattern": one.pattern,
                    "start": f"{one.start} (block {one.block})",
                    "n": index + 1,
                    "ttft": float(f"{value:.5g}"),
                }
            )
    step = -(-len(found) // MOST_POINTS)
    return found[:: max(step, 1)]


def timeline(sweep: Sweep) -> list[dict[str, Any]]:
    """When each pattern was measured, in minutes from the first."""
    times = [one.record["metadata"] for one in sweep.measurements]
    begins = [about["began"] for about in times if _rounded(about.get("began"))]
    if not begins:
        return []
    zero = min(begins)
    found = []
    for one in sweep.measurements:
        about = one.record["metadata"]
        if _rounded(about.get("began")) and _rounded(about.get("ended")):
            found.append(
                {
                    "pattern": one.pattern,
                    "backend": one.backend,
                    "start": one.start,
                    "block": one.block,
                    "from": round((about["began"] - zero) / 60, 3),
                    "to": round((about["ended"] - zero) / 60, 3),
                    "counts": not one.why,
                    "link": f"#start-{one.start}",
                }
            )
    return found


def starts(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """What each start was: servers' commands and versions, patterns, files."""
    planned = {one["number"]: one for one in sweep.schedule.get("starts", [])}
    by_number: dict[int, list[Measurement]] = {}
    for one in sweep.measurements:
        by_number.setdefault(one.start, []).append(one)
    for number, members in sorted(by_number.items()):
        about = members[0].record["metadata"]
        servers = about.get("servers") or {}
        yield {
            "number": number,
            "block": members[0].block,
            "title": planned.get(number, {}).get("title", members[0].backend),
            "why": planned.get(number, {}).get("why", ""),
            "servers": [
                _server(name, server) for name, server in servers.items() if isinstance(server, Mapping)
            ],
            "measurements": [{"pattern": one.pattern, "path": one.path, "why": one.why} for one in members],
            "repeat": _repeat(sweep, members),
        }


def _server(name: str, server: Mapping[str, Any]) -> dict[str, str]:
    argv, versions, model = (server.get(part) for part in ("argv", "versions", "model"))
    return {
        "name": name,
        "command": " ".join(map(str, argv)) if isinstance(argv, list) else "",
        "versions": ", ".join(f"{key} {value}" for key, value in versions.items())
        if isinstance(versions, Mapping)
        else "",
        "model": str(model.get("name", "")) if isinstance(model, Mapping) else "",
    }


def _repeat(sweep: Sweep, members: list[Measurement]) -> str:
    """The command that measures the patterns of a start again; "" for results of no plan."""
    return sweep.command((one.pattern for one in members), "--rerun")
