"""Connections to the servers behind the proxy, kept open and used again."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import cast
from urllib.parse import urlsplit

import httptools

MOST_IDLE = 1024


class Upstream(asyncio.Protocol):
    """One connection. Bytes of a response go to `sink` as they come; `ended` hears once how it ended: ""
    when it is complete, else what has gone wrong.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.transport: asyncio.Transport | None = None
        self.received = 0
        self.used = False
        """Whether it was kept from before: a server may have closed it meanwhile."""
        self._sink: Callable[[bytes], object] | None = None
        self._ended: Callable[[str], object] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._complete = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by descent

    def ask(self, request: bytes, sink: Callable[[bytes], object], ended: Callable[[str], object]) -> None:
        """Send a request."""
        assert self.transport is not None
        self._sink, self._ended, self._complete, self.received = sink, ended, False, 0
        self._parser = httptools.HttpResponseParser(self)
        self.transport.write(request)

    def on_message_complete(self) -> None:
        # An answer before the answer (100 Continue) is none.
        self._complete = self._parser.get_status_code() >= 200

    def data_received(self, data: bytes) -> None:
        if self._sink is None:
            self.drop()  # nobody has asked
            return
        self.received += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(f"what it answers is not HTTP: {error}")
            self.drop()
            return
        self._sink(data)
        if self._complete:
            keep = self._parser.should_keep_alive()
            self._end("")
            if keep:
                self.free()
            else:
                self.drop()

    @property
    def usable(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    def free(self) -> None:
        """Keep it for the next request."""
        if self.transport is None or self.transport.is_closing() or len(self.server.idle) >= MOST_IDLE:
            self.drop()
            return
        self.transport.resume_reading()
        self.server.idle.append(self)

    def connection_lost(self, error: Exception | None) -> None:
        if self in self.server.idle:
            self.server.idle.remove(self)
        self._end(str(error) if error else "it has closed the connection")

    def drop(self) -> None:
        """Close it; who has asked hears nothing more."""
        self._sink = self._ended = None
        if self.transport is not None:
            self.transport.abort()

    def _end(self, problem: str) -> None:
        ended, self._ended, self._sink = self._ended, None, None
        if ended is not None:
            ended(problem)


class Server:
    """A server, and the connections to it that are free."""

    def __init__(self, role: str, url: str) -> None:
        address = urlsplit(url if "://" in url else f"http://{url}")
        if address.scheme != "http" or not address.hostname:
            raise ValueError(f"{url}: expected http://HOST:PORT")
        self.role, self.host, self.port = role, address.hostname, address.port or 80
        self.url = f"http://{self.host}:{self.port}"
        self.idle: deque[Upstream] = deque()

    async def connection(self, fresh: bool = False) -> Upstream:
        """A connection that was kept, or a new one. Raises OSError."""
        while self.idle and not fresh:
            found = self.idle.pop()
            if found.usable:
                found.used = True
                return found
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(lambda: Upstream(self), self.host, self.port)
        return made

    def framed(self, method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> bytes:
        """A request to it: end-to-end headers as they came."""
        kept = [f"{name}: {value}\r\n" for name, value in headers if name.lower() not in OURS]
        head = f"{method} {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n{''.join(kept)}"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode("latin-1") + body


OURS = {"host", "content-length", "transfer-encoding", "connection", "keep-alive", "expect", "upgrade", "te"}
"""Headers that belong to a connection, not to a request."""
