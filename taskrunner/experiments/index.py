"""The index of a plan's results, beside them: a line of JSON for each cell and each run of a tool."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAME = "index.jsonl"
LARGEST = 1e300
"""What a number is below."""


def lines(folder: Path) -> Sequence[dict[str, Any]]:
    """The index in a plan's folder; nothing without one. Lines that are not JSON objects are skipped."""
    path = folder / NAME
    try:
        about = os.stat(path)
    except OSError:
        return ()
    return _read(path, about.st_mtime_ns, about.st_size)


@functools.lru_cache(maxsize=1)
def _read(path: Path, changed: int, size: int) -> Sequence[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ()
    objects = []
    for line in text.splitlines():
        try:
            one = json.loads(line)
        except ValueError:
            continue
        if isinstance(one, dict):
            objects.append(one)
    return tuple(objects)


def number(value: Any) -> float | None:
    """The value if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if abs(value) < LARGEST else None  # which NaN is not
