"""The side of the proxy that clients see: connections, and the requests on each, one after the other."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

import httptools

from ..write_now import descriptor, write_now
from .messages import say
from .request import HOP_BY_HOP, Headers, Refused, Request, passed_on

if TYPE_CHECKING:
    from .proxy import Proxy

MOST_HEADERS = 100
PIPELINED = 32
"""Requests on one connection that may wait for their turn."""
WAITING = 64 << 10
"""Bytes behind a request under way that are read; a client's leaving is seen until then."""
FRAMING = 8
"""Bytes that say how long a chunk is, for each byte of it: who sends single bytes is odd, but may."""
LINGER = 2.0
"""Seconds in which a client that is refused may still send: else it may lose the answer."""
NO_BODY = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)


class ClientConnection(asyncio.Protocol):
    """A client's connection. What is passed on goes out as it comes; who reads slowly slows down its
    server.
    """

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.transport: asyncio.Transport | None = None
        self._fd = -1
        self.gone = False
        self.source: asyncio.Transport | None = None
        """Where the bytes come from that are passed on just now."""
        self.left: Callable[[], object] | None = None
        """Called when the client goes away in the middle."""
        self.receiving = 0
        """Bytes of a body that is not whole yet."""
        self.deadline = 0.0
        """By the loop's clock, when this connection is ended; 0: while a server has the word, never."""
        self._parser = httptools.HttpRequestParser(self)
        self._coming: Request | None = None
        self._queue: deque[Request] = deque()
        self._waiting: list[bytes] = []
        self._task: asyncio.Task[None] | None = None
        self._request = Request("", "", "1.1", [], True)
        self._url, self._head = b"", 0
        self._headers: Headers = []
        self._chunked = self._begun = self._bodiless = False
        self.paused = self._deaf = self._closing = False
        self.since = 0.0
        """By the loop's clock, since when it has waited for a request."""
        self._unread = 0
        """Bytes since the head that are not of the body: chunks' sizes, trailers."""
        self._behind = 0

    # What asyncio tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by descent
        self._fd = descriptor(transport)
        self._idle()
        self.proxy.came(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.gone = True
        self._forget()
        self.proxy.left(self)
        if self.source is not None:
            self.source.resume_reading()
        if self.left is not None:
            self.left()

    def pause_writing(self) -> None:
        if self.source is not None:
            self.source.pause_reading()
        self.paused = True
        self._expect(self.proxy.settings.body_timeout)

    def resume_writing(self) -> None:
        if self.source is not None and not self.source.is_closing():
            self.source.resume_reading()
        self.paused = False
        if self._closing:
            return
        if self._task is not None:
            self.deadline = 0.0
        else:
            self._expect(self.proxy.settings.keepalive_timeout)

    def data_received(self, data: bytes) -> None:
        if self._closing or self._deaf:
            return
        if self._task is not None:
            # A request behind the one that is being answered waits for its turn.
            self._waiting.append(data)
            self._behind += len(data)
            if self._behind > WAITING and self.transport is not None:
                self.transport.pause_reading()
            return
        if self._coming is None and not self._head:
            self._expect(self.proxy.settings.header_timeout)
        elif self._coming is not None:
            self._expect(self.proxy.settings.body_timeout)
        if self._coming is None:
            self._head += len(data)
        else:
            self._unread += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # It is answered as if it had not been asked for; what follows may be in another protocol.
            self._deaf = True
            (self._queue[-1] if self._queue else self._request).keep = False
        except httptools.HttpParserCallbackError as error:
            refused = error.__context__ if isinstance(error.__context__, Refused) else None
            self._give_up(refused or Refused(HTTPStatus.BAD_REQUEST, "not HTTP"))
        except httptools.HttpParserError as error:
            self._give_up(Refused(HTTPStatus.BAD_REQUEST, f"not HTTP: {error}"))
        most = self.proxy.settings.max_header_size
        taken = self._head if self._coming is None else self._unread - FRAMING * self.receiving
        if taken > most and not self._closing:
            self._give_up(self._too_large())

    def eof_received(self) -> bool:
        return False

    # What the parser tells.

    def on_message_begin(self) -> None:
        self._url, self._headers, self._coming = b"", [], None

    def on_url(self, url: bytes) -> None:
        self._url += url
        if len(self._url) > self.proxy.settings.max_header_size:
            raise Refused(HTTPStatus.REQUEST_URI_TOO_LONG, "the URL is too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._coming is not None:
            return  # a trailer: nobody here has a use for it
        self._headers.append((name.decode("latin-1"), value.decode("latin-1")))
        if len(self._headers) > MOST_HEADERS:
            raise self._too_large()

    def on_headers_complete(self) -> None:
        size = len(self._url) + sum(len(name) + len(value) + 4 for name, value in self._headers)
        if size > self.proxy.settings.max_header_size:
            raise self._too_large()
        if self._closing or self._deaf:
            return
        self._head = self._unread = 0
        request = self._coming = Request(
            self._parser.get_method().decode("latin-1"),
            self._url.decode("latin-1"),
            self._parser.get_http_version(),
            self._headers,
            self._parser.should_keep_alive(),
        )
        request.check()
        self.proxy.admit(request)
        length = int(request.header("content-length") or 0)
        if length > self.proxy.settings.max_body_size:
            raise self._body_too_large()
        if self._task is None:
            self._go_on(request)
            self._expect(self.proxy.settings.body_timeout)

    def _go_on(self, request: Request) -> None:
        """Ask for the body, where the client waits for that."""
        if request.expects_continue and not request.held and self.transport is not None:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        if self._coming is None or self._closing:
            return
        self._coming.held.append(data)
        self._unread -= len(data)
        self.receiving += len(data)
        too_much = self.proxy.hold(len(data))
        if self.receiving > self.proxy.settings.max_body_size:
            raise self._body_too_large()
        if too_much:
            self.proxy.make_room()

    def on_message_complete(self) -> None:
        request, self._coming, self.receiving = self._coming, None, 0
        if request is None or self.gone or self._closing:
            return
        request.received = time.perf_counter()
        request.body = b"".join(request.held)
        request.held.clear()
        self._queue.append(request)
        if self._task is None:
            self._next()
        elif len(self._queue) > PIPELINED:
            raise Refused(HTTPStatus.TOO_MANY_REQUESTS, "too many pipelined requests")

    # What becomes of a request.

    def _next(self) -> None:
        self._request = self._queue.popleft()
        self._begun = self._chunked = self._bodiless = False
        if not self.paused:
            self.deadline = 0.0
        self._task = asyncio.get_running_loop().create_task(self._answer(self._request))

    async def _answer(self, request: Request) -> None:
        try:
            if request.problem is not None:
                raise request.problem
            await self.proxy.answer(self, request)
        except Refused as error:
            self.refuse(error.status, str(error), headers=error.headers)
        except Exception as error:
            say(f"{request.method} {request.path}: {type(error).__name__}: {error}")
            self.refuse(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error of the proxy; see its log")
        finally:
            self._task, self.source, self.left = None, None, None
            self.proxy.hold(-len(request.body))
            if not request.keep or self.proxy.draining:
                self.close()
        if self._closing or self.gone:
            return
        if self._queue:
            self._next()
            return
        if self._coming is not None:
            self._go_on(self._coming)
            self._expect(self.proxy.settings.body_timeout)
        else:
            self._idle()
        waiting, self._waiting, self._behind = b"".join(self._waiting), [], 0
        if self.transport is not None:
            self.transport.resume_reading()
        if waiting:
            self.data_received(waiting)

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self._task is not None

    @property
    def evictable(self) -> bool:
        """Whether it could go for another one."""
        return self._task is None and not self._closing

    @property
    def at_work(self) -> bool:
        """Whether a request is coming."""
        return self._coming is not None or self._head > 0

    def head(self, status: int, reason: str, headers: Headers, length: int | None = None) -> None:
        """Begin an answer: end-to-end headers as they are, the framing that of this connection."""
        request = self._request
        lines = [f"HTTP/1.1 {status} {reason}"]
        lines += [f"{name}: {value}" for name, value in passed_on(headers, HOP_BY_HOP | {"content-length"})]
        self._bodiless = request.method == "HEAD" or status in NO_BODY
        if length is not None and status not in NO_BODY:
            lines.append(f"Content-Length: {length}")
        elif not self._bodiless:
            self._chunked = request.version == "1.1"
            request.keep = request.keep and self._chunked
            lines += ["Transfer-Encoding: chunked"] if self._chunked else []
        if not request.keep or self.proxy.draining:
            lines.append("Connection: close")
        elif request.version == "1.0":
            lines.append("Connection: keep-alive")
        self._write("\r\n".join([*lines, "", ""]).encode("latin-1"))

    def body(self, data: bytes) -> None:
        """Go on with an answer."""
        if data and not self._bodiless:
            self._write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data, now=True)

    def end(self) -> None:
        """The answer is whole."""
        if self._chunked:
            self._write(b"0\r\n\r\n")

    def reply(self, status: int, kind: str, body: bytes, headers: Headers | None = None) -> None:
        """A whole answer of the proxy's own."""
        phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Unknown"
        self.head(status, phrase, [("Content-Type", kind), *(headers or [])], len(body))
        self.body(body)

    def refuse(self, status: int, message: str, stage: str = "proxy", headers: Headers | None = None) -> None:
        """An error in the form that OpenAI's API gives it. In the middle of an answer the connection is
        closed: that is the one thing a client cannot take for success.
        """
        if self._begun:
            self._request.keep = False
            self._abort()
            return
        error = {"message": message, "type": "proxy_error", "code": int(status), "stage": stage}
        body = json.dumps({"error": error}).encode()
        self.reply(status, "application/json", body, [("X-Proxy-Stage", stage), *(headers or [])])

    def overdue(self, now: float) -> None:
        """End a connection whose time is over."""
        if self.deadline == 0.0 or now < self.deadline or self.gone:
            return
        if self._closing or self.paused:
            self._abort()
        elif self.at_work:
            self._give_up(Refused(HTTPStatus.REQUEST_TIMEOUT, "the request did not arrive in time"))
        else:
            self.close()

    def give_way(self) -> None:
        """Forget a body that has not come whole, for which there is no room."""
        self._give_up(Refused(HTTPStatus.SERVICE_UNAVAILABLE, "too many large requests at once"))

    def close(self) -> None:
        """End the connection when what was written has been sent."""
        self._closing = True
        self._forget()
        self._expect(self.proxy.settings.body_timeout)  # for what it has still to take
        if self.transport is not None:
            self.transport.close()

    def _give_up(self, refused: Refused) -> None:
        """Refuse what comes, behind the answers that are still to be given, and end the connection."""
        if self._closing:
            return
        self._let_go()
        if self._task is not None:
            # What was asked before is answered first.
            self._queue.append(Request("GET", "/", "1.1", [], False, problem=refused))
            self._coming, self._deaf = None, True
            return
        self._closing, self._coming = True, None
        self._request = Request("GET", "/", "1.1", [], False)
        self._begun = self._chunked = False
        self.refuse(refused.status, str(refused), headers=refused.headers)
        self._expect(LINGER)
        if self.transport is not None and self.transport.can_write_eof():
            self.transport.write_eof()

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def _let_go(self) -> None:
        """What is held of a body that does not become a request."""
        if self._coming is not None:
            self.proxy.hold(-sum(map(len, self._coming.held)))
            self._coming.held.clear()
        self.receiving = 0

    def _forget(self) -> None:
        """What nobody waits for any more."""
        self._let_go()
        for request in self._queue:
            self.proxy.hold(-len(request.body))
        self._queue.clear()

    def _write(self, data: bytes, now: bool = False) -> None:
        if self.transport is not None and not self.gone:
            self._begun = True
            write_now(self.transport, self._fd if now else -1, data)

    def _idle(self) -> None:
        """From now on it waits for a request."""
        self._expect(self.proxy.settings.keepalive_timeout)
        self.since = asyncio.get_running_loop().time()

    def _expect(self, seconds: float) -> None:
        self.deadline = asyncio.get_running_loop().time() + seconds

    def _too_large(self) -> Refused:
        most = self.proxy.settings.max_header_size
        return Refused(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            f"at most {MOST_HEADERS} headers of {most} bytes in total",
        )

    def _body_too_large(self) -> Refused:
        most = self.proxy.settings.max_body_size
        return Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body may have at most {most} bytes")
