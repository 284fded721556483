"""What a sweep has measured until now: a row for each cell, with whether it counts, and why not."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from taskrunner.experiments import cells
from taskrunner.experiments.durations import INDEX
from taskrunner.experiments.schedule import Schedule
from taskrunner.inference.output import write
from taskrunner.inference.sweep.measured import read, why_not

FIGURES = ("ttft", "tpot", "e2e_latency")
UNITS = {"latency_us": "µs", "bandwidth_gbps": "Gbit/s", "max_busbw_gbytes_s": "GB/s"}
STATISTICS = ("mean", "p50", "p95")
RATES = ("throughput_rps", "throughput_tps")
ABOUT = ("mode", "began", "ended")
TOOL_FIGURES = ("latency_us", "bandwidth_gbps", "transfer_time_ms", "max_busbw_gbytes_s")


class Row(NamedTuple):
    """A cell, or a run of a tool, which has no block: `why` is "" where its result counts."""

    pattern: str
    part: str
    block: int | None
    start: int | None
    configuration: str
    fingerprint: str
    path: str
    why: str
    record: Mapping[str, Any] | None

    def figure(self, name: str, statistic: str = "p50") -> float | None:
        """A statistic of a metric, in milliseconds."""
        value = ((self.record or {}).get("results") or {}).get(name)
        return value.get(statistic) if isinstance(value, Mapping) else None

    @property
    def summary(self) -> Mapping[str, Any]:
        """The figures of a tool: microseconds, 1e9 bit/s."""
        runs = (self.record or {}).get("runs") or [self.record or {}]
        return {name: value for run in runs for name, value in (run.get("summary") or {}).items()}


def rows(schedule: Schedule, folder: Path) -> list[Row]:
    """All cells, in the order in which they are measured; `folder` has the plan's folder in it."""
    found = []
    for run in schedule.tool_runs:
        path = folder / cells.tool_place(schedule, run) / "result.json"
        wanted, record = cells.tool_fingerprint(run), read(path)
        why = why_not(record, wanted)
        found.append(Row(run.pattern.id, run.part, None, None, "", wanted, str(path), why, record))
    for cell in cells.cells(schedule):
        path = folder / cells.place(schedule, cell) / "result.json"
        wanted, record = cells.fingerprint(schedule, cell), read(path)
        names = (cell.pattern.id, str(cell.block), cell.block, cell.start.number)
        key = cell.start.configuration.key
        found.append(Row(*names, key, wanted, str(path), why_not(record, wanted), record))
    return found


class Left(NamedTuple):
    """What a sweep still has to do."""

    measurements: int
    starts: int
    seconds: float


def left(schedule: Schedule, folder: Path) -> Left:
    """What is not measured yet, and about how long that takes."""
    missing = [row for row in rows(schedule, folder) if row.why and row.start is not None]
    starts = {row.start for row in missing}
    minutes = sum(start.minutes for start in schedule.starts if start.number in starts)
    minutes += sum(schedule.minutes(schedule.patterns[row.pattern]) for row in missing)
    return Left(len(missing), len(starts), minutes * 60)


def blocks(folder: Path) -> int:
    """The last block that has a result; a plan may have been extended."""
    numbers = [path.parent.name for path in folder.glob("*/*/result.json")]
    return max((int(number) for number in numbers if number.isdigit() and len(number) < 4), default=0)


def as_dict(row: Row) -> dict[str, Any]:
    """A row without the record's raw values."""
    results, metadata = ((row.record or {}).get(name) or {} for name in ("results", "metadata"))
    return {
        "pattern": row.pattern,
        "part": row.part,
        "block": row.block,
        "start": row.start,
        "configuration": row.configuration,
        "fingerprint": row.fingerprint,
        "path": row.path,
        "valid": not row.why,
        "why": row.why,
        **{f"{name}_{each}_ms": row.figure(name, each) for name in FIGURES for each in STATISTICS},
        **{name: results.get(name) for name in RATES},
        **{name: metadata.get(name) for name in ABOUT},
        "completed": results.get("completed"),
        "failed": results.get("failed"),
        **{name: row.summary.get(name) for name in TOOL_FIGURES},
    }


def save(folder: Path, found: Iterable[Row]) -> tuple[Path, Path]:
    """Write the index (a JSON object a line) and the same as CSV."""
    lines = [as_dict(row) for row in found]
    index, table = folder / INDEX, folder / "results.csv"
    write(str(index), "\n".join(json.dumps(line) for line in lines))
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]) if lines else [])
        writer.writeheader()
        writer.writerows(lines)
    _save_parquet(folder / "results.parquet", lines)
    return index, table


def _save_parquet(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """The same for pandas and DuckDB, where pyarrow is installed."""
    try:
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError:
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(line) for line in lines]), partial)
    partial.replace(path)


def lines(found: Sequence[Row]) -> Iterable[str]:
    """The rows for people."""
    width = max((len(row.pattern) for row in found), default=7)
    parts = max(len("block"), *(len(row.part) for row in found), 0)
    yield f"  {'pattern':<{width}}  {'block':>{parts}}  start  TTFT p50  TPOT p50   E2E p50  ms"
    for row in found:
        figures = "".join(f"{_shown(row.figure(name)):>10}" for name in FIGURES)
        if row.block is None:
            told = (f"{row.summary[name]:g} {unit}" for name, unit in UNITS.items() if name in row.summary)
            figures = "  " + ", ".join(told)
        mark = "✓" if not row.why else "–" if row.record is None else "✗"
        said = f"  {row.why}" if row.why and row.record is not None else ""
        names = f"{row.pattern:<{width}}  {row.part:>{parts}}  {row.start or '':>5}"
        yield f"{mark} {names}{figures}{said}".rstrip()
    counted = sum(not row.why for row in found)
    yield f"{counted} of {len(found)} measured"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
