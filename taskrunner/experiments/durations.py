"""How long starts and measurements of a plan have taken, by the index of its earlier results."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from taskrunner.experiments import index
from taskrunner.experiments.configurations import DECODE, PREFILL, UNIFIED

LONGEST_START_MINUTES = 120.0
"""What is longer is a pause between two runs of a sweep."""


class Durations(NamedTuple):
    """Minutes: of a start by role, of a measurement with its warm-up by pattern; medians."""

    starts: Mapping[str, float] = {}
    patterns: Mapping[str, float] = {}


def read(folder: Path) -> Durations:
    """Those of the results in a plan's folder; none without an index."""
    rows = sorted(filter(_tells, index.lines(folder)), key=lambda row: row["began"])
    starts: dict[str, list[float]] = defaultdict(list)
    patterns: dict[str, list[float]] = defaultdict(list)
    last: dict[Any, dict[str, Any]] = {}
    for row in rows:
        # Pairs of nodes measure at the same time.
        before, last[row.get("host")] = last.get(row.get("host")), row
        # From the end of the one before: with the warm-up.
        gap = (row["began"] - before["ended"]) / 60 if before else 0.0
        anew = before is None or before["start"] != row["start"]
        patterns[row["pattern"]].append((row["ended"] - row["began"]) / 60 + (0.0 if anew else max(gap, 0.0)))
        if before and anew and 0 < gap < LONGEST_START_MINUTES:
            for role in (UNIFIED,) if row["mode"] == "unified" else (PREFILL, DECODE):
                starts[role].append(gap)
    return Durations(
        *({name: statistics.median(of) for name, of in each.items()} for each in (starts, patterns))
    )


def _tells(row: Mapping[str, Any]) -> bool:
    """Whether a line of the index says what a measurement has taken."""
    named = row.get("valid") and all(isinstance(row.get(name), str) for name in ("pattern", "mode"))
    timed = all(index.number(row.get(name)) is not None for name in ("began", "ended", "start"))
    return bool(named and timed) and isinstance(row.get("host"), (str, type(None)))
