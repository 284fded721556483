"""What nixlbench prints at its initiator (rank 0): its configuration, then a row for each size."""

from __future__ import annotations

import re
from typing import Any

from .reading import NotAResult, Parsed, Row, last_words, lines_of, number, result, row, whole

SETTING = re.compile(r"\(--(\w+)(?:=[^)]*)?\)\s*: (.*)$")
COLUMNS = ("Block Size (B)", "Batch Size", "B/W (GB/Sec)", "Avg Lat. (us)")
GAP = re.compile(r"\s{2,}")


def nixlbench(text: str) -> Parsed:
    """The rows; GB are 1e9 bytes, the latency is that of one block, from its post to its completion.

    Raises NotAResult, also when a size that the configuration names is missing.
    """
    settings: dict[str, str] = {}
    columns: list[str] = []
    rows: list[Row] = []
    done = set()
    for line in lines_of(text):
        setting = SETTING.search(line)
        if setting:
            settings[setting[1]] = setting[2].strip()
        cells = GAP.split(line.strip())
        if all(name in cells for name in COLUMNS):
            columns = cells
        elif columns and cells[0].isdigit():
            if len(cells) < len(columns):
                raise NotAResult("a row that is cut off")
            values = dict(zip(columns, cells))
            rows.append(_row(values, whole(settings.get("num_iter", "0"))))
            done.add((rows[-1]["size_bytes"], rows[-1]["batch"]))
    if not columns:
        raise NotAResult(f"there is no table in it, which the initiator prints: {last_words(text)}")
    blocks, batches = (_doubled(settings, kind) for kind in ("block", "batch"))
    for block in blocks:
        for batch in batches:
            if (block, batch) not in done:
                raise NotAResult(f"there is no row for {batch} blocks of {block} bytes")
    more: dict[str, Any] = {
        "backend": settings.get("backend"),
        "op_type": settings.get("op_type"),
        "scheme": settings.get("scheme"),
        "memory": {role: settings.get(role + "_seg_type") for role in ("initiator", "target")},
        "settings": settings,
    }
    return result("nixlbench", rows, complete=bool(blocks and batches), **more)


def _row(values: dict[str, str], iterations: int) -> Row:
    size, batch = whole(values[COLUMNS[0]]), whole(values[COLUMNS[1]])
    gbytes, latency = number(values[COLUMNS[2]]), number(values[COLUMNS[3]])
    # How long a batch of several takes is not in it.
    took = latency / 1e3 if batch == 1 else None
    one = row(size, iterations, latency, "post_to_completion", gbytes * 8, None, took)
    return {**one, "batch": batch}


def _doubled(settings: dict[str, str], kind: str) -> list[int]:
    """The sizes of blocks or batches that are measured: each twice the one before."""
    first, last = (settings.get(name % kind, "") for name in ("start_%s_size", "max_%s_size"))
    if not (first.isdigit() and last.isdigit() and int(first) > 0):
        return []
    sizes = [int(first)]
    while sizes[-1] * 2 <= int(last):
        sizes.append(sizes[-1] * 2)
    return sizes
