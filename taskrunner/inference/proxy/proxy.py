"""The proxy: each request first to a prefill server, then, with what that says of its KV cache, to a decode
server.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NamedTuple

import msgspec

from . import checks, kv_transfer
from .backend import Backend, BackendConnection
from .backend_request import (
    BackendError,
    BufferedResponse,
    ClientGone,
    asked,
    healthy,
    is_stale,
    quietly,
    status_of,
)
from .client_connection import ClientConnection
from .messages import say
from .metrics import Metrics
from .request import Headers, Refused, Request
from .shares import Shares

CONNECT_WITHIN = 5.0
"""Seconds: a machine that is gone does not refuse."""
RELEASED_WITHIN = 10.0
"""Seconds that decode may take to fetch what nobody wants."""
READ, WRITE = ("GET", "HEAD"), ("POST",)
PASSED_ON = {
    **dict.fromkeys(("/health", "/metrics", "/v1/models", "/version", "/ping"), READ),
    **dict.fromkeys((checks.COMPLETIONS, checks.CHAT, "/tokenize", "/detokenize"), WRITE),
}
"""All that there is, and its methods. Other paths of a server generate as well, or administer it."""
OPEN = ("/health", "/metrics")
"""What needs no key, as with vLLM."""
ID = re.compile(r"[\x21-\x7e]{1,128}")
ERROR_EVENT = (b'data: {"error"', b'data: {"object":"error"')


@dataclass
class Settings:
    """Where it listens, what is behind it, how long it waits, and how much it takes. Times are in seconds,
    sizes in bytes.
    """

    prefill: Sequence[str]
    decode: Sequence[str]
    host: str = "127.0.0.1"
    port: int = 8000
    timeout: float = 600.0
    drain: float = 30.0
    log: str = ""
    api_key: str = ""
    header_timeout: float = 10.0
    body_timeout: float = 30.0
    keepalive_timeout: float = 75.0
    max_header_size: int = 32 << 10
    max_body_size: int = 32 << 20
    max_buffered: int = 64 << 20
    max_connections: int = 4096
    workers: int = 1
    """Processes; the limits for all connections and requests are of all of them together."""


class RequestContext(NamedTuple):
    """A request under way: whose it is, its name, the headers that go on, and when what happened."""

    client: ClientConnection
    request: Request
    name: str
    headers: Headers
    times: dict[str, float]


class TimedResponse(BufferedResponse):
    """An answer that notes when it begins."""

    def __init__(self, times: dict[str, float]) -> None:
        super().__init__()
        self._times = times

    def head(self, status: int, reason: str, headers: Headers, length: int | None = None) -> None:
        self._times["prefill_first"] = time.perf_counter()
        super().head(status, reason, headers, length)


class StreamedResponse:
    """Passes an answer on to a client."""

    def __init__(self, client: ClientConnection, times: dict[str, float], timing: Headers) -> None:
        self.status, self.failed = 0, False
        self._client, self._times, self._timing = client, times, timing

    def head(self, status: int, reason: str, headers: Headers, length: int | None = None) -> None:
        self._times["decode_headers"] = time.perf_counter()
        self.status, self.failed = status, status >= HTTPStatus.BAD_REQUEST
        self._client.head(status, reason, [*self._timing, *headers], length)

    def body(self, data: bytes) -> None:
        if "decode_first" not in self._times:
            self._times["decode_first"] = time.perf_counter()
            # A stream has its status before its content is looked at.
            self.failed = self.failed or data.startswith(ERROR_EVENT)
        self._client.body(data)


def _plain(headers: Headers) -> Headers:
    """What goes to a server whose answer is read here."""
    return [pair for pair in headers if pair[0].lower() not in ("accept", "accept-encoding")]


class Proxy:
    """Answers requests. `clients` are the connections of clients. One of several workers shares its counts
    with the others: `shares`, of which `place` is its own.
    """

    def __init__(self, settings: Settings, shares: Shares | None = None, place: int = 0) -> None:
        self.settings = settings
        self.servers = [
            *(Backend("prefill", url) for url in settings.prefill),
            *(Backend("decode", url) for url in settings.decode),
        ]
        by_role = {
            role: [server for server in self.servers if server.role == role] for role in ("prefill", "decode")
        }
        self._prefill = by_role["prefill"]
        self._decode = by_role["decode"]
        # Workers begin with different servers.
        self.metrics = Metrics(settings.log, place if settings.workers > 1 else None)
        self.clients: set[ClientConnection] = set()
        self.shares = shares or Shares()
        self.place = place
        self._key = settings.api_key.encode()
        self.releasing: set[asyncio.Task[BufferedResponse | None]] = set()
        self.draining = False

    def hold(self, size: int) -> bool:
        """Keep that many bytes more of bodies, or fewer; whether that is too much of all together."""
        self.shares.held[self.place] += size
        return sum(self.shares.held) > self.settings.max_buffered

    def _turn(self, taken: memoryview) -> int:
        """The next number of a rotation that all workers share. Two of them may get the same: an even spread
        to the last request is not worth a lock.
        """
        turn = sum(taken)
        taken[self.place] += 1
        return turn

    def left(self, client: ClientConnection) -> None:
        """Forget a connection."""
        self.clients.discard(client)
        self.shares.left[self.place] += 1

    def came(self, client: ClientConnection) -> None:
        """Take a connection; where there are too many, one that has waited longest for a request goes."""
        self.clients.add(client)
        if len(self.clients) <= self.settings.max_connections:
            return
        idle = [other for other in self.clients if other.evictable and other is not client]
        if idle:
            min(idle, key=lambda other: (other.at_work, other.since)).close()
        else:
            client.refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections")
            client.close()

    def admit(self, request: Request) -> None:
        """Whether it is worth receiving the body. Raises Refused."""
        if self._key and request.path not in OPEN:
            scheme, _, token = request.header("authorization").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), self._key):
                raise Refused(
                    HTTPStatus.UNAUTHORIZED,
                    "an API key is required: Authorization: Bearer KEY",
                    [("WWW-Authenticate", "Bearer")],
                )
        methods = PASSED_ON.get(request.path)
        if methods is None:
            paths = ", ".join(PASSED_ON)
            raise Refused(HTTPStatus.NOT_FOUND, f"no such path: {request.path}; available: {paths}")
        if request.method not in methods:
            message = f"{request.path} accepts {' and '.join(methods)}"
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, message, [("Allow", ", ".join(methods))])
        if "GET" in methods and (request.header("content-length") or request.header("transfer-encoding")):
            raise Refused(HTTPStatus.BAD_REQUEST, f"a {request.method} request here must have no body")

    def make_room(self) -> None:
        """Forget the largest of the bodies that have not come whole."""
        largest = max(self.clients, key=lambda client: client.receiving)
        if largest.receiving:
            largest.give_way()

    async def answer(self, client: ClientConnection, request: Request) -> None:
        """Answer one request. Raises Refused."""
        if self.draining:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "shutting down")
        if request.path == "/health":
            return await self._health(client)
        if request.path == "/metrics":
            return client.reply(200, "text/plain; version=0.0.4; charset=utf-8", self.metrics.text())
        self.metrics.running.inc()
        times = {"received": request.received}
        given = request.header("x-request-id")
        name = given if ID.fullmatch(given) else uuid.uuid4().hex
        headers = [pair for pair in request.headers if pair[0].lower() != "x-request-id"]
        context = RequestContext(client, request, name, [*headers, ("X-Request-Id", name)], times)
        stage, status = "decode", 0
        try:
            fields = kv_transfer.request_of(request.body) if request.path in checks.PATHS else None
            if fields is not None and self._prefill and kv_transfer.checked(request.path, fields):
                status = await self._handed_over(context, fields)
            else:
                status, _ = await self._passed_on(await self._reserved(), context, request.body, [])
        except checks.Unusable as error:
            stage, status = ("prefill", 502) if "prefill_done" in times else ("proxy", 400)
            client.refuse(status, str(error), stage)
        except BackendError as error:
            stage, status = error.stage, error.status
            say(f"{name}: {stage}: {error}")
            client.refuse(status, str(error), stage)
        except ClientGone:
            stage, status = "client", 499
        finally:
            self.metrics.running.dec()
            times["last"] = time.perf_counter()
            self.metrics.note(name, stage, status, times)
        return None

    async def _handed_over(self, context: RequestContext, fields: checks.Fields) -> int:
        client, times = context.client, context.times
        question = kv_transfer.for_prefill(fields)
        for again in (False, True):
            reserved = await self._reserved()
            prefill = self._prefill[self._turn(self.shares.prefilled) % len(self._prefill)]
            try:
                answer = await self._whole(prefill, context, question)
                params = kv_transfer.params_of(bytes(answer.content)) if answer.status == 200 else {}
            except BaseException:
                reserved.free()
                raise
            if answer.status != 200:
                reserved.free()
                # As the server has said it: a client knows its own server's errors.
                headers = [*answer.headers, ("X-Proxy-Stage", "prefill")]
                client.head(answer.status, answer.reason, headers, len(answer.content))
                client.body(bytes(answer.content))
                return answer.status
            times["extracted"] = time.perf_counter()
            timing = [
                ("X-Proxy-Prefill-Time", f"{(times['prefill_done'] - times['prefill_sent']) * 1e3:.3f}"),
                ("X-Proxy-KV-Extract-Time", f"{(times['extracted'] - times['prefill_done']) * 1e3:.3f}"),
                ("X-Request-Id", context.name),
            ]
            if not reserved.usable:
                reserved = await self._reserved()
            server = reserved.server
            if client.gone:
                reserved.free()
                self._release(server, context, fields, params)
                raise ClientGone
            try:
                status, failed = await self._passed_on(
                    reserved, context, kv_transfer.for_decode(fields, params), timing
                )
            except BackendError as error:
                # Decode has not seen it, and these parameters are not to be used twice: prefill once more.
                if again or not error.stale:
                    raise
                self._release(server, context, fields, params)
                continue
            if failed:
                self._release(server, context, fields, params)
            return status
        raise AssertionError

    def _release(
        self, server: Backend, context: RequestContext, fields: checks.Fields, params: dict[str, Any]
    ) -> None:
        """Have a decode server fetch what it has refused, or was never asked for: prefill keeps the blocks
        of a request until somebody does, or their lease ends.
        """
        body = kv_transfer.for_prefill(fields, params)
        task = asyncio.get_running_loop().create_task(
            quietly(server, context.request, _plain(context.headers), body, RELEASED_WITHIN)
        )
        self.releasing.add(task)
        task.add_done_callback(self.releasing.discard)

    async def _whole(self, server: Backend, context: RequestContext, body: bytes) -> BufferedResponse:
        """A whole answer of a prefill server. Raises BackendError, ClientGone."""
        times = context.times
        raw = server.framed(context.request, _plain(context.headers), body)
        for fresh in (False, True):
            connection = await self._connected(server, fresh)
            answer = TimedResponse(times)
            times["prefill_sent"] = time.perf_counter()
            problem = await asked(connection, context.client, raw, answer, self.settings.timeout)
            times["prefill_done"] = time.perf_counter()
            if is_stale(connection, problem):
                continue
            if problem:
                raise BackendError("prefill", f"{server.url}: {problem}", status_of(problem))
            return answer
        raise BackendError("prefill", f"{server.url}: it closes every connection")

    async def _passed_on(
        self, connection: BackendConnection, context: RequestContext, body: bytes, timing: Headers
    ) -> tuple[int, bool]:
        """Send a request to a decode server and its answer, as it comes, to the client; its status, and
        whether it is an error. Raises BackendError, ClientGone.
        """
        client, server = context.client, connection.server
        raw = server.framed(context.request, context.headers, body)
        client.source = connection.transport
        if client.paused and connection.transport is not None:
            connection.transport.pause_reading()
        response = StreamedResponse(client, context.times, timing)
        context.times["decode_sent"] = time.perf_counter()
        problem = await asked(connection, client, raw, response, self.settings.timeout)
        if problem:
            raise BackendError(
                "decode", f"{server.url}: {problem}", status_of(problem), is_stale(connection, problem)
            )
        client.end()
        return response.status, response.failed

    async def _reserved(self) -> BackendConnection:
        """A connection to the next decode server that takes one. It is had before prefill is asked: KV caches
        that nobody fetches fill that server until their lease ends. Raises BackendError.
        """
        turn = self._turn(self.shares.decoded)
        for ahead in range(1, len(self._decode)):
            try:
                return await self._connected(self._decode[(turn + ahead) % len(self._decode)], False)
            except BackendError as error:
                say(f"decode: {error}; trying the next server")
        return await self._connected(self._decode[turn % len(self._decode)], False)

    async def _connected(self, server: Backend, fresh: bool) -> BackendConnection:
        # An idle connection is used at once: wait_for costs two rounds of the event loop, even for that.
        if not fresh and (kept := server.kept()) is not None:
            return kept
        try:
            return await asyncio.wait_for(server.connect(), CONNECT_WITHIN)
        except (OSError, asyncio.TimeoutError) as error:
            raise BackendError(server.role, f"{server.url}: no connection: {error}") from error

    async def _health(self, client: ClientConnection) -> None:
        states = dict(await asyncio.gather(*(healthy(server) for server in self.servers)))
        good = all(word == "ok" for word in states.values())
        body = msgspec.json.encode({"status": "ok" if good else "unhealthy", "servers": states})
        client.reply(200 if good else 503, "application/json", body)
