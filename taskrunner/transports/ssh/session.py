"""A conversation with the engine on a node, over one channel of one connection that is kept open.

The engine is shipped when the node does not have it. When the connection is lost, `Lost` says so;
`reconnecting` brings it back.
"""

from __future__ import annotations

import errno
import hashlib
import json
import random
import re
import shlex
import threading
import time
from collections import deque
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskrunner.engine import VERSION, bootstrap
from taskrunner.engine.frames import Unpacker, pack
from taskrunner.errors import HostKeyError, StateError, TargetError
from taskrunner.transports.bundle import engine_zip
from taskrunner.transports.ssh.connection import WINDOW, Lost, connect
from taskrunner.transports.ssh.endpoint import Endpoint

if TYPE_CHECKING:
    from paramiko import Channel
    from paramiko import Transport as Connection

PING = 5.0
"""Seconds after which the node hears from us; it gives up after serve.DEAF."""
SILENT = 15.0
"""Seconds without a word from the node, which ticks every 5, after which the connection is lost."""
IDLE = 0.2
"""Seconds at most before who waits for news gets a say."""
BLOCK = 1 << 20
WORD = re.compile(rb"\0taskrunner-(need|failed|engine) (\{.*?\})\n")


@cache
def _engine() -> tuple[bytes, str]:
    data = engine_zip()
    return data, hashlib.sha256(data).hexdigest()[:32]


FRUITLESS = 10
"""Connections in a row that end before the node has answered anything: then something is wrong there."""


class Busy(StateError):
    """Somebody else is at what was asked for; it is worth asking again."""


class Session:
    """One node. Raises TargetError when it cannot be reached, Lost when it no longer can."""

    def __init__(
        self, endpoint: Endpoint, *, python: str, state: str, timeout: float, patience: float
    ) -> None:
        self.endpoint = endpoint
        self.hello: dict[str, Any] = {}
        self.skew = 0.0
        self.latency = 0.0
        self._python, self._state = python, state
        self._timeout, self._patience = timeout, patience
        self._connection: Connection | None = None
        self._channel: Channel | None = None
        self._unpacker = Unpacker()
        self._whole: Iterator[tuple[dict[str, Any], bytes]] = iter(())
        self._waiting: deque[tuple[dict[str, Any], bytes]] = deque()
        self._number = 0
        self._spoke = self._heard = 0.0
        self._speaking = threading.Lock()
        self._fruitless = 0
        self._why = ""

    @property
    def connected(self) -> bool:
        return self._channel is not None and not self._channel.closed

    def open(self) -> None:
        """Connect, unless that is done. A host that hangs up early (MaxStartups) is asked again.

        Raises TargetError, for a connection that there was already Lost.
        """
        deadline = time.monotonic() + self._timeout
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
        if self._connection is None or not self._connection.is_active():
            self._connection = connect(self.endpoint, self._timeout)
        self._channel = self._begin(self._connection)
        self._spoke = self._heard = time.monotonic()

    def close(self) -> None:
        """End the connection. The runs on the node go on."""
        if self._connection is not None:
            self._connection.close()
        self._connection = self._channel = None

    def reconnecting(self) -> Iterator[None]:
        """Try again and again, between two yields each, until there is a connection.

        Raises TargetError when there is none within the patience, or the host has become another.
        """
        deadline = time.monotonic() + self._patience
        pause = 0.1
        self.close()
        self._fruitless += 1
        if self._fruitless > FRUITLESS:
            raise TargetError(f"{self._why}, again and again", "the log of sshd there may tell more")
        while True:
            try:
                return self._open()
            except HostKeyError:
                raise
            except TargetError as error:
                left = deadline - time.monotonic()
                if left <= 0:
                    said = str(error).removeprefix(f"{self.endpoint}: ")
                    raise TargetError(
                        f"{self.endpoint}: lost, and not back within {self._patience:g} s: {said}",
                        "what was started there may go on; the same command attaches to it",
                    ) from error
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
        """Ask for something without waiting; returns the number that the answer will have."""
        self.open()
        self._number += 1
        self._say(pack({"id": self._number, "do": do, **about}, payload))
        return self._number

    def answers(self, numbers: set[int]) -> None:
        """Wait for the answers to what was posted. Raises what `request` raises."""
        while numbers:
            message, data = self._next(None)
            if message.get("id") in numbers:
                numbers.discard(message["id"])
                self._value(message, data)
            else:
                self._keep(message, data)

    def pieces(self, do: str, **about: Any) -> Iterator[bytes]:
        """What comes before the answer to a request that is answered in pieces."""
        number = self.post(do, **about)
        while True:
            message, data = self._next(None)
            if message.get("id") == number:
                self._value(message, data)
                return
            if "file" in message:
                yield data
            else:
                self._keep(message, data)

    def news(self) -> Iterator[tuple[dict[str, Any], bytes] | None]:
        """What comes by itself, as it comes; None now and then. Raises Lost."""
        while True:
            if self._waiting:
                yield self._waiting.popleft()
                continue
            found = self._next(IDLE)
            yield found if found and "feed" in found[0] else None

    def _keep(self, message: dict[str, Any], data: bytes) -> None:
        if "feed" in message:
            self._waiting.append((message, data))

    def _value(self, message: dict[str, Any], data: bytes) -> Any:
        if "error" not in message:
            return message.get("ok", data)
        where = f"{message['path']}: " if message.get("path") else ""
        kind = Busy if message.get("errno") == errno.EAGAIN else StateError
        raise kind(f"{self.endpoint}: {where}{message['error']}")

    def _next(self, seconds: float | None) -> Any:
        """The next message; None when none came within these seconds."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            for message, data in self._whole:
                if "tick" not in message:
                    self._fruitless = 0
                    return message, data
            now = time.monotonic()
            if now - self._spoke > PING:
                self._say(pack({"id": 0, "do": "ping"}))
            if now - self._heard > SILENT:
                raise self._lost("no sign of life")
            if deadline is not None and now >= deadline:
                return None
            received = self._receive(min(1.0, PING if deadline is None else deadline - now))
            if received:
                self._heard = time.monotonic()
                self._whole = self._unpacker.feed(received)

    def _receive(self, seconds: float) -> bytes:
        channel = self._channel
        if channel is None:
            raise self._lost("closed")
        channel.settimeout(seconds)
        try:
            data = channel.recv(WINDOW)
        except TimeoutError:
            return b""
        except OSError as error:
            raise self._lost(str(error)) from error
        if not data:
            errors = channel.recv_stderr(BLOCK) if channel.recv_stderr_ready() else b""
            said = errors.decode("utf-8", "replace").strip().splitlines()[-1:]
            raise self._lost(": ".join(["the node has ended it", *said]))
        return bytes(data)

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
        except OSError as error:
            raise self._lost(str(error) or "nothing is taken any more") from error

    def _lost(self, why: str) -> Lost:
        if self._channel is not None:
            self._channel.close()
        self._why = f"{self.endpoint}: the connection was lost: {why}"
        return Lost(self._why)

    def _begin(self, connection: Connection) -> Channel:
        """Start the engine's side; ship the engine when it is missing there."""
        import paramiko

        data, digest = _engine()
        program = Path(bootstrap.__file__).read_text(encoding="utf-8")
        program += f"\nserve({digest!r}, {len(data)}, {self._state!r})\n"
        try:
            channel = connection.open_session(timeout=self._timeout)
            # Words that mean the same in every login shell: sh, bash, zsh, fish, csh.
            channel.exec_command(
                f"exec {shlex.quote(self._python)} -I -S -c"
                " 'import sys; exec(eval(sys.stdin.buffer.readline()))' taskrunner-engine"
            )
            channel.settimeout(self._timeout)
            channel.sendall(repr(program).encode() + b"\n")
            asked = time.monotonic()
            found = self._word(channel)
            if found[1] == b"need":
                channel.sendall(data)
                asked = time.monotonic()
                found = self._word(channel)
        except (paramiko.SSHException, EOFError, OSError) as error:
            if isinstance(error, paramiko.ChannelException):
                raise TargetError(f"{self.endpoint}: sshd refuses a session: {error.text}",
                                  "MaxSessions or ForceCommand in its sshd_config?") from error  # fmt: skip
            if isinstance(error, TimeoutError):
                raise TargetError(
                    f"{self.endpoint}: the engine does not answer within {self._timeout:g} s of the login",
                    "does a start file of the login shell there wait for something?",
                ) from error
            raise Lost(f"{self.endpoint}: the connection was lost: {error}") from error
        return self._greeted(channel, found[1].decode(), found[2], asked)

    def _word(self, channel: Channel) -> re.Match[bytes]:
        """What the bootstrap or the engine says, found behind whatever a login shell prints."""
        data = b""
        while True:
            found = WORD.search(data)
            if found:
                return found
            piece = channel.recv(BLOCK)
            if not piece:
                raise self._no_engine(channel, data)
            data = (data + piece)[-BLOCK:]

    def _no_engine(self, channel: Channel, printed: bytes) -> TargetError:
        channel.status_event.wait(5)
        status = channel.exit_status if channel.exit_status_ready() else -1
        errors = b"".join(iter(lambda: channel.recv_stderr(BLOCK), b"")).decode("utf-8", "replace").strip()
        said = (errors or printed.decode("utf-8", "replace").strip()).splitlines()[-1:] or [""]
        if status in (126, 127):
            return TargetError(
                f"{self.endpoint}: there is no {self._python} on the node ({said[0]})",
                "install Python 3.8 or later there, or name it: `python` in the nodes file",
            )
        if status == -1:
            return Lost(f"{self.endpoint}: the connection was lost: the node has ended it")
        return TargetError(
            f"{self.endpoint}: the engine does not start there: exit status {status}"
            + (f": {said[0]}" if said[0] else ""),
            "can this user run commands there? `runner shell NODE` shows",
        )

    def _greeted(self, channel: Channel, word: str, text: bytes, asked: float) -> Channel:
        about = json.loads(text)
        if word == "failed":
            channel.close()
            raise self._refused(about)
        self.latency = time.monotonic() - asked
        self.hello = about
        self.skew = about["time"] - time.time()
        if about["version"] != VERSION:
            raise TargetError(f"{self.endpoint}: its engine is version {about['version']}, not {VERSION}")
        return channel

    def _refused(self, about: dict[str, Any]) -> TargetError:
        if "python" in about:
            return TargetError(
                f"{self.endpoint}: its {self._python} is {about['python']}; the engine needs 3.8 or later",
                "name another one: `python` in the nodes file",
            )
        full = about["errno"] in (errno.ENOSPC, errno.EDQUOT)
        return TargetError(
            f"{self.endpoint}: its state folder cannot be written: {about['path']}: {about['error']}",
            "make room there"
            if full
            else "choose another one that this user may write: `state` in the nodes file",
        )
