"""The event log: the one interface between running a plan and showing it.

One JSON object a line, appended, with `type`, `time` (seconds since the epoch) and the fields below.

    run.started    run, name, file, steps: [{id, name}], previous (the interrupted run it goes on from)
    run.refused    holder (the run that holds the lock)
    step.started   step, index, attempt, adopted (the run whose process is still at work)
    step.running   step, index: its guard does not hold, the commands run (for a step that takes a while)
    step.planned   step, index, reason ("" would run, else as step.skipped), detail: of a dry run
    step.skipped   step, index, reason (guard, journal, files, service, when, from, until, only), detail,
                   run (the run that has done it, for journal)
    step.retrying  step, index, attempt, attempts, delay, detail
    step.finished  step, index, status (ok, failed, cancelled), cause, detail, exit, duration, command, tail
    service        step, name, state (starting, ready, kept, stopping, stopped), pid
    waiting        step, for
    warning        message, step
    check.finished again: [{step, detail}]
    run.finished   status (ok, failed, cancelled), exit, ok, skipped, failed, duration, failures
"""

from __future__ import annotations

import errno
import json
import os
import time

from . import layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .masking import Masker

FREE_TEXT = ("detail", "message", "tail", "for", "again")
"""The fields that can hold what a step or the world has said."""


class EventLog:
    """Appends events to a run's log and rings the bell of a controller that listens.

    The bell is a pipe (or -1): a byte on it means that there is something new to read. Nothing is
    lost when nobody listens.
    """

    def __init__(self, directory: str, bell: int, masker: Masker) -> None:
        self.path = os.path.join(directory, layout.EVENTS)
        self.bell = bell
        self._masker = masker
        self._reserve = os.path.join(directory, layout.RESERVE)
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        _reserve(self._reserve)

    def emit(self, type: str, **fields: Any) -> None:
        event: dict[str, Any] = {"type": type, "time": round(time.time(), 3)}
        for name, value in fields.items():
            if value is not None:
                event[name] = self._masker.value(value) if name in FREE_TEXT else value
        line = json.dumps(event).encode()
        try:
            layout.write_all(self._fd, line + b"\n")
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            # The reserve is there so that a run on a full disk can still say how it ended. The
            # newline in front ends what the failed write may have left.
            os.unlink(self._reserve)
            layout.write_all(self._fd, b"\n" + line + b"\n")
        self.ring(b"\n")

    def ring(self, data: bytes) -> None:
        if self.bell < 0:
            return
        try:
            os.write(self.bell, data)
        except BlockingIOError:
            pass  # it rings already
        except OSError:
            self.bell = -1  # the controller is gone


def _reserve(path: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, layout.RESERVE_BYTES)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
    finally:
        os.close(fd)


def read_events(path: str, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The events from a byte offset on, and the offset to go on from; a half line stays unread."""
    data = layout.read_by_offset(path, offset, limit=-1)
    end = data.rfind(b"\n") + 1
    return [event for event in map(parse, data[:end].split(b"\n")) if event], offset + end


def parse(line: bytes) -> dict[str, Any] | None:
    """The event or journal entry of a line, or None when a crash has cut it."""
    try:
        value = json.loads(line.decode("utf-8", "replace"))
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
