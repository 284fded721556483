"""What ib_write_bw, ib_send_bw, ib_read_bw and their _lat print: tables whose header says in which unit.

A latency is one way. Of bandwidths the average counts: the peak is 0 in runs that measure none.
"""

from __future__ import annotations

import re
from typing import Any

from .reading import MIB, NotAResult, Parsed, alone, lines_of, number, result, row, whole

HEADER = re.compile(r"^\s*#bytes\s+#iterations\s+(.*)$")
DEVICE = re.compile(r"^\s*Device\s*:\s*(\S+)", re.MULTILINE)
TRANSPORT = re.compile(r"Connection type\s*:\s*(\S+)")
UNITS = {"MB/sec": MIB * 8 / 1e9, "MiB/sec": MIB * 8 / 1e9, "Gb/sec": 1.0}
BANDWIDTH = re.compile(r"BW average\[([^\]]+)\]")
FAILURE = re.compile(
    r"Couldn't|Unable to|Failed|did not detect|not possible|Invalid|only possible", re.IGNORECASE
)


def perftest(text: str) -> Parsed:
    """The rows of the table. Raises NotAResult, with the tool's own words where it has some."""
    lines = lines_of(text)
    title = ""
    rows = []
    for line in lines:
        header = HEADER.match(line)
        if header:
            title = header[1]
            continue
        cells = line.split()
        if title and cells and cells[0].isdigit():
            rows.append(_row(title, cells))
    if not title:
        failures = [line.strip() for line in lines if FAILURE.search(line)]
        raise NotAResult(failures[0] if failures else "there is no table in it")
    device, transport = DEVICE.search(text), TRANSPORT.search(text)
    more: Any = {
        "device": device[1] if device else None,
        "connection_type": transport[1] if transport else None,
    }
    return result("perftest", rows, complete=alone(rows), **more)


def _row(title: str, cells: list[str]) -> Any:
    size, iterations = whole(cells[0]), whole(cells[1])
    unit = BANDWIDTH.search(title)
    if unit:
        if len(cells) < 5 or unit[1] not in UNITS:
            raise NotAResult("a row that is cut off, or in another unit")
        return row(size, iterations, None, "", number(cells[3]) * UNITS[unit[1]], number(cells[4]) * 1e6)
    names = title.split()
    at = names.index("t_avg[usec]") if "t_avg[usec]" in names else -1
    if at < 0 or len(cells) < at + 3:
        raise NotAResult("a row that is cut off")
    return row(size, iterations, number(cells[2 + at]), "one_way")
