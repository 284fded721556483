"""What fi_pingpong and fabtests (fi_rdm_bw, fi_rdm_pingpong, fi_rma_bw, fi_rdm_tagged_bw, ...) print.

A ping-pong's usec/xfer is one way; a bandwidth test's is the time of one of many messages in flight.
`MB` is 1e6 bytes. Which provider carried the data is not in the output: only what was asked for.
"""

from __future__ import annotations

import re
from typing import Any

from .reading import (
    NotAResult,
    Parsed,
    Row,
    alone,
    asked_size,
    count_of,
    last_words,
    lines_of,
    number,
    result,
    row,
    size_of,
    whole,
)

PINGPONG = ("bytes", "#sent", "#ack", "total", "time", "MB/sec", "usec/xfer", "Mxfers/sec")
FABTESTS = ("bytes", "iters", "total", "time", "MB/sec", "usec/xfer", "Mxfers/sec")
MEMBER = re.compile(r"([\w/]+): ([^,}]+?)\s*[,}]")
ASKED_SIZE = re.compile(r"\s-S\s*(\S+)")
ASKED_PROVIDER = re.compile(r"\s-p\s*(\S+)")


def fi_pingpong(text: str, size: int = 0) -> Parsed:
    """The table of fi_pingpong, of either side; `size` is the one that was asked for. Raises NotAResult."""
    rows = []
    for cells in _table(text, PINGPONG):
        own, sent, back = size_of(cells[0]), count_of(cells[1]), cells[2]
        if back != "=" + cells[1]:
            raise NotAResult(f"{cells[0]}: only {back} of {sent} transfers came back")
        rows.append(_row(own, sent, number(cells[6]), "one_way"))
    return result("fi_pingpong", rows, complete=_whole(rows, size))


def fabtests(text: str, tool: str = "", size: int = 0) -> Parsed:
    """Output of a tool of fabtests, for machines (-m) or people. `tool` is its name where the text lacks it.

    Raises NotAResult, also when the size is another one than was asked for: fabtests takes 64K for 64.
    """
    if not text.startswith("---"):
        rows = [
            _row(size_of(cells[0]), count_of(cells[1]), number(cells[5]), _kind(tool))
            for cells in _table(text, FABTESTS)
        ]
        return result(tool or "fabtests", rows, complete=_whole(rows, size))
    lines = lines_of(text)
    command = lines[1] if len(lines) > 1 else ""
    if not command.endswith(" :"):
        raise NotAResult("there is no command line in it")
    name = command.split()[0].rpartition("/")[2]
    rows = []
    for line in lines[2:]:
        if line.startswith("- {"):
            members: dict[str, str] = dict(MEMBER.findall(line))
            try:
                own, count = whole(members["xfer_size"]), whole(members["iterations"])
                rows.append(_row(own, count, number(members["usec/xfer"]), _kind(name)))
            except KeyError as error:
                raise NotAResult(f"a row without {error}") from error
    asked = ASKED_SIZE.search(command)
    if asked and asked[1] != "all":
        sizes = [each["size_bytes"] for each in rows]
        if rows and sizes != [asked_size(asked[1])]:
            raise NotAResult(f"-S {asked[1]} was asked for, but {sizes[0]} bytes were sent")
    provider = ASKED_PROVIDER.search(command)
    return result(
        name,
        rows,
        complete=asked is not None and asked[1] != "all",
        fabric={"asked": provider[1] if provider else None, "proven": None},
        argv=command[:-2].split(),
    )


def _whole(rows: list[Row], size: int) -> bool:
    """Whether all rows are there that were asked for. Raises NotAResult when they are of another size."""
    if size and rows and [each["size_bytes"] for each in rows] != [size]:
        raise NotAResult(f"{size} bytes were asked for, but {rows[0]['size_bytes']} were sent")
    return bool(size) or alone(rows)


def _kind(tool: str) -> str:
    return "one_way" if "pingpong" in tool else "per_message" if tool else ""


def _row(size: int, count: int, usec: float, kind: str) -> Row:
    if usec <= 0:
        raise NotAResult(f"{size} bytes: a transfer of {usec:g} us")
    gbps = size * 8 / usec / 1e3
    return row(size, count, usec, kind, gbps if size else None, 1e6 / usec, usec / 1e3)


def _table(text: str, header: Any) -> list[list[str]]:
    rows: list[list[str]] = []
    seen = False
    for line in lines_of(text):
        cells = line.split()
        if tuple(cells) == tuple(header):
            seen = True
        elif seen and cells:
            if len(cells) != len(header):
                raise NotAResult(f"a line that is no row: {line.strip()[:80]!r}")
            rows.append(cells)
    if not seen:
        raise NotAResult(f"there is no table in it: {last_words(text)}")
    return rows
