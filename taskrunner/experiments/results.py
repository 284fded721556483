"""What a sweep has measured until now: a row for each cell, with whether it counts, and why not."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from taskrunner.experiments import sweep
from taskrunner.experiments.schedule import Schedule
from taskrunner.inference.output import write
from taskrunner.inference.sweep.measured import read, why_not

FIGURES = ("ttft", "tpot", "e2e_latency")
STATISTICS = ("mean", "p50", "p95")
RATES = ("throughput_rps", "throughput_tps")


class Row(NamedTuple):
    """A cell: `why` is "" where its result counts."""

    pattern: str
    block: int
    start: int
    configuration: str
    fingerprint: str
    path: str
    why: str
    record: Mapping[str, Any] | None

    def figure(self, name: str, statistic: str = "p50") -> float | None:
        """A statistic of a metric, in milliseconds."""
        value = ((self.record or {}).get("results") or {}).get(name)
        return value.get(statistic) if isinstance(value, Mapping) else None


def rows(schedule: Schedule, folder: Path) -> list[Row]:
    """All cells, in the order in which they are measured; `folder` has the plan's folder in it."""
    found = []
    for cell in sweep.cells(schedule):
        path = folder / sweep.place(schedule, cell) / "result.json"
        wanted, record = sweep.fingerprint(schedule, cell), read(path)
        key = cell.start.configuration.key
        row = (cell.pattern.id, cell.block, cell.start.number, key, wanted, str(path))
        found.append(Row(*row, why_not(record, wanted), record))
    return found


def as_dict(row: Row) -> dict[str, Any]:
    """A row without the record's raw values."""
    results = (row.record or {}).get("results") or {}
    return {
        "pattern": row.pattern,
        "block": row.block,
        "start": row.start,
        "configuration": row.configuration,
        "fingerprint": row.fingerprint,
        "path": row.path,
        "valid": not row.why,
        "why": row.why,
        **{f"{name}_{each}_ms": row.figure(name, each) for name in FIGURES for each in STATISTICS},
        **{name: results.get(name) for name in RATES},
        "completed": results.get("completed"),
        "failed": results.get("failed"),
    }


def save(folder: Path, found: Iterable[Row]) -> tuple[Path, Path]:
    """Write the index (a JSON object a line) and the same as CSV."""
    lines = [as_dict(row) for row in found]
    index, table = folder / "index.jsonl", folder / "results.csv"
    write(str(index), "\n".join(json.dumps(line) for line in lines))
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]) if lines else [])
        writer.writeheader()
        writer.writerows(lines)
    return index, table


def lines(found: Sequence[Row]) -> Iterable[str]:
    """The rows for people."""
    width = max((len(row.pattern) for row in found), default=7)
    yield f"  {'pattern':<{width}}  block  start  TTFT p50  TPOT p50   E2E p50  ms"
    for row in found:
        figures = "".join(f"{_shown(row.figure(name)):>10}" for name in FIGURES)
        mark = "✓" if not row.why else "–" if row.record is None else "✗"
        said = f"  {row.why}" if row.why and row.record is not None else ""
        yield f"{mark} {row.pattern:<{width}}  {row.block:>5}  {row.start:>5}{figures}{said}"
    counted = sum(not row.why for row in found)
    yield f"{counted} of {len(found)} measured"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
