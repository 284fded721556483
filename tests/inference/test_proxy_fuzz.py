"""The proxy's parsers, without a network: whatever is sent, however it is cut."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from taskrunner.inference.proxy.client_connection import ClientConnection
from taskrunner.inference.proxy.proxy import Proxy, Settings
from taskrunner.inference.proxy.request import Refused, Request, normal
from tests.inference.raw import post, statuses


class Wire:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        assert isinstance(data, bytes)
        self.written += data

    def close(self) -> None:
        self.closed = True

    abort = write_eof = close

    def get_extra_info(self, name: str) -> str:
        """It has no socket to be written to: as where what is written is encrypted first."""
        return name

    def can_write_eof(self) -> bool:
        return True

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def is_closing(self) -> bool:
        return self.closed


class Recorder(Proxy):
    """Answers with what was asked."""

    def __init__(self) -> None:
        super().__init__(
            Settings([], ["http://x"], max_header_size=2000, max_body_size=2000, max_buffered=4000)
        )
        self.seen: list[tuple[str, str, bytes]] = []

    async def answer(self, front: ClientConnection, request: Request) -> None:
        self.seen.append((request.method, request.path, request.body))
        front.reply(200, "text/plain", b"ok")


def spoken(writes: list[bytes]) -> tuple[list[tuple[str, str, bytes]], list[int], Recorder]:
    async def talk() -> tuple[list[tuple[str, str, bytes]], list[int], Recorder]:
        proxy, wire = Recorder(), Wire()
        front = ClientConnection(proxy)
        front.connection_made(wire)  # type: ignore[arg-type]
        for data in writes:
            front.data_received(data)
            for _ in range(3):
                await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        front.connection_lost(None)
        await asyncio.sleep(0)
        return proxy.seen, statuses(wire.written), proxy

    return asyncio.run(talk())


def test_who_reads_nothing_is_ended() -> None:
    """While it is answered, between two requests, and when the connection is to be closed."""

    async def talk(closing: bool) -> bool:
        proxy, wire = Recorder(), Wire()
        front = ClientConnection(proxy)
        front.connection_made(wire)  # type: ignore[arg-type]
        front.pause_writing()
        front.data_received(
            b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"Connection: close\r\n" * closing + b"\r\n"
        )
        for _ in range(20):
            await asyncio.sleep(0)
        assert 0 < front.deadline <= asyncio.get_running_loop().time() + 80
        wire.closed = False
        front.overdue(asyncio.get_running_loop().time() + 100)
        front.connection_lost(None)
        return wire.closed

    assert asyncio.run(talk(False))
    assert asyncio.run(talk(True))


PIECES = st.sampled_from(
    [
        post("/v1/completions"),
        post("/tokenize", b"{}"),
        b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\r\n",
        b" ",
        b"\0",
        b"x",
        b"POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"ffffffffffff\r\n",
        b"GET ",
        b"/health",
        b" HTTP/1.1\r\n",
        b"Host: x\r\n",
        b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"\xff" * 50,
        b"a" * 1500,
        b"Expect: 100-continue\r\n",
        b"HEAD /metrics HTTP/1.0\r\n\r\n",
    ]
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.one_of(PIECES, st.binary(max_size=20)), max_size=12),
    st.lists(st.integers(0, 5000), max_size=8),
)
def test_whatever_is_sent_is_understood_the_same_however_it_is_cut(
    parts: list[bytes], cuts: list[int]
) -> None:
    raw = b"".join(parts)
    points = [0, *sorted(cut % (len(raw) + 1) for cut in cuts), len(raw)]
    whole, once, proxy = spoken([raw])
    cut, twice, _ = spoken([raw[a:b] for a, b in zip(points, points[1:], strict=False)])
    assert whole == cut
    assert once[: len(whole)] == twice[: len(whole)]
    assert sum(proxy.shares.held) == 0
    assert not proxy.clients


@settings(max_examples=300)
@given(st.one_of(st.text(), st.text("/.%2eF\\?#a", max_size=20).map(lambda text: "/" + text)))
def test_a_path_has_one_meaning(target: str) -> None:
    try:
        path, _ = normal(target)
    except Refused:
        return
    assert path.startswith("/")
    assert not {"", ".", ".."}.intersection(path[1:].rstrip("/").split("/")) - (
        {""} if path == "/" else set()
    )
