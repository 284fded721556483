"""The record of a tool's output for people."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

COLUMNS = {
    "size_bytes": "bytes",
    "iterations": "iterations",
    "latency_us": "us",
    "bandwidth_gbps": "Gbit/s",
    "messages_per_s": "messages/s",
    "transfer_time_ms": "ms",
    "out_of_place.time_us": "us",
    "out_of_place.busbw_gbytes_s": "busbw GB/s",
    "in_place.time_us": "in place us",
    "in_place.busbw_gbytes_s": "busbw GB/s",
}
"""What is shown of a row, by its path there, with a title."""
USUAL = ("tool", "tool_version", "rows", "summary", "notes", "settings")


def table(record: Mapping[str, Any]) -> Iterator[str]:
    """Lines: the rows, the summary, and whatever else there is."""
    version = f" {record['tool_version']}" if record["tool_version"] else ""
    yield f"{record['tool']}{version}"
    rows = [{name: _at(row, name) for name in COLUMNS} for row in record["rows"]]
    names = [name for name in COLUMNS if any(row[name] is not None for row in rows)]
    if names:
        yield "".join(f"{COLUMNS[name]:>14}" for name in names)
    for row in rows:
        yield "".join(f"{_figure(row[name]):>14}" for name in names)
    for name, value in {**record["summary"], **_more(record)}.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            yield from (f"{name}: {json.dumps(each)}" for each in value)
        else:
            yield f"{name}: {value if isinstance(value, (str, int)) else json.dumps(value)}"
    yield from (f"note: {note}" for note in record["notes"])


def _at(row: Mapping[str, Any], path: str) -> Any:
    value: Any = row
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _more(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in USUAL and value is not None}


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
