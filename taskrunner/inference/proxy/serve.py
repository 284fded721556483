"""The proxy: each request first to a prefill server, then, with what that says of its KV cache, to a decode
server.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import re
import signal
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NamedTuple

import msgspec

from ..endpoint import bracketed
from . import checks, handover
from .asking import Answer, Broken, Gone, asked, healthy, is_stale, quietly, status_of
from .front import Front
from .measured import Measured
from .request import Headers, Refused, Request
from .upstream import Server, Upstream

CONNECT_WITHIN = 5.0
"""Seconds: a machine that is gone does not refuse."""
RELEASED_WITHIN = 10.0
"""Seconds that decode may take to fetch what nobody wants."""
READ, WRITE = ("GET", "HEAD"), ("POST",)
PASSED_ON = {
    "/health": READ, "/metrics": READ, "/v1/models": READ, "/version": READ, "/ping": READ,
    checks.COMPLETIONS: WRITE, checks.CHAT: WRITE, "/tokenize": WRITE, "/detokenize": WRITE,
}  # fmt: skip
"""All that there is, and its methods. Other paths of a server generate as well, or administer it."""
OPEN = ("/health", "/metrics")
"""What needs no key, as with vLLM."""
ID = re.compile(r"[\x21-\x7e]{1,128}")
SWEEP = 0.5
"""Seconds between two looks at who is overdue."""
ERROR_EVENT = (b'data: {"error"', b'data: {"object":"error"')
RESERVED_FILES = 64
"""Descriptors that are not connections'."""


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


class Asking(NamedTuple):
    """A request under way: whose it is, its name, the headers that go on, and when what happened."""

    front: Front
    request: Request
    name: str
    headers: Headers
    times: dict[str, float]


class Timed(Answer):
    """An answer that notes when it begins."""

    def __init__(self, times: dict[str, float]) -> None:
        super().__init__()
        self._times = times

    def head(self, status: int, reason: str, headers: Headers, length: int | None = None) -> None:
        self._times["prefill_first"] = time.perf_counter()
        super().head(status, reason, headers, length)


class Passing:
    """Passes an answer on to a client."""

    def __init__(self, front: Front, times: dict[str, float], timing: Headers) -> None:
        self.status, self.failed = 0, False
        self._front, self._times, self._timing = front, times, timing

    def head(self, status: int, reason: str, headers: Headers, length: int | None = None) -> None:
        self._times["decode_headers"] = time.perf_counter()
        self.status, self.failed = status, status >= HTTPStatus.BAD_REQUEST
        self._front.head(status, reason, [*self._timing, *headers], length)

    def body(self, data: bytes) -> None:
        if "decode_first" not in self._times:
            self._times["decode_first"] = time.perf_counter()
            # A stream has its status before its content is looked at.
            self.failed = self.failed or data.startswith(ERROR_EVENT)
        self._front.body(data)


def _plain(headers: Headers) -> Headers:
    """What goes to a server whose answer is read here."""
    return [pair for pair in headers if pair[0].lower() not in ("accept", "accept-encoding")]


class Proxy:
    """Answers requests. `fronts` are the connections of clients."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.servers = [
            *(Server("prefill", url) for url in settings.prefill),
            *(Server("decode", url) for url in settings.decode),
        ]
        by_role = {
            role: [server for server in self.servers if server.role == role] for role in ("prefill", "decode")
        }
        self._prefill = itertools.cycle(by_role["prefill"]) if by_role["prefill"] else None
        self._decode = by_role["decode"]
        self._turn = itertools.count()
        self.measured = Measured(settings.log)
        self.fronts: set[Front] = set()
        self.held = 0
        """Bytes of bodies that are kept."""
        self._key = settings.api_key.encode()
        self._releasing: set[asyncio.Task[Answer | None]] = set()
        self.draining = False

    def say(self, text: str) -> None:
        print(f"proxy: {text}", file=sys.stderr, flush=True)

    def came(self, front: Front) -> None:
        """Take a connection; where there are too many, one that has waited longest for a request goes."""
        self.fronts.add(front)
        if len(self.fronts) <= self.settings.max_connections:
            return
        idle = [other for other in self.fronts if other.evictable and other is not front]
        if idle:
            min(idle, key=lambda other: (other.at_work, other.since)).close()
        else:
            front.refuse(HTTPStatus.SERVICE_UNAVAILABLE, "there are too many connections")
            front.close()

    def admit(self, request: Request) -> None:
        """Whether it is worth receiving the body. Raises Refused."""
        if self._key and request.path not in OPEN:
            scheme, _, token = request.header("authorization").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), self._key):
                raise Refused(
                    HTTPStatus.UNAUTHORIZED, "an API key is needed: Authorization: Bearer KEY",
                    [("WWW-Authenticate", "Bearer")],
                )  # fmt: skip
        methods = PASSED_ON.get(request.path)
        if methods is None:
            known = ", ".join(PASSED_ON)
            raise Refused(HTTPStatus.NOT_FOUND, f"there is no {request.path} here; there are {known}")
        if request.method not in methods:
            said = f"{request.path} takes {' and '.join(methods)}"
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, said, [("Allow", ", ".join(methods))])
        if "GET" in methods and (request.header("content-length") or request.header("transfer-encoding")):
            raise Refused(HTTPStatus.BAD_REQUEST, f"a {request.method} has no body here")

    def make_room(self) -> None:
        """Forget the largest of the bodies that have not come whole."""
        largest = max(self.fronts, key=lambda front: front.receiving)
        if largest.receiving:
            largest.give_way()

    async def answer(self, front: Front, request: Request) -> None:
        """Answer one request. Raises Refused."""
        if self.draining:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "shutting down")
        if request.path == "/health":
            return await self._health(front)
        if request.path == "/metrics":
            return front.reply(200, "text/plain; version=0.0.4; charset=utf-8", self.measured.text())
        self.measured.running.inc()
        times = {"received": request.received}
        given = request.header("x-request-id")
        name = given if ID.fullmatch(given) else uuid.uuid4().hex
        headers = [pair for pair in request.headers if pair[0].lower() != "x-request-id"]
        asking = Asking(front, request, name, [*headers, ("X-Request-Id", name)], times)
        stage, status = "decode", 0
        try:
            fields = handover.request_of(request.body) if request.path in checks.PATHS else None
            if fields is not None and self._prefill is not None and handover.checked(request.path, fields):
                status = await self._handed_over(asking, fields)
            else:
                status, _ = await self._passed_on(await self._reserved(), asking, request.body, [])
        except checks.Unusable as error:
            stage, status = ("prefill", 502) if "prefill_done" in times else ("proxy", 400)
            front.refuse(status, str(error), stage)
        except Broken as error:
            stage, status = error.stage, error.status
            self.say(f"{name}: {stage}: {error}")
            front.refuse(status, str(error), stage)
        except Gone:
            stage, status = "client", 499
        finally:
            self.measured.running.dec()
            times["last"] = time.perf_counter()
            self.measured.note(name, stage, status, times)
        return None

    async def _handed_over(self, asking: Asking, fields: checks.Fields) -> int:
        front, times = asking.front, asking.times
        question = handover.for_prefill(fields)
        for again in (False, True):
            assert self._prefill is not None
            reserved = await self._reserved()
            try:
                answer = await self._whole(next(self._prefill), asking, question)
                params = handover.params_of(bytes(answer.content)) if answer.status == 200 else {}
            except BaseException:
                reserved.free()
                raise
            if answer.status != 200:
                reserved.free()
                # As the server has said it: a client knows its own server's errors.
                headers = [*answer.headers, ("X-Proxy-Stage", "prefill")]
                front.head(answer.status, answer.reason, headers, len(answer.content))
                front.body(bytes(answer.content))
                return answer.status
            times["extracted"] = time.perf_counter()
            timing = [
                ("X-Proxy-Prefill-Time", f"{(times['prefill_done'] - times['prefill_sent']) * 1e3:.3f}"),
                ("X-Proxy-KV-Extract-Time", f"{(times['extracted'] - times['prefill_done']) * 1e3:.3f}"),
                ("X-Request-Id", asking.name),
            ]
            if not reserved.usable:
                reserved = await self._reserved()
            server = reserved.server
            if front.gone:
                reserved.free()
                self._release(server, asking, fields, params)
                raise Gone
            try:
                status, failed = await self._passed_on(
                    reserved, asking, handover.for_decode(fields, params), timing
                )
            except Broken as error:
                # Decode has not seen it, and these parameters are not to be used twice: prefill once more.
                if again or not error.stale:
                    raise
                self._release(server, asking, fields, params)
                continue
            if failed:
                self._release(server, asking, fields, params)
            return status
        raise AssertionError

    def _release(self, server: Server, asking: Asking, fields: checks.Fields, params: dict[str, Any]) -> None:
        """Have a decode server fetch what it has refused, or was never asked for: prefill keeps the blocks
        of a request until somebody does, or their lease ends.
        """
        body = handover.for_prefill(fields, params)
        task = asyncio.get_running_loop().create_task(
            quietly(server, asking.request, _plain(asking.headers), body, RELEASED_WITHIN)
        )
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)

    async def _whole(self, server: Server, asking: Asking, body: bytes) -> Answer:
        """A whole answer of a prefill server. Raises Broken, Gone."""
        times = asking.times
        raw = server.framed(asking.request, _plain(asking.headers), body)
        for fresh in (False, True):
            upstream = await self._connected(server, fresh)
            answer = Timed(times)
            times["prefill_sent"] = time.perf_counter()
            problem = await asked(upstream, asking.front, raw, answer, self.settings.timeout)
            times["prefill_done"] = time.perf_counter()
            if is_stale(upstream, problem):
                continue
            if problem:
                raise Broken("prefill", f"{server.url}: {problem}", status_of(problem))
            return answer
        raise Broken("prefill", f"{server.url}: it closes every connection")

    async def _passed_on(
        self, upstream: Upstream, asking: Asking, body: bytes, timing: Headers
    ) -> tuple[int, bool]:
        """Send a request to a decode server and its answer, as it comes, to the client; its status, and
        whether it is an error. Raises Broken, Gone.
        """
        front, server = asking.front, upstream.server
        raw = server.framed(asking.request, asking.headers, body)
        front.source = upstream.transport
        if front.paused and upstream.transport is not None:
            upstream.transport.pause_reading()
        passing = Passing(front, asking.times, timing)
        asking.times["decode_sent"] = time.perf_counter()
        problem = await asked(upstream, front, raw, passing, self.settings.timeout)
        if problem:
            raise Broken(
                "decode", f"{server.url}: {problem}", status_of(problem), is_stale(upstream, problem)
            )
        front.end()
        return passing.status, passing.failed

    async def _reserved(self) -> Upstream:
        """A connection to the next decode server that takes one. It is had before prefill is asked: KV caches
        that nobody fetches fill that server until their lease ends. Raises Broken.
        """
        turn = next(self._turn)
        for ahead in range(1, len(self._decode)):
            try:
                return await self._connected(self._decode[(turn + ahead) % len(self._decode)], False)
            except Broken as error:
                self.say(f"decode: {error}; the next one is asked")
        return await self._connected(self._decode[turn % len(self._decode)], False)

    async def _connected(self, server: Server, fresh: bool) -> Upstream:
        try:
            return await asyncio.wait_for(server.connection(fresh), CONNECT_WITHIN)
        except (OSError, asyncio.TimeoutError) as error:
            raise Broken(server.role, f"{server.url}: no connection: {error}") from error

    async def _health(self, front: Front) -> None:
        said = dict(await asyncio.gather(*(healthy(server) for server in self.servers)))
        good = all(word == "ok" for word in said.values())
        body = msgspec.json.encode({"status": "ok" if good else "unhealthy", "servers": said})
        front.reply(200 if good else 503, "application/json", body)

    async def serve(self) -> None:
        """Serve until SIGTERM or SIGINT, then end what is under way, within the drain's time. Raises
        OSError.
        """
        loop = asyncio.get_running_loop()
        self._open_files()
        server = await loop.create_server(
            lambda: Front(self), self.settings.host, self.settings.port, backlog=1024
        )
        stop = asyncio.Event()
        for sign in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sign, stop.set)
        port = server.sockets[0].getsockname()[1]
        self.say(f"ready on {bracketed(self.settings.host)}:{port}")
        sweep = loop.create_task(self._sweep())
        await stop.wait()
        self.draining = True
        server.close()
        self.say(f"draining, at most {self.settings.drain:g} s")
        until = loop.time() + self.settings.drain
        while loop.time() < until and any(front.busy for front in self.fronts):
            await asyncio.sleep(0.05)
        sweep.cancel()
        for front in list(self.fronts):
            front.close()
        await asyncio.sleep(0.05)
        if self._releasing:
            await asyncio.wait(self._releasing, timeout=RELEASED_WITHIN)

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP)
            now = loop.time()
            for front in list(self.fronts):
                front.overdue(now)

    def _open_files(self) -> None:
        """As many descriptors as are allowed; a connection of a client needs up to three."""
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        if most != resource.RLIM_INFINITY:
            self.settings.max_connections = min(self.settings.max_connections, (most - RESERVED_FILES) // 3)
