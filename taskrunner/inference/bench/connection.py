"""One HTTP connection that sends prepared requests and notes when which bytes came. Nothing is parsed in
the run but where a response ends: what a client does while the stream runs, it measures.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple, cast

import httptools

from ..write_now import descriptor, write_now

HIGH = 4 << 20


class Exchange(NamedTuple):
    """A request and what came back. Times are of time.perf_counter, in seconds.

    `number` is that of the request, `scheduled` when it should have been sent, `began` when it was; `end`
    when the response was complete, or the connection lost (then `broken` says how). `pieces` are the
    received bytes.
    """

    number: int
    scheduled: float
    began: float
    end: float
    status: int
    broken: str
    pieces: list[tuple[float, bytes]]


class Connection(asyncio.Protocol):
    """A connection. `finished` is called with each exchange; `send` may be called again from there."""

    def __init__(self, finished: Callable[[Connection, Exchange], None]) -> None:
        self._finished = finished
        self._clock = time.perf_counter
        self._transport: asyncio.Transport | None = None
        self._fd = -1
        self._busy = False
        self._index = 0
        self._scheduled = self._began = 0.0
        self._pieces: list[tuple[float, bytes]] = []
        self._parser = httptools.HttpResponseParser(self)
        self._complete = self._keep = False

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing() and not self._busy

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by descent
        self._transport.set_write_buffer_limits(HIGH)
        self._fd = descriptor(transport)

    def send(self, index: int, request: bytes, scheduled: float) -> None:
        """Send a whole request; `index` is given back with what comes of it."""
        assert self._transport is not None
        self._busy, self._complete = True, False
        self._index, self._pieces = index, []
        self._parser = httptools.HttpResponseParser(self)
        self._began = self._clock()
        self._scheduled = scheduled or self._began
        write_now(self._transport, self._fd, request)

    def on_message_complete(self) -> None:
        # Asked for here: the parser forgets it with the end of what it is fed.
        self._complete, self._keep = True, self._parser.should_keep_alive()

    def data_received(self, data: bytes) -> None:
        now = self._clock()
        self._pieces.append((now, data))
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.give_up(f"not HTTP: {error}")
            return
        if self._complete:
            self._end(now, "", closing=not self._keep)

    def connection_lost(self, error: Exception | None) -> None:
        if self._busy:
            self._end(self._clock(), f"the connection was lost: {error or 'closed by the server'}")

    def give_up(self, why: str) -> None:
        """End an exchange that takes too long, and the connection: nothing else may be sent on it."""
        self.close()
        if self._busy:
            self._end(self._clock(), why)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _end(self, now: float, broken: str, closing: bool = False) -> None:
        if not self._busy:
            return
        self._busy = False
        try:
            status = self._parser.get_status_code()
        except Exception:
            status = 0
        if closing and self._transport is not None:
            self._transport.close()
        done = Exchange(self._index, self._scheduled, self._began, now, status, broken, self._pieces)
        self._finished(self, done)
