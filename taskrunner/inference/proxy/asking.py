"""One question to a server behind the proxy: the whole answer, what goes wrong with it, and who stops
waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus

from .front import Front
from .upstream import Server, Upstream

HEALTH_TIMEOUT = 5.0
TIMED_OUT = "no end of its answer within"


class Gone(Exception):
    """The client has gone away."""


class Broken(Exception):
    """A server did not answer, at this stage. `stale`: nothing came over a connection that had been used
    before.
    """

    def __init__(
        self, stage: str, message: str, status: int = HTTPStatus.BAD_GATEWAY, stale: bool = False
    ) -> None:
        super().__init__(message)
        self.stage, self.status, self.stale = stage, status, stale


@dataclass
class Answer:
    """A whole answer of a server, as httptools tells it."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_body(self, data: bytes) -> None:
        self.body += data


async def asked(
    upstream: Upstream, front: Front, raw: bytes, sink: Callable[[bytes], object], timeout: float
) -> str:
    """Ask, and wait for the end of the answer; what went wrong with it. Raises Gone."""
    loop = asyncio.get_running_loop()
    over: asyncio.Future[str] = loop.create_future()

    def ended(problem: str) -> None:
        if not over.done():
            over.set_result(problem)

    def left() -> None:
        # Closing the connection is how a server learns that nobody waits.
        upstream.drop()
        if not over.done():
            over.set_exception(Gone())

    def late() -> None:
        upstream.drop()
        ended(f"{TIMED_OUT} {timeout:g} s")

    front.left = left
    watch = loop.call_later(timeout, late)
    try:
        upstream.ask(raw, sink, ended)
        if front.gone:
            left()
        return await over
    finally:
        watch.cancel()
        front.left = None


def status_of(problem: str) -> int:
    """The HTTP status of a problem that `asked` has told."""
    return HTTPStatus.GATEWAY_TIMEOUT if problem.startswith(TIMED_OUT) else HTTPStatus.BAD_GATEWAY


async def healthy(server: Server) -> tuple[str, str]:
    """A server's name, and `ok` or what is wrong with it."""
    name = f"{server.role} {server.url}"
    try:
        upstream = await asyncio.wait_for(server.connection(fresh=True), HEALTH_TIMEOUT)
    except (OSError, asyncio.TimeoutError) as error:
        return name, f"no connection: {error}"
    over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    pieces: list[bytes] = []

    def ended(problem: str) -> None:
        if not over.done():
            over.set_result(problem)

    upstream.ask(server.framed("GET", "/health", [], b""), pieces.append, ended)
    try:
        problem = await asyncio.wait_for(over, HEALTH_TIMEOUT)
    except asyncio.TimeoutError:
        problem = "no answer"
    finally:
        upstream.drop()
    status = b"".join(pieces)[9:12].decode("latin-1")
    return name, problem or ("ok" if status == "200" else f"HTTP {status}")
