"""A conversation with the engine on a node, over one channel that is kept open.

The engine is shipped when the node does not have it. When the connection is lost, `Lost` says so;
`reconnecting` brings it back.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from taskrunner import log
from taskrunner.engine.node.frames import Unpacker, pack
from taskrunner.errors import HostKeyError, TargetError
from taskrunner.transports import replies
from taskrunner.transports.stream.dialer import BROKEN, WINDOW, Channel, Dialer, Gone, Lost
from taskrunner.transports.stream.handshake import begin

PING = 5.0
"""Seconds after which the node hears from us; it gives up after SILENCE_LIMIT_S."""
SILENT = 15.0
"""Seconds without a word from the node, which ticks every 5, after which the connection is lost."""
IDLE = 0.2
"""Seconds at most before who waits for news gets a say."""
LEAST = 256
"""Bytes that the smallest message takes in memory, and more."""
BEHIND = 8 << 20
"""Bytes of news that may wait while something else is asked for: more would be kept in memory."""
FRUITLESS = 10
"""Connections in a row that end before the node has answered anything: then something is wrong there."""


class Session:
    """One node. Raises TargetError when it cannot be reached, Lost when it no longer can."""

    def __init__(self, dialer: Dialer, patience: float) -> None:
        self.dialer = dialer
        self.epoch = 0
        """Grows with each connection: what was begun on another one is over."""
        self.hello: dict[str, Any] = {}
        self.skew = 0.0
        self._patience = patience
        self._channel: Channel | None = None
        self._unpacker = Unpacker()
        self._whole: Iterator[tuple[dict[str, Any], bytes]] = iter(())
        self._waiting: deque[tuple[dict[str, Any], bytes]] = deque()
        self._behind = 0
        self._pausing: dict[int, int] = {}
        self.paused: set[int] = set()
        self._numbers = itertools.count(1)
        self._spoke = self._heard = 0.0
        self._speaking = threading.Lock()
        self._fruitless = 0
        self._why = ""

    @property
    def connected(self) -> bool:
        return self._channel is not None and self.dialer.connected()

    def open(self) -> None:
        """Connect, unless that is done. A host that hangs up early (MaxStartups) is asked again.

        Raises TargetError, for a connection that there was already Lost.
        """
        deadline = time.monotonic() + self.dialer.timeout
        pause = 0.2
        while True:
            try:
                return self._open()
            except Lost as error:
                if self.hello:
                    raise
                if time.monotonic() + pause > deadline:
                    raise TargetError(str(error), error.hint) from error
                time.sleep(pause * random.uniform(0.5, 1.5))
                pause *= 2

    def _open(self) -> None:
        if self.connected:
            return
        self._unpacker, self._whole = Unpacker(), iter(())
        self._waiting.clear()
        self._behind = 0
        self._pausing.clear()
        self.paused.clear()
        self._channel, self.hello = begin(self.dialer)
        self.hello = replies.known(self.name, self.hello, replies.HELLO)
        self.skew = self.hello["time"] - time.time()
        self.epoch += 1
        self._spoke = self._heard = time.monotonic()

    def close(self) -> None:
        """End the connection. The runs on the node go on."""
        self.dialer.close()
        self._channel = None

    def reconnecting(self) -> Iterator[None]:
        """Try again and again, between two yields each, until there is a connection.

        Raises TargetError when there is none within the patience, or the host has become another.
        """
        if self.connected:
            return
        deadline = time.monotonic() + self._patience
        pause = 0.1
        log.warning("connection.lost", node=self.name, error=self._why)
        self.close()
        self._fruitless += 1
        if self._fruitless > FRUITLESS:
            raise TargetError(f"{self._why}, repeatedly", "see the log of sshd on the node")
        while True:
            try:
                return self._open()
            except (HostKeyError, Gone):
                raise
            except TargetError as error:
                left = deadline - time.monotonic()
                if left <= 0:
                    message = str(error).removeprefix(f"{self.name}: ")
                    raise TargetError(
                        f"{self.name}: lost, and not reconnected within {self._patience:g} s: {message}",
                        "what was started there may still be running; the same command attaches to it",
                    ) from error
                log.info("connection.retry", node=self.name, error=str(error), pause=round(pause, 2))
            wake = time.monotonic() + min(pause * random.uniform(0.5, 1.5), left)
            while time.monotonic() < wake:
                yield
                time.sleep(min(IDLE, max(0.0, wake - time.monotonic())))
            pause = min(pause * 2, 10.0)

    def request(self, do: str, payload: bytes = b"", **about: Any) -> Any:
        """Ask for something and wait for the answer; bytes where it is bytes.

        Raises Lost, StateError (the node's system has refused it).
        """
        number = self.post(do, payload, **about)
        while True:
            message, data = self._next(None)
            if message.get("id") == number:
                return self._value(message, data)
            self._keep(message, data)

    def post(self, do: str, payload: bytes = b"", **about: Any) -> int:
        """Ask for something without waiting; returns the number that the answer will have.

        Raises Lost: a conversation does not go on over another connection as if nothing had been.
        """
        number = next(self._numbers)
        self._say(pack({"id": number, "do": do, **about}, payload))
        return number

    def answers(self, numbers: set[int]) -> None:
        """Wait for the answers to what was posted. Raises what `request` raises."""
        while numbers:
            message, data = self._next(None)
            if message.get("id") in numbers:
                numbers.discard(message["id"])
                self._value(message, data)
            else:
                self._keep(message, data)

    @property
    def name(self) -> str:
        """The node, for messages."""
        return self.dialer.name

    def ahead(self, paths: Sequence[str]) -> None:
        """A file costs a round trip, which is little: it is asked for when its turn comes."""

    def content(self, path: str, offset: int) -> Iterator[bytes | str]:
        """A file of the node from an offset on, in pieces, then the digest of the whole."""
        number = self.post("send", path=path, offset=offset)
        while True:
            message, data = self._next(None)
            if message.get("id") == number:
                yield self._value(message, data)
                return
            if message.get("piece") == number:
                yield data
            else:
                self._keep(message, data)

    def news(self) -> Iterator[tuple[dict[str, Any], bytes] | None]:
        """What comes by itself, as it comes; None now and then. Raises Lost."""
        while True:
            if self._waiting:
                message, data = self._waiting.popleft()
                self._behind -= len(data) + LEAST
                yield message, data
                continue
            item = self._next(IDLE)
            yield item if item and "feed" in item[0] else None

    def _keep(self, message: dict[str, Any], data: bytes) -> None:
        """Keep news for later. Who sends too many is asked to pause; `paused` has it when it does."""
        feed = message.get("feed")
        if feed is None:
            return
        self._waiting.append((message, data))
        self._behind += len(data) + LEAST
        if self._behind > 4 * BEHIND:
            raise self._odd("it keeps sending data that was not requested")
        if self._behind > BEHIND and feed not in self._pausing.values():
            self._pausing[self.post("unfollow", feed=feed)] = feed

    def _value(self, message: dict[str, Any], data: bytes) -> Any:
        return replies.value(self.name, message, data)

    def _next(self, seconds: float | None) -> Any:
        """The next message; None when none came within these seconds."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            for message, data in self._messages():
                if "tick" not in message:
                    self._fruitless = 0
                    if message.get("id") in self._pausing:
                        self.paused.add(self._pausing.pop(message["id"]))
                    return message, data
            now = time.monotonic()
            if now - self._spoke > PING:
                self._say(pack({"id": 0, "do": "ping"}))
            silent = now - self._heard > SILENT
            if deadline is not None and now >= deadline and not silent:
                return None
            # Who was busy elsewhere for long looks at what has come meanwhile, before the verdict.
            left = PING if deadline is None else deadline - now
            received = self._receive(0.0 if silent else max(0.0, min(1.0, left)))
            if received:
                self._heard = time.monotonic()
                self._whole = self._unpacker.feed(received)
            elif silent:
                raise self._lost("no sign of life")

    def _messages(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        try:
            for message, data in self._whole:
                if not isinstance(message, dict) or not all(
                    isinstance(message.get(name), (int, type(None))) for name in ("id", "piece", "feed")
                ):
                    raise self._odd("not a message")
                yield message, data
        except ValueError as error:
            raise self._odd(error) from error

    def _odd(self, what: object) -> TargetError:
        """Leave a node that does not talk as an engine does; it is not asked again."""
        self.close()
        return replies.strange(self.name, what)

    def _receive(self, seconds: float) -> bytes:
        channel = self._channel
        if channel is None:
            raise self._lost("closed")
        channel.settimeout(seconds)
        try:
            data = channel.recv(WINDOW)
        except TimeoutError:
            return b""
        except BROKEN as error:
            raise self._lost(self._ended(str(error))) from error
        if not data:
            raise self._lost(self._ended("closed by the node"))
        return bytes(data)

    def _ended(self, why: str) -> str:
        _, errors = self.dialer.ending()
        return ": ".join([why, *errors.decode("utf-8", "replace").strip().splitlines()[-1:]])

    def _say(self, data: bytes) -> None:
        channel = self._channel
        if channel is None:
            raise self._lost("closed")
        self._spoke = time.monotonic()
        try:
            # A run may be cancelled by another thread than the one that follows it.
            with self._speaking:
                channel.settimeout(SILENT)
                channel.sendall(data)
        except BROKEN as error:
            raise self._lost(str(error) or "it accepts no more data") from error

    def _lost(self, why: str) -> Lost:
        if self._channel is not None:
            with contextlib.suppress(*BROKEN):
                self._channel.close()
            self._channel = None
        self._why = f"{self.name}: the connection was lost: {why}"
        return Lost(self._why)
