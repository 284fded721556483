"""The index of a plan's results, beside them: a line of JSON for each cell and each run of a tool."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAME = "index.jsonl"


def lines(folder: Path) -> Sequence[dict[str, Any]]:
    """What the index in a plan's folder has; nothing without one. A line that is none is left out."""
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
    found = []
    for line in text.splitlines():
        try:
            one = json.loads(line)
        except ValueError:
            continue
        if isinstance(one, dict):
            found.append(one)
    return tuple(found)
