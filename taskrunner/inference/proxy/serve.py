"""The proxy: each request first to a prefill server, then, with what that says of its KV cache, to a decode
server.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

import httptools

from . import handover
from .asking import Answer, Broken, Gone, asked, healthy, status_of
from .front import Front
from .measured import Measured
from .upstream import Server, Upstream

CONNECT_WITHIN = 5.0
"""Seconds: a machine that is gone does not refuse."""
ABANDONED = 2.0
"""Seconds that a request whose client has gone may take to reach decode, which then frees prefill's blocks.
"""
END_OF_HEAD = b"\r\n\r\n"


@dataclass
class Settings:
    """Where it listens, what is behind it, and for how long it waits: for prefill's answer, and for a
    drain.
    """

    prefill: Sequence[str]
    decode: Sequence[str]
    host: str = "127.0.0.1"
    port: int = 8000
    timeout: float = 600.0
    drain: float = 30.0
    log: str = ""


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
        self.draining = False

    def say(self, text: str) -> None:
        print(f"proxy: {text}", file=sys.stderr, flush=True)

    async def answer(self, front: Front, body: bytes) -> None:
        """Answer one request."""
        path = front.path.partition("?")[0]
        if self.draining:
            return front.refuse(HTTPStatus.SERVICE_UNAVAILABLE, "shutting down")
        if front.method == "GET" and path == "/health":
            return await self._health(front)
        if front.method == "GET" and path == "/metrics":
            return front.reply(200, "text/plain; version=0.0.4; charset=utf-8", self.measured.text())
        if front.method == "HEAD":
            return front.refuse(HTTPStatus.METHOD_NOT_ALLOWED, "no HEAD here")
        self.measured.running.inc()
        times = {"received": front.received}
        request = front.header("x-request-id") or uuid.uuid4().hex
        handed_over = self._prefill is not None and front.method == "POST" and path in handover.PATHS
        stage, status = "decode", 0
        try:
            if handed_over:
                status = await self._handed_over(front, body, request, times)
            else:
                status = await self._passed_on(await self._reserved(), front, body, request, times, ())
        except handover.Unusable as error:
            stage, status = ("prefill", 502) if "prefill_done" in times else ("proxy", 400)
            front.refuse(status, str(error), stage)
        except Broken as error:
            stage, status = error.stage, error.status
            self.say(f"{request}: {stage}: {error}")
            front.refuse(status, str(error), stage)
        except Gone:
            stage, status = "client", 499
        finally:
            self.measured.running.dec()
            times["last"] = time.perf_counter()
            self.measured.note(request, stage, status, times)
        return None

    async def _handed_over(self, front: Front, body: bytes, request: str, times: dict[str, float]) -> int:
        question = handover.for_prefill(handover.request_of(body))
        headers = [pair for pair in front.headers if pair[0].lower() not in ("x-request-id", "accept")]
        headers.append(("X-Request-Id", request))
        for again in (False, True):
            assert self._prefill is not None
            reserved = await self._reserved()
            try:
                answer = await self._whole(next(self._prefill), front, question, headers, times)
                params = handover.params_of(bytes(answer.body)) if answer.status == 200 else {}
            except BaseException:
                reserved.free()
                raise
            if answer.status != 200:
                reserved.free()
                # As the server has said it: a client knows its own server's errors.
                kind = next(
                    (value for name, value in answer.headers if name.lower() == "content-type"), "text/plain"
                )
                front.reply(answer.status, kind, bytes(answer.body), "X-Proxy-Stage: prefill")
                return answer.status
            times["extracted"] = time.perf_counter()
            timing = (
                f"X-Proxy-Prefill-Time: {(times['prefill_done'] - times['prefill_sent']) * 1e3:.3f}",
                f"X-Proxy-KV-Extract-Time: {(times['extracted'] - times['prefill_done']) * 1e3:.3f}",
                f"X-Request-Id: {request}",
            )
            whole = handover.for_decode(body, params)
            if not reserved.usable:
                reserved = await self._reserved()
            if front.gone:
                await self._abandoned(reserved, whole, front, headers)
                raise Gone
            try:
                return await self._passed_on(reserved, front, whole, request, times, timing)
            except Broken as error:
                # Decode has not seen it, and these parameters are not to be used twice: prefill once more.
                if again or not error.stale:
                    raise
        raise AssertionError

    async def _whole(
        self,
        server: Server,
        front: Front,
        body: bytes,
        headers: list[tuple[str, str]],
        times: dict[str, float],
    ) -> Answer:
        """A whole answer of a prefill server. Raises Broken, Gone."""
        raw = server.framed(front.method, front.path, headers, body)
        for fresh in (False, True):
            upstream = await self._connected(server, fresh)
            pieces: list[bytes] = []
            times["prefill_sent"] = time.perf_counter()

            def took(data: bytes, pieces: list[bytes] = pieces) -> None:
                if not pieces:
                    times["prefill_first"] = time.perf_counter()
                pieces.append(data)

            problem = await asked(upstream, front, raw, took, self.settings.timeout)
            times["prefill_done"] = time.perf_counter()
            if problem and upstream.used and not pieces:
                continue
            if problem:
                raise Broken("prefill", f"{server.url}: {problem}", status_of(problem))
            answer = Answer()
            parser = httptools.HttpResponseParser(answer)
            parser.feed_data(b"".join(pieces))
            answer.status = parser.get_status_code()
            return answer
        raise Broken("prefill", f"{server.url}: it closes every connection")

    async def _passed_on(
        self,
        upstream: Upstream,
        front: Front,
        body: bytes,
        request: str,
        times: dict[str, float],
        timing: tuple[str, ...],
    ) -> int:
        """Send a request to a decode server and its answer, byte by byte, to the client. Raises Broken,
        Gone.
        """
        server = upstream.server
        headers = (
            front.headers if front.header("x-request-id") else [*front.headers, ("X-Request-Id", request)]
        )
        raw = server.framed(front.method, front.path, headers, body)
        front.source = upstream.transport
        head = b""
        status = 0
        write = front.write

        def took(data: bytes) -> None:
            nonlocal head, status
            if status:
                if "decode_first" not in times:
                    times["decode_first"] = time.perf_counter()
                write(data)
                return
            head += data
            end = head.find(END_OF_HEAD)
            if end < 0:
                return
            times["decode_headers"] = time.perf_counter()
            status = int(head[9:12])
            line, _, rest = head.partition(b"\r\n")
            if len(head) > end + len(END_OF_HEAD):
                times["decode_first"] = times["decode_headers"]
            write(b"\r\n".join([line, *(text.encode("latin-1") for text in timing), rest]))

        times["decode_sent"] = time.perf_counter()
        problem = await asked(upstream, front, raw, took, self.settings.timeout)
        if problem:
            stale = upstream.used and not upstream.received
            raise Broken("decode", f"{server.url}: {problem}", status_of(problem), stale)
        return status

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

    async def _abandoned(
        self, upstream: Upstream, body: bytes, front: Front, headers: list[tuple[str, str]]
    ) -> None:
        """Let decode abort a request whose client went after prefill: it tells prefill to free the blocks,
        which else stay taken until their lease ends.
        """
        first = asyncio.Event()
        upstream.ask(
            upstream.server.framed(front.method, front.path, headers, body),
            lambda _: first.set(),
            lambda _: first.set(),
        )
        try:
            await asyncio.wait_for(first.wait(), ABANDONED)
        except asyncio.TimeoutError:
            pass
        finally:
            upstream.drop()

    async def _health(self, front: Front) -> None:
        said = dict(await asyncio.gather(*(healthy(server) for server in self.servers)))
        good = all(word == "ok" for word in said.values())
        body = json.dumps({"status": "ok" if good else "unhealthy", "servers": said}).encode()
        front.reply(200 if good else 503, "application/json", body)

    async def serve(self) -> None:
        """Serve until SIGTERM or SIGINT, then end what is under way, within the drain's time. Raises
        OSError.
        """
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: Front(self), self.settings.host, self.settings.port, backlog=1024
        )
        stop = asyncio.Event()
        for sign in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sign, stop.set)
        port = server.sockets[0].getsockname()[1]
        self.say(f"ready on {self.settings.host}:{port}")
        await stop.wait()
        self.draining = True
        server.close()
        self.say(f"draining, at most {self.settings.drain:g} s")
        until = loop.time() + self.settings.drain
        while loop.time() < until and any(front.busy for front in self.fronts):
            await asyncio.sleep(0.05)
        for front in list(self.fronts):
            front.close()
        await asyncio.sleep(0.05)
