"""The runs of the past: what is known of each, and which file was run last in a folder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from taskrunner.engine import layout
from taskrunner.engine.events import parse
from taskrunner.errors import NotFoundError
from taskrunner.transports import Transport
from taskrunner.transports.local import LocalTransport

if TYPE_CHECKING:
    from taskrunner.events import Status


class RunInfo(NamedTuple):
    """A line of the history: `started` in seconds since the epoch, `duration` in seconds."""

    run: str
    name: str
    file: str
    started: float
    status: Status | str
    duration: float | None
    failures: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return self._asdict()


def info(run: str, transport: Transport) -> RunInfo | None:
    """What is known of a run; its status is running, interrupted, or how it ended."""
    first = parse(transport.read(run, layout.EVENTS, 0, 1 << 20).split(b"\n", 1)[0])
    if first is None or first["type"] != "run.started":
        return None
    data = transport.read(run, layout.EVENTS, 0)
    last = next(filter(None, map(parse, reversed(data.split(b"\n")))), None)
    ended = last is not None and last["type"] == "run.finished"
    status = last["status"] if ended and last else "running" if transport.alive(run) else "interrupted"
    return RunInfo(
        run,
        first["name"],
        first["file"],
        first["time"],
        status,
        last["duration"] if ended and last else None,
        tuple(last["failures"]) if ended and last else (),
    )


def past_runs(limit: int = 20, transport: Transport | None = None) -> list[RunInfo]:
    """The last runs, the newest first."""
    transport = transport or LocalTransport()
    found: list[RunInfo] = []
    for run in transport.runs():
        if len(found) == limit:
            break
        known = info(run, transport)
        if known is not None:
            found.append(known)
    return found


def remember_last(root: str, cwd: Path, path: str) -> None:
    """Note which file was run last in a folder, for a `--from` without a file."""
    target = _last_path(root, cwd)
    os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
    layout.write_atomic(target, path.encode("utf-8", "surrogateescape"))


def last_file(root: str, cwd: Path) -> Path:
    """The file that was run last in this folder. Raises NotFoundError."""
    data = layout.read_bytes(_last_path(root, cwd))
    if not data:
        raise NotFoundError(
            "no task file was run in this folder yet", "name one: taskrunner FILE --from STEP"
        )
    return Path(data.decode("utf-8", "surrogateescape"))


def _last_path(root: str, cwd: Path) -> str:
    name = hashlib.sha256(str(cwd).encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return os.path.join(root, "last", name)
