"""The runs of the past: what is known of each, and which file was run last in a folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from taskrunner.engine.store import fileio, paths
from taskrunner.errors import NotFoundError
from taskrunner.transports import Transport
from taskrunner.transports.local import LocalTransport

if TYPE_CHECKING:
    from taskrunner.events import Status


class RunInfo(NamedTuple):
    """A line of the history: `started` in seconds since the epoch, `duration` in seconds.

    The status is running, interrupted, or how the run ended; `step` is the one that a run is at (its
    id, its index from 0, and when it started) of `steps`.
    """

    run: str
    name: str
    file: str
    started: float
    status: Status | str
    duration: float | None
    failures: Sequence[str]
    steps: int
    step: dict[str, Any] | None

    def as_dict(self) -> dict[str, Any]:
        return self._asdict()


def past_runs(limit: int = 20, transport: Transport | None = None, *, live: bool = False) -> list[RunInfo]:
    """The last runs, the newest first; with `live`, of those that are under way."""
    return [RunInfo(**fields) for fields in (transport or LocalTransport()).infos(limit, live)]


def remember_last(path: str) -> None:
    """Note which file was run last in this folder, for a `--from` without a file.

    Its run has begun, and may have filled the disk already: then no file is known, rather than another one.
    """
    target = _last_path(Path.cwd())
    try:
        fileio.private_folder(os.path.dirname(target))
        fileio.write_atomic(target, path.encode("utf-8", "surrogateescape"))
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(target)


def last_file() -> Path:
    """The file that was run last in this folder. Raises NotFoundError."""
    data = b""
    with contextlib.suppress(OSError):
        data = fileio.read_bytes(_last_path(Path.cwd()))
    if not data:
        raise NotFoundError(
            "no task file has been run in this folder yet", "give one: taskrunner FILE --from STEP"
        )
    return Path(data.decode("utf-8", "surrogateescape"))


def _last_path(cwd: Path) -> str:
    name = hashlib.sha256(str(cwd).encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return os.path.join(paths.default_root(), "last", name)
