"""A run as it is followed: its event log and its steps' logs, merged into one order."""

from __future__ import annotations

import os
import time

from . import fileio, paths
from .events import parse_event

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Iterator, NamedTuple

    class Cursor(NamedTuple):
        """How far a run has been read: bytes of its event log, and of the log of the current step."""

        events: int = 0
        log: str = ""
        offset: int = 0

    class Chunk(NamedTuple):
        """A line of the event log (`log` is empty) or a piece of a step's log, and where it ends."""

        log: str
        data: bytes
        position: Cursor

else:
    from collections import namedtuple

    Cursor = namedtuple("Cursor", "events log offset", defaults=(0, "", 0))
    Chunk = namedtuple("Chunk", "log data position")

BLOCK = 1 << 20
SILENCE = 1.0
"""Seconds without an event after which the engine is looked for."""
TAIL = 4096
"""Bytes at the end of what is new that are enough for who shows the last lines only."""

NONE, LAST, ALL = "none", "last", "all"
"""How much of what the steps print is wanted."""


class RunReader:
    """Reads on from a position. All that a step printed comes before the event of its end.

    `over` is true once the event that ends a run was read.
    """

    def __init__(self, directory: str, output: str, position: Cursor | None = None) -> None:
        self.over = False
        self._directory = directory
        self._output = output
        self._at = position or Cursor()
        self._heard = time.monotonic()

    def read(self) -> Iterator[Chunk]:
        """What is new."""
        more = True
        while more:
            data = self._new_events()
            more = len(data) >= BLOCK and b"\n" in data
            for line in data[: data.rfind(b"\n") + 1].split(b"\n")[:-1]:
                event = parse_event(line) or {"type": ""}
                kind = event["type"]
                if self._at.log and kind in ("step.finished", "step.skipped", "step.started"):
                    for chunk in self._printed():
                        yield chunk
                log, offset = self._at.log, self._at.offset
                if kind in ("step.finished", "step.skipped"):
                    log, offset = "", 0
                elif kind == "step.started" and self._output != NONE:
                    path = paths.log_path("", event["index"], event["step"])
                    log, offset = path, 0
                self._at = Cursor(self._at.events + len(line) + 1, log, offset)
                self.over = self.over or kind in ("run.finished", "run.refused")
                # Only an event is a sign of the engine: a step may print on when that is gone.
                self._heard = time.monotonic()
                yield Chunk("", line + b"\n", self._at)
        for chunk in self._printed():
            yield chunk

    def lost(self, alive: Callable[[], bool], at_once: bool = False) -> bool:
        """Whether the engine is gone and has left nothing to read; `alive` is asked for it after a
        silence, or `at_once`.
        """
        if not at_once and time.monotonic() - self._heard <= SILENCE:
            return False
        self._heard = time.monotonic()
        return not alive() and b"\n" not in self._new_events()

    def _new_events(self) -> bytes:
        path = os.path.join(self._directory, paths.EVENTS)
        data = fileio.read_by_offset(path, self._at.events, BLOCK)
        if len(data) == BLOCK and b"\n" not in data:
            return fileio.read_by_offset(path, self._at.events, -1)  # an event that is longer
        return data

    def _printed(self) -> Iterator[Chunk]:
        while self._at.log:
            path = os.path.join(self._directory, self._at.log)
            if self._output == LAST:
                self._skip(path)
            data = fileio.read_by_offset(path, self._at.offset, BLOCK)
            if not data:
                return
            self._at = self._at._replace(offset=self._at.offset + len(data))
            yield Chunk(self._at.log, data, self._at)

    def _skip(self, path: str) -> None:
        try:
            end = os.stat(path).st_size
        except OSError:
            return
        self._at = self._at._replace(offset=max(self._at.offset, end - TAIL))
