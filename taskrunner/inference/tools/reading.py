"""What the parsers have in common: lines that are whole, numbers, sizes, and rows with one set of units."""

from __future__ import annotations

import math
import re
from typing import Any

Row = dict[str, Any]
Parsed = dict[str, Any]
NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?")
ASKED = re.compile(r"([0-9]+)([kmg]?)(?:i?b)?", re.IGNORECASE)
COUNT = re.compile(r"([0-9]+)([kmb]?)")
COUNTS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kmg]?)")
UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
MIB = 1 << 20
FIRST = (0, 1, 2, 64)
"""The sizes with which tables of many sizes begin, in bytes."""
TAG = re.compile(r"^\[\d+,\d+\]<std(?:out|err)>:", re.MULTILINE)
"""What mpirun --tag-output writes before each line."""


class NotAResult(ValueError):
    """A text that is not the whole output of a measurement that went well: what is wrong, in words."""


def lines_of(text: str) -> list[str]:
    """The lines of an output. Raises NotAResult when its last line is cut off."""
    if text and not text.endswith("\n"):
        raise NotAResult("its last line is cut off")
    return TAG.sub("", text).splitlines()


def alone(rows: list[Row]) -> bool:
    """Whether a table without an end is of one size. One of many sizes, which may be cut off, begins with 0,
    1, 2 or 64 bytes.
    """
    return len(rows) == 1 and rows[0]["size_bytes"] not in FIRST


def last_words(text: str) -> str:
    """What a tool says at last, in which there is no result."""
    words = [line.strip() for line in text.splitlines() if line.strip()]
    return words[-1][:200] if words else "it is empty"


def number(text: str) -> float:
    """A number of a table. Raises NotAResult."""
    if not NUMBER.fullmatch(text):
        raise NotAResult(f"{text!r} is not a number")
    return float(text)


def whole(text: str) -> int:
    """A number without fraction. Raises NotAResult."""
    value = number(text)
    if not math.isfinite(value) or value != int(value):
        raise NotAResult(f"{text!r} is not a whole number")
    return int(value)


def count_of(text: str) -> int:
    """What 200, 1k, 2m mean as iterations of fabtests (powers of 1,000). Raises NotAResult."""
    match = COUNT.fullmatch(text)
    if match is None:
        raise NotAResult(f"{text!r} is not a number of iterations")
    return int(match[1]) * COUNTS[match[2]]


def size_of(text: str) -> int:
    """The bytes that 64, 1.5k, 16m mean (powers of 1,024). Raises NotAResult."""
    match = SIZE.fullmatch(text)
    if match is None:
        raise NotAResult(f"{text!r} is not a size")
    return int(float(match[1]) * UNITS[match[2]])


def asked_size(text: str) -> int:
    """The bytes that whoever writes 65536, 64K, 1MB, 1GiB means, by 1,024. Raises NotAResult."""
    match = ASKED.fullmatch(text)
    if match is None:
        raise NotAResult(f"expected a size such as 65536 or 64K, got {text!r}")
    return int(match[1]) * UNITS[match[2].lower()]


def row(
    size: int,
    iterations: int,
    latency_us: float | None = None,
    latency_kind: str = "",
    bandwidth_gbps: float | None = None,
    messages_per_s: float | None = None,
    transfer_time_ms: float | None = None,
) -> Row:
    """One size: bytes, microseconds, 1e9 bit/s, milliseconds. `latency_kind` is one_way (half of a round
    trip), per_message (of many in flight) or post_to_completion.

    Raises NotAResult for a figure that nothing can have.
    """
    for value in (latency_us, bandwidth_gbps, messages_per_s, transfer_time_ms):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise NotAResult(f"{size} bytes: a figure of {value:g}")
    return {
        "size_bytes": size,
        "iterations": iterations,
        "latency_us": latency_us,
        "latency_kind": latency_kind or None,
        "bandwidth_gbps": bandwidth_gbps,
        "messages_per_s": messages_per_s,
        "transfer_time_ms": transfer_time_ms,
    }


def record(tool: str, version: str = "", **more: Any) -> Parsed:
    """What every tool's record has, empty where `more` does not say."""
    return {"tool": tool, "tool_version": version or None, "rows": [], "summary": {}, "notes": [], **more}


def result(tool: str, rows: list[Row], version: str = "", complete: bool = True, **more: Any) -> Parsed:
    """The record of a tool. The summary has the latency of the smallest size, and the bandwidth and the time
    of the largest one; nothing where the text does not prove that all sizes are there.

    Raises NotAResult without rows.
    """
    if not rows:
        raise NotAResult("there is no figure in it")
    if complete:
        return record(tool, version, rows=rows, summary=_summary(rows), **more)
    note = "the text does not say which sizes were asked for: no summary"
    return record(tool, version, rows=rows, notes=[note], **more)


def _summary(rows: list[Row]) -> dict[str, Any]:
    smallest, largest = (choose(rows, key=lambda each: each["size_bytes"] or 0) for choose in (min, max))
    # The time of one of many messages in flight is no latency.
    single = smallest["latency_kind"] != "per_message"
    values = {
        "latency_us": smallest["latency_us"] if single else None,
        "bandwidth_gbps": largest["bandwidth_gbps"],
        "transfer_time_ms": largest["transfer_time_ms"],
    }
    return {name: value for name, value in values.items() if value is not None}
