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
}
USUAL = ("tool", "tool_version", "rows", "summary", "notes")


def table(record: Mapping[str, Any]) -> Iterator[str]:
    """Lines: the rows, the summary, and whatever else there is."""
    version = f" {record['tool_version']}" if record["tool_version"] else ""
    yield f"{record['tool']}{version}"
    names = [name for name in COLUMNS if any(row.get(name) is not None for row in record["rows"])]
    if names:
        yield "".join(f"{COLUMNS[name]:>14}" for name in names)
    for row in record["rows"]:
        if names:
            yield "".join(f"{_figure(row.get(name)):>14}" for name in names)
        else:
            yield json.dumps(row)
    for name, value in {**record["summary"], **_more(record)}.items():
        yield f"{name}: {value if isinstance(value, (str, int)) else json.dumps(value)}"
    yield from (f"note: {note}" for note in record["notes"])


def _more(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in USUAL and value is not None}


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
