"""Connections to the servers behind the proxy, kept open and used again."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol, cast

import httptools

from .. import endpoint
from ..write_now import descriptor, write_now
from .request import NOT_PASSED_ON, Headers, Request, passed_on

MOST_IDLE = 1024
LARGEST_HEAD = 256 << 10
"""Bytes of the head of an answer."""


class ResponseSink(Protocol):
    """Takes an answer as it comes."""

    def head(self, status: int, reason: str, headers: Headers, length: int | None = None) -> None:
        """The status and the headers; `length` is that of the body, where it is known."""

    def body(self, data: bytes) -> None:
        """More of the body."""


class BackendConnection(asyncio.Protocol):
    """One connection. An answer goes to `sink` as it comes; `ended` hears once how it ended: "" when it is
    complete, else what has gone wrong.
    """

    def __init__(self, server: Backend) -> None:
        self.server = server
        self.transport: asyncio.Transport | None = None
        self._fd = -1
        self.received = 0
        self.used = False
        """Whether it was kept from before: a server may have closed it meanwhile."""
        self._sink: ResponseSink | None = None
        self._ended: Callable[[str], object] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._reset()

    def _reset(self) -> None:
        self._reason = b""
        self._headers: Headers = []
        self._pieces: list[bytes] = []
        self._headed = self._complete = self._keep = self._surplus = self._until_close = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by descent
        self._fd = descriptor(transport)

    def ask(self, request: bytes, sink: ResponseSink, ended: Callable[[str], object]) -> None:
        """Send a request. Not with HEAD: its answer has a length and no body."""
        assert self.transport is not None
        self._sink, self._ended, self.received = sink, ended, 0
        self._parser = httptools.HttpResponseParser(self)
        self._reset()
        write_now(self.transport, self._fd, request)

    # What the parser tells.

    def on_message_begin(self) -> None:
        self._surplus = self._complete
        self._reason, self._headers = b"", []

    def on_status(self, reason: bytes) -> None:
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._headed:
            self._headers.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200 or self._surplus or self._sink is None:
            return  # an answer before the answer (100 Continue) is none
        headers = {name.lower(): value for name, value in self._headers}
        length = headers.get("content-length", "")
        self._until_close = not length and "transfer-encoding" not in headers and status not in (204, 304)
        self._headed = True
        self._sink.head(
            status, self._reason.decode("latin-1"), self._headers, int(length) if length.isdigit() else None
        )

    def on_body(self, data: bytes) -> None:
        if self._headed and not self._surplus:
            self._pieces.append(data)

    def on_message_complete(self) -> None:
        if self._headed and not self._complete:
            # Asked for here: the parser forgets it with the end of what it is fed.
            self._complete, self._keep = True, self._parser.should_keep_alive()

    # What asyncio tells.

    def data_received(self, data: bytes) -> None:
        if self._sink is None:
            self.drop()  # nobody has asked
            return
        self.received += len(data)
        problem = ""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            problem = f"its response is not HTTP: {error}"
        if not self._headed and self.received > LARGEST_HEAD:
            problem = "the head of its response is too large"
        pieces, self._pieces = self._pieces, []
        if pieces:
            self._sink.body(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if self._complete:
            # What comes behind a complete answer belongs to nobody.
            keep = self._keep and not problem and not self._surplus
            self._end("")
            if keep:
                self.free()
            else:
                self.drop()
        elif problem:
            self._end(problem)
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
        whole = self._headed and self._until_close and error is None
        self._end("" if whole else str(error) if error else "it closed the connection")

    def drop(self) -> None:
        """Close it; who has asked hears nothing more."""
        self._sink = self._ended = None
        if self.transport is not None:
            self.transport.abort()

    def _end(self, problem: str) -> None:
        ended, self._ended, self._sink = self._ended, None, None
        if ended is not None:
            ended(problem)


class Backend:
    """A server, and the connections to it that are free."""

    def __init__(self, role: str, url: str) -> None:
        """Raises ValueError for what is no endpoint."""
        self.role, self.endpoint = role, endpoint.parse(url)
        self.url = self.endpoint.url
        self._tls = self.endpoint.tls()
        self.idle: deque[BackendConnection] = deque()

    def kept(self) -> BackendConnection | None:
        """A connection from before, if there is one."""
        while self.idle:
            connection = self.idle.pop()
            if connection.usable:
                connection.used = True
                return connection
        return None

    async def connect(self) -> BackendConnection:
        """A new connection. Raises OSError."""
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(
            lambda: BackendConnection(self), self.endpoint.host, self.endpoint.port, ssl=self._tls
        )
        return made

    def framed(self, request: Request, headers: Headers, body: bytes) -> bytes:
        """A request to it: end-to-end headers as they came, the path as it was understood here."""
        method = "GET" if request.method == "HEAD" else request.method
        query = f"?{request.query}" if request.query and method == "GET" else ""
        target = self.endpoint.base + request.path + query
        own = self.endpoint.headers()
        left_out = NOT_PASSED_ON | {name.lower() for name in own}
        kept = [*passed_on(headers, left_out), *own.items()]
        head = f"{method} {target} HTTP/1.1\r\nHost: {self.endpoint.authority}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in kept)
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode("latin-1") + body
