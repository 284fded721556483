"""The record of a node, or of two: what all of them begin with, and how they are written and shown."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable, Mapping
from typing import Any

from ..circumstances import machine
from ..output import write

VERSION = 1


def made(measurement_type: str = "", peer: str | None = None, **more: Any) -> dict[str, Any]:
    """A record of this node, and of `peer` where it is of two; a sweep knows it by its FINGERPRINT."""
    fingerprint = os.environ.get("FINGERPRINT", "")
    return {
        "kind": "low-level",
        "version": VERSION,
        **({"fingerprint": fingerprint} if fingerprint else {}),
        **({"measurement_type": measurement_type} if measurement_type else {}),
        "node": platform.node(),
        "peer": peer,
        "started_at": time.time(),
        "instance_type": machine.about()["instance_type"] or None,
        **more,
    }


def tell(record: Mapping[str, Any], lines: Iterable[str], path: str) -> None:
    """Write a record, unless `path` is "", and show it."""
    if path:
        write(path, json.dumps(record, indent=1))
    for line in lines:
        print(line)
