"""One question to a server behind the proxy: the whole answer, what goes wrong with it, and who stops
waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus

from .backend import Backend, BackendConnection, ResponseSink
from .client_connection import ClientConnection
from .request import Headers, Request

HEALTH_TIMEOUT = 5.0
LARGEST = 64 << 20
"""Bytes of an answer that is kept whole."""
TIMED_OUT = "response not complete within"


class ClientGone(Exception):
    """The client has gone away."""


class BackendError(Exception):
    """A server did not answer, at this stage. `stale`: nothing came over a connection that had been used
    before.
    """

    def __init__(
        self, stage: str, message: str, status: int = HTTPStatus.BAD_GATEWAY, stale: bool = False
    ) -> None:
        super().__init__(message)
        self.stage, self.status, self.stale = stage, status, stale


@dataclass
class BufferedResponse:
    """A whole answer of a server: a ResponseSink."""

    status: int = 0
    reason: str = ""
    headers: Headers = field(default_factory=list)
    content: bytearray = field(default_factory=bytearray)

    def head(self, status: int, reason: str, headers: Headers, length: int | None = None) -> None:
        self.status, self.reason, self.headers = status, reason, headers

    def body(self, data: bytes) -> None:
        if len(self.content) + len(data) <= LARGEST:
            self.content += data


def _ending() -> tuple[asyncio.Future[str], Callable[[str], None]]:
    """A future for the end of an answer, and the function that sets it; only its first call counts."""
    over: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def ended(problem: str) -> None:
        if not over.done():
            over.set_result(problem)

    return over, ended


async def asked(
    connection: BackendConnection, client: ClientConnection, raw: bytes, sink: ResponseSink, timeout: float
) -> str:
    """Ask, and wait for the end of the answer; what went wrong with it. Raises ClientGone."""
    over, ended = _ending()
    gone = False

    def left() -> None:
        nonlocal gone
        gone = True
        if isinstance(sink, BufferedResponse) and connection.received:
            return  # what has begun to come may name blocks that are to be freed: it is read to its end
        # Closing the connection is how a server learns that nobody waits.
        connection.drop()
        ended("nobody waits")

    def late() -> None:
        connection.drop()
        ended(f"{TIMED_OUT} {timeout:g} s")

    client.left = left
    watch = asyncio.get_running_loop().call_later(timeout, late)
    try:
        if client.gone:
            connection.free()
            raise ClientGone
        connection.ask(raw, sink, ended)
        problem = await over
        if gone and (problem or not isinstance(sink, BufferedResponse)):
            raise ClientGone
        return problem
    finally:
        watch.cancel()
        client.left = None


async def quietly(
    server: Backend, request: Request, headers: Headers, body: bytes, within: float
) -> BufferedResponse | None:
    """Ask for what no client waits for; None where it is not answered in that many seconds."""
    answer = BufferedResponse()
    over, ended = _ending()
    connection: BackendConnection | None = None
    try:
        connection = await asyncio.wait_for(server.connect(), within)
        connection.ask(server.framed(request, headers, body), answer, ended)
        return answer if not await asyncio.wait_for(over, within) else None
    except (OSError, asyncio.TimeoutError):
        return None
    finally:
        if connection is not None:
            connection.drop()


def is_stale(connection: BackendConnection, problem: str) -> bool:
    """Whether a connection that was kept had been closed meanwhile, so that the server has seen nothing."""
    return bool(problem) and connection.used and not connection.received and not problem.startswith(TIMED_OUT)


def status_of(problem: str) -> int:
    """The HTTP status of a problem that `asked` has told."""
    return HTTPStatus.GATEWAY_TIMEOUT if problem.startswith(TIMED_OUT) else HTTPStatus.BAD_GATEWAY


async def healthy(server: Backend) -> tuple[str, str]:
    """A server's name, and `ok` or what is wrong with it."""
    request = Request("GET", "/health", "1.1", [], False, path="/health")
    answer = await quietly(server, request, [], b"", HEALTH_TIMEOUT)
    if answer is None:
        status = "no answer"
    else:
        status = "ok" if answer.status == HTTPStatus.OK else f"HTTP {answer.status}"
    return f"{server.role} {server.url}", status
