"""What is known of a service, in its folder: its record, its log, and how a one-shot server has ended."""

from __future__ import annotations

import json
import os

from ..store import fileio, identity, paths
from ..store.events import parse
from . import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .context import Context

RECORD: tuple[tuple[str, Any], ...] = (
    ("tag", str),
    ("pid", int),
    ("definition", str),
    ("started", (int, float)),
)
"""What the record of a service has, at least."""
STATUS = "status"
"""The file with the exit status of a one-shot server."""


def load(ctx: Context, directory: str, name: str) -> dict[str, Any]:
    """The record of a service, {} for none; also as an older version has kept it."""
    for place in (directory, os.path.join(ctx.root, "services", paths.slug(name))):
        record = parse(fileio.read_bytes(path_of(place))) or {}
        if all(isinstance(record.get(name), kind) for name, kind in RECORD) and identity.here(record):
            return {**record, "place": place}
    return {}


def keep(directory: str, record: dict[str, Any]) -> None:
    fileio.write_atomic(path_of(record.get("place", directory)), json.dumps(record).encode())


def path_of(directory: str) -> str:
    return os.path.join(directory, "service.json")


def members(record: dict[str, Any]) -> set[int]:
    """The processes of a service that live."""
    return processes.tree(record["tag"], identity.session(record), record.get("seen", 0))


def log_of(ctx: Context, name: str | None) -> str:
    if not name:
        return ""
    return os.path.join(paths.service_dir(ctx.root, ctx.project, ctx.named(name)), "log")


def exit_status(directory: str) -> int | None:
    """How a one-shot server has ended; None where it has not, or was killed with its shell."""
    text = fileio.read_bytes(os.path.join(directory, STATUS)).strip()
    return int(text) if text.isdigit() else None
