"""The side of the proxy that clients see: one connection, one request at a time on it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

import httptools

if TYPE_CHECKING:
    from .serve import Proxy

LARGEST = 64 << 20
"""Bytes of a request's body: 128K tokens as ids are one megabyte."""


class Front(asyncio.Protocol):
    """A client's connection. What is passed on goes out as it comes; who reads slowly slows down its
    server.
    """

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.transport: asyncio.Transport | None = None
        self.gone = False
        self.begun = False
        """Whether any byte of the answer was sent."""
        self.source: asyncio.Transport | None = None
        """Where the bytes come from that are passed on just now."""
        self.method = self.path = ""
        self.headers: list[tuple[str, str]] = []
        self.received = 0.0
        self.left: Callable[[], object] | None = None
        """Called when the client goes away in the middle."""
        self._url = b""
        self._body = bytearray()
        self._parser = httptools.HttpRequestParser(self)
        self._task: asyncio.Task[None] | None = None
        self._waiting: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by descent
        self.proxy.fronts.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.gone = True
        self.proxy.fronts.discard(self)
        if self.source is not None:
            self.source.resume_reading()
        if self.left is not None:
            self.left()

    def pause_writing(self) -> None:
        if self.source is not None:
            self.source.pause_reading()

    def resume_writing(self) -> None:
        if self.source is not None and not self.source.is_closing():
            self.source.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self._task is not None:
            # A request behind the one that is being answered waits for its turn.
            self._waiting.append(data)
            assert self.transport is not None
            if sum(map(len, self._waiting)) > LARGEST:
                self.transport.abort()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.refuse(HTTPStatus.NOT_IMPLEMENTED, "no upgrade here")
            self.close()
        except httptools.HttpParserError as error:
            self.refuse(HTTPStatus.BAD_REQUEST, f"not HTTP: {error}")
            self.close()

    def on_message_begin(self) -> None:
        self.received = time.perf_counter()
        self._url, self.headers = b"", []
        self._body.clear()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.decode("latin-1"), value.decode("latin-1")))
        if name.lower() == b"expect" and self.transport is not None:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        self._body += data
        if len(self._body) > LARGEST:
            self.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {LARGEST >> 20} MiB")
            self.close()

    def on_message_complete(self) -> None:
        if self.gone:
            return
        self.received = time.perf_counter()
        self.method = self._parser.get_method().decode("latin-1")
        self.path = self._url.decode("latin-1")
        self._keep = self._parser.should_keep_alive()
        self.begun = False
        self._task = asyncio.get_running_loop().create_task(self._answer(bytes(self._body)))

    async def _answer(self, body: bytes) -> None:
        try:
            await self.proxy.answer(self, body)
        except Exception as error:
            self.proxy.say(f"{self.method} {self.path}: {type(error).__name__}: {error}")
            self.refuse(HTTPStatus.INTERNAL_SERVER_ERROR, "the proxy has failed; its log says how")
        finally:
            self._task, self.source, self.left = None, None, None
            if not self._keep or self.proxy.draining:
                self.close()
        waiting, self._waiting = self._waiting, []
        for data in waiting:
            self.data_received(data)

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self._task is not None

    def header(self, name: str) -> str:
        return next((value for known, value in self.headers if known.lower() == name), "")

    def write(self, data: bytes) -> None:
        """Pass on bytes of an answer."""
        if self.transport is not None and not self.gone:
            self.begun = True
            self.transport.write(data)

    def reply(self, status: int, kind: str, body: bytes, *more: str) -> None:
        """A whole answer of the proxy's own."""
        phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Unknown"
        head = [f"HTTP/1.1 {status} {phrase}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *more]
        self.write("\r\n".join([*head, "", ""]).encode("latin-1") + body)

    def refuse(self, status: int, message: str, stage: str = "proxy") -> None:
        """An error in the form that OpenAI's API gives it. In the middle of an answer the connection is
        closed: that is the one thing a client cannot take for success.
        """
        if self.begun:
            self.close()
            return
        body = json.dumps(
            {"error": {"message": message, "type": "proxy_error", "code": int(status), "stage": stage}}
        )
        self.reply(status, "application/json", body.encode(), f"X-Proxy-Stage: {stage}")

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()
