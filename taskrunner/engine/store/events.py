"""The event log: the one interface between running a plan and showing it.

One JSON object a line, appended, with `type`, `time` (seconds since the epoch) and the fields below.

    run.started    run, name, file, steps: [{id, name}], previous (the interrupted run it goes on from)
    run.refused    holder (the run that holds the lock)
    step.started   step, index, attempt, adopted (the run whose process is still at work), because (the step
                   before it that has begun since it was done)
    step.running   step, index: its guard does not hold, the commands run (for a step that takes a while)
    step.planned   step, index, reason ("" would run, else as step.skipped), detail, because: of a dry run
    step.skipped   step, index, reason (guard, journal, files, service, when, from, until, only), detail,
                   run (the run that has done it, for journal)
    step.retrying  step, index, attempt, attempts, delay, detail
    step.finished  step, index, status (ok, failed, cancelled), cause, detail, exit, duration, command, tail,
                   tolerated (on_failure is continue), later (the run had failed or was cancelled before)
    service        step, name, state (starting, ready, kept, stopping, stopped, ended), pid
    waiting        step, for
    warning        message, step
    check.finished again: [{step, detail}]
    run.finished   status (ok, failed, cancelled), exit, ok, skipped, failed, duration, failures
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time

from . import fileio, paths
from .bounded_json import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..run.masking import Masker

FREE_TEXT = ("detail", "message", "tail", "for", "again")
"""The fields that can hold what a step or the world has said."""


PATIENCE = 60.0
"""Seconds for which the end of a run waits for space on a full disk."""
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a full disk or quota."""


class EventLog:
    """Appends events to a run's log and rings the bell of a controller that listens.

    The bell is a pipe (or -1): a byte on it means that there is something new to read. Nothing is lost
    when nobody listens. On a full disk events wait in memory for the next one, and at the end of the run
    for space: the end has a reserve.
    """

    def __init__(self, directory: str, bell: int, masker: Masker) -> None:
        self.path = os.path.join(directory, paths.EVENTS)
        self.bell = bell
        self._masker = masker
        self.reserve = Reserve(os.path.join(directory, paths.RESERVE))
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._waiting = b""
        self.reserve.make()

    def emit(self, type: str, **fields: Any) -> None:
        """Write an event; raises OSError for any other reason than a full disk."""
        event: dict[str, Any] = {"type": type, "time": round(time.time(), 3)}
        for name, value in fields.items():
            if value is not None:
                event[name] = self._masker.value(value) if name in FREE_TEXT else value
        self._waiting += json.dumps(event).encode() + b"\n"
        self._written()
        self.ring(b"\n")

    def flush(self, patience: float = PATIENCE) -> bool:
        """Wait until all events are written; whether they are."""
        deadline = time.monotonic() + patience
        while not self._written():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        self.ring(b"\n")
        return True

    def _written(self) -> bool:
        while self._waiting:
            try:
                self._waiting = self._waiting[os.write(self._fd, self._waiting) :]
            except OSError as error:
                if error.errno not in NO_SPACE:
                    raise
                if not self.reserve.spend():
                    return False
        return True

    def ring(self, data: bytes) -> None:
        if self.bell < 0:
            return
        try:
            os.write(self.bell, data)
        except BlockingIOError:
            pass  # it rings already
        except OSError:
            self.bell = -1  # the controller is gone


class Reserve:
    """A file that holds some space, for what must be written on a full disk."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.held = False

    def make(self) -> bool:
        """Hold the space, if there is any; whether it is held."""
        if not self.held:
            with contextlib.suppress(OSError):
                fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    os.posix_fallocate(fd, 0, paths.RESERVE_BYTES)
                    self.held = True
                except OSError as error:
                    self.held = error.errno not in NO_SPACE  # a file system that cannot do it
                    os.unlink(self._path)
                finally:
                    os.close(fd)
        return self.held

    def spend(self) -> bool:
        """Give the space to whoever writes next; False when that has been done."""
        held, self.held = self.held, False
        with contextlib.suppress(OSError):
            os.unlink(self._path)
        return held


def read_events(path: str, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The events from a byte offset on, and the offset to go on from; a half line stays unread."""
    data = fileio.read_by_offset(path, offset, limit=-1)
    end = data.rfind(b"\n") + 1
    return [event for event in map(parse_event, data[:end].split(b"\n")) if event], offset + end


def parse(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a line or file, or None when a crash has cut it, or it is too large to be one."""
    try:
        value = loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def parse_event(line: bytes) -> dict[str, Any] | None:
    """The event of a line; None for a line that is cut or is no event."""
    event = parse(line)
    if event is None or not isinstance(event.get("type"), str):
        return None
    needed = (("time", (int, float)), *FIELDS.get(event["type"], ()))
    return event if all(fits(event.get(name), kind) for name, kind in needed) else None


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type; a number is one that can be reckoned with."""
    if isinstance(value, (int, float)):
        return isinstance(value, kind) and not isinstance(value, bool) and abs(value) < MOST
    return isinstance(value, kind)


MOST = 1e15
"""More than any number that there is to tell, in any of its units."""
_STEP = (("step", str), ("index", int))
FIELDS: dict[str, tuple[tuple[str, Any], ...]] = {
    "run.started": (("name", str), ("file", str), ("steps", list)),
    "run.refused": (("holder", str),),
    "step.started": _STEP,
    "step.running": _STEP,
    "step.planned": (*_STEP, ("reason", str)),
    "step.skipped": (*_STEP, ("reason", str)),
    "step.retrying": (*_STEP, ("attempt", int), ("attempts", int), ("delay", (int, float)), ("detail", str)),
    "step.finished": (*_STEP, ("status", str), ("duration", (int, float))),
    "service": (("step", str), ("name", str), ("state", str), ("pid", int)),
    "waiting": (("step", str), ("for", str)),
    "warning": (("message", str),),
    "check.finished": (("again", list),),
    "run.finished": (
        ("status", str),
        ("exit", int),
        ("ok", int),
        ("skipped", int),
        ("failed", int),
        ("duration", (int, float)),
        ("failures", list),
    ),
}
"""What an event is sure to have, and of which type: those who read one rely on it, whatever has become of
a file.
"""
