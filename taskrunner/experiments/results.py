"""What a sweep has measured until now: a row for each cell, with whether it counts, and why not."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from taskrunner.experiments import cells, index
from taskrunner.experiments.schedule import Schedule
from taskrunner.experiments.tools import Run
from taskrunner.inference.output import write
from taskrunner.inference.sweep.measured import ANY, MISSING, OTHER, fingerprint_of, read, why_not

FIGURES = ("ttft", "tpot", "e2e_latency")
UNITS = {"latency_us": "µs", "bandwidth_gbps": "Gbit/s", "max_busbw_gbytes_s": "GB/s"}
STATISTICS = ("mean", "p50", "p95")
RESULTS = ("throughput_rps", "throughput_tps", "completed", "failed")
TIMES = ("began", "ended")
TOOL_FIGURES = ("latency_us", "bandwidth_gbps", "transfer_time_ms", "max_busbw_gbytes_s")


class Row(NamedTuple):
    """A cell, or a run of a tool, which has no block: `why` is "" where its result counts.

    `values` is what `digest` takes from its result, None where there is none.
    """

    pattern: str
    part: str
    block: int | None
    start: int | None
    configuration: str
    fingerprint: str
    path: str
    why: str
    values: Mapping[str, Any] | None

    def figure(self, name: str, statistic: str = "p50") -> float | None:
        """A statistic of a metric, in milliseconds."""
        return (self.values or {}).get(f"{name}_{statistic}_ms")


def rows(schedule: Schedule, folder: Path) -> list[Row]:
    """All cells, in the order in which they are measured; `folder` has the plan's folder in it.

    Of a result that has not changed since the index was written, the index tells.
    """
    before = index.lines(folder / schedule.name)
    known = {line["path"]: line for line in before if _is_whole(line)}
    tools = [of_tool(schedule, run, folder, known) for run in schedule.tool_runs]
    return tools + [of_cell(schedule, cell, folder, known) for cell in cells.cells(schedule)]


Known = Mapping[str, Mapping[str, Any]]
"""Lines of the index by the paths of results."""


def _is_whole(line: Mapping[str, Any]) -> bool:
    """Whether a line of the index has all that `digest` takes from a result today."""
    values = line.get("values")
    complete = isinstance(values, dict) and values.keys() == {*NO_VALUES, "stamp"}
    return complete and isinstance(line.get("path"), str)


def of_tool(schedule: Schedule, run: Run, folder: Path, known: Known | None = None) -> Row:
    """The row of a run of a tool."""
    wanted = cells.tool_fingerprint(run)
    judged = _judged(schedule, folder / cells.tool_place(schedule, run), wanted, known)
    return Row(run.pattern.id, run.part, None, None, "", wanted, *judged)


def of_cell(schedule: Schedule, cell: cells.Cell, folder: Path, known: Known | None = None) -> Row:
    """The row of a cell."""
    start, wanted = cell.start, cells.fingerprint(schedule, cell)
    names = (cell.pattern.id, str(cell.block), cell.block, start.number, start.configuration.key)
    return Row(*names, wanted, *_judged(schedule, folder / cells.place(schedule, cell), wanted, known))


def _judged(
    schedule: Schedule, place: Path, wanted: str, known: Known | None
) -> tuple[str, str, Mapping[str, Any] | None]:
    """The path of a result, why it does not count, and what the table has of it."""
    path = str(place / "result.json")
    values = _values(path, (known or {}).get(path))
    return path, _why(values, ANY if schedule.mixed else wanted), values


def _values(path: str, known: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    try:
        about = os.stat(path)
    except OSError:
        return None
    stamp = [about.st_mtime_ns, about.st_size]
    if known and known["values"].get("stamp") == stamp:
        values: Mapping[str, Any] = known["values"]
        return values
    record = read(path)
    return None if record is None else {**digest(record), "stamp": stamp}


def digest(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the table has of a result: milliseconds; microseconds and 1e9 bit/s of a tool. `of` is its
    fingerprint, `problem` why it does not count, whatever is asked for.
    """
    results, metadata = _part(record, "results"), _part(record, "metadata")
    of = fingerprint_of(record)
    listed = record.get("runs")
    runs = listed if isinstance(listed, list) else [record]
    hosts = metadata.get("hostnames")
    summary = {name: value for run in runs for name, value in _part(run, "summary").items()}
    return {
        "of": of,
        "problem": why_not(record, of),
        **{
            f"{name}_{each}_ms": index.number(_part(results, name).get(each))
            for name in FIGURES
            for each in STATISTICS
        },
        **{name: index.number(results.get(name)) for name in RESULTS},
        **{name: index.number(metadata.get(name)) for name in TIMES},
        "mode": _text(metadata.get("mode")),
        "host": _text(hosts[0]) if isinstance(hosts, list) and hosts else None,
        **{name: index.number(summary.get(name)) for name in TOOL_FIGURES},
    }


def _part(record: Any, name: str) -> Mapping[str, Any]:
    part = record.get(name) if isinstance(record, Mapping) else None
    return part if isinstance(part, Mapping) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


NO_VALUES: Mapping[str, Any] = digest({})
"""What the table has where there is no result."""


def _why(values: Mapping[str, Any] | None, wanted: str) -> str:
    if values is None:
        return MISSING
    return str(values["problem"]) if wanted in (ANY, values["of"]) else OTHER


class Left(NamedTuple):
    """What a sweep still has to do."""

    measurements: int
    starts: int
    seconds: float


def missing(found: Iterable[Row], since: float = 0.0) -> set[tuple[str, int]]:
    """The patterns and starts of the cells whose results do not count, or were measured before `since`."""
    return {
        (row.pattern, row.start)
        for row in found
        if row.start is not None and (row.why or ((row.values or {}).get("began") or 0.0) < since)
    }


def left(
    schedule: Schedule,
    cells_left: Collection[tuple[str, int]],
    up: int = 0,
    start_minutes: float | None = None,
) -> Left:
    """What these cells still take; the servers of the start `up` are up. `start_minutes` is what a start has
    taken until now, where that is known.
    """
    starts = {number for _, number in cells_left} - {up}
    each = {start.number: start.minutes for start in schedule.starts}
    minutes = sum(each[number] if start_minutes is None else start_minutes for number in starts)
    minutes += sum(schedule.minutes(schedule.patterns[name]) for name, _ in cells_left)
    return Left(len(cells_left), len(starts), minutes * 60)


def blocks(folder: Path) -> int:
    """The last block that has a result; a plan may have been extended."""
    last = 0
    for pattern in _listed(folder):
        for number in _listed(folder / pattern):
            later = number.isascii() and number.isdigit() and len(number) < 4 and int(number) > last
            if later and (folder / pattern / number / "result.json").exists():
                last = int(number)
    return last


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def as_dict(row: Row) -> dict[str, Any]:
    """A row for machines, without requests and raw values."""
    about = row._asdict() | {"valid": not row.why}
    values = about.pop("values") or NO_VALUES
    return {
        **about,
        **{name: value for name, value in values.items() if name not in ("of", "problem", "stamp")},
    }


def save(folder: Path, found: Sequence[Row]) -> None:
    """Write the index and the same as CSV, unless both are up to date."""
    lines = [as_dict(row) for row in found]
    kept = [{**line, "values": row.values} for line, row in zip(lines, found, strict=True)]
    table = folder / "results.csv"
    if table.exists() and kept == list(index.lines(folder)):
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]) if lines else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    # The index comes last: with it, the table is up to date.
    write(str(table), text.getvalue().rstrip("\n"))
    write(str(folder / index.NAME), "\n".join(json.dumps(line) for line in kept))


def save_parquet(folder: Path, found: Iterable[Row]) -> None:
    """The same for pandas and DuckDB, where pyarrow is installed."""
    try:
        import pyarrow.parquet
    except ImportError:
        return
    partial = folder / f".results.parquet.{os.getpid()}"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([as_dict(row) for row in found]), partial)
    partial.replace(folder / "results.parquet")


def lines(found: Sequence[Row]) -> Iterable[str]:
    """The rows for people."""
    width = max((len(row.pattern) for row in found), default=7)
    parts = max(len("block"), *(len(row.part) for row in found), 0)
    yield f"  {'pattern':<{width}}  {'block':>{parts}}  start  TTFT p50  TPOT p50   E2E p50  ms"
    for row in found:
        mark = "✓" if not row.why else "–" if row.values is None else "✗"
        said = f"  {row.why}" if row.why and row.values is not None else ""
        names = f"{row.pattern:<{width}}  {row.part:>{parts}}  {row.start or '':>5}"
        yield f"{mark} {names}{_figures(row)}{said}".rstrip()
    counted = sum(not row.why for row in found)
    yield f"{counted} of {len(found)} measured"


def _figures(row: Row) -> str:
    if row.start is not None:
        return "".join(f"{_shown(row.figure(name)):>10}" for name in FIGURES)
    values = row.values or {}
    return "  " + ", ".join(f"{values[name]:g} {unit}" for name, unit in UNITS.items() if values.get(name))


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
