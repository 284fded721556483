"""What all_reduce_perf and the other nccl-tests print, from 2.13 on, also through mpirun.

A bus bandwidth is not a wire rate. A test of one node uses P2P or shared memory, whatever its log calls the
network; nccl_log tells what was used.
"""

from __future__ import annotations

import math
import re
from typing import Any

from .reading import NotAResult, Parsed, last_words, lines_of, number, record, whole

VERSION = re.compile(r"^# nccl-tests version (\S+)", re.MULTILINE)
NAME = re.compile(r"^# Collective test starting: (\S+)", re.MULTILINE)
SETTINGS = re.compile(r"^# nThread .*minBytes (\d+) maxBytes (\d+)", re.MULTILINE)
ROW = re.compile(r"\s*\d+\s+\d+\s+\w+\s")
WRONG = re.compile(r"# Out of bounds values\s*:\s*(\d+) (OK|FAILED)")
AVERAGE = re.compile(r"# Avg bus bandwidth\s*:\s*(\S+)\s*(FAILED)?")
RANK = re.compile(r"^#\s+Rank\s+\d+ .* on\s+(\S+) device", re.MULTILINE)
FAILURE = re.compile(
    r"^.*(?:Test (?:CUDA|NCCL) failure|Test failure|Invalid number of GPUs).*$", re.MULTILINE
)
REDUCED = re.compile(r"^# Reducing maxBytes to .*$", re.MULTILINE)
HALF = ("time", "algbw", "busbw", "#wrong")


def nccl_tests(text: str) -> Parsed:
    """A row for each size, out of place and in place: `time_us`, `algbw_gbytes_s`, `busbw_gbytes_s` (1e9
    bytes a second), `wrong` (None: not checked). The summary has the largest bus bandwidth, and the time of
    the smallest size that moves anything.

    Raises NotAResult when it failed, had wrong values, or is cut off.
    """
    if text.startswith("{"):
        raise NotAResult("JSON of -J, which not every version has: give the text that it prints")
    lines = lines_of(text)
    text = "\n".join(lines)
    wrong, average = WRONG.search(text), AVERAGE.search(text)
    if wrong and wrong[2] == "FAILED":
        raise NotAResult(f"it failed: {wrong[1]} checks found wrong values")
    failure = FAILURE.search(text)
    if failure:
        raise NotAResult(failure[0].strip())
    columns: list[str] = []
    rows: list[dict[str, Any]] = []
    for line in lines:
        if line.startswith("#       size"):
            columns = line[1:].split()
        elif columns and ROW.match(line):
            rows.append(_row(columns, line.split()))
    if not columns or not rows:
        raise NotAResult(f"there is no table in it: {last_words(text)}")
    if wrong is None or average is None:
        raise NotAResult("it is cut off: its last lines are missing")
    if average[2]:
        raise NotAResult("it failed: below NCCL_TESTS_MIN_BW")
    settings = SETTINGS.search(text)
    reduced = REDUCED.search(text)
    name, version = NAME.search(text), VERSION.search(text)
    hosts = RANK.findall(text)
    best = max(half["busbw_gbytes_s"] for each in rows for half in (each["out_of_place"], each["in_place"]))
    # all_gather rounds a size below 16 bytes for each rank down to nothing, which takes no time.
    first = min(rows, key=lambda each: each["size_bytes"] or math.inf)
    if not first["size_bytes"]:
        raise NotAResult("every size was rounded down to 0 bytes: start with 1K")
    return record(
        name[1] if name else "nccl-tests",
        version[1] if version else "",
        rows=rows,
        summary={
            "latency_us": first["out_of_place"]["time_us"],
            # One rank moves nothing over a bus.
            **({"max_busbw_gbytes_s": best} if best > 0 else {}),
        },
        notes=[reduced[0][2:]] if reduced else [],
        ranks=len(hosts),
        hosts=sorted(set(hosts)),
        asked_sizes=[int(settings[1]), int(settings[2])] if settings else None,
        average_busbw_gbytes_s=number(average[1]),
    )


def _row(columns: list[str], cells: list[str]) -> dict[str, Any]:
    if len(cells) < len(columns):
        raise NotAResult("a row that is cut off")
    at = [index for index, name in enumerate(columns) if name == "time"]
    if len(at) != 2 or columns[at[0] : at[0] + 4] != list(HALF):
        raise NotAResult("a table of a version that is not known: {}".format(" ".join(columns)))
    values = dict(zip(columns[: at[0]], cells))
    return {
        "size_bytes": whole(values["size"]),
        "count": whole(values["count"]),
        "type": values["type"],
        "redop": values["redop"],
        "out_of_place": _half(cells[at[0] :]),
        "in_place": _half(cells[at[1] :]),
    }


def _half(cells: list[str]) -> dict[str, Any]:
    wrong: int | None = None if cells[3] == "N/A" else whole(cells[3])
    if wrong:
        raise NotAResult(f"{wrong} wrong values")
    return {
        "time_us": number(cells[0]),
        "algbw_gbytes_s": number(cells[1]),
        "busbw_gbytes_s": number(cells[2]),
        "wrong": wrong,
    }
