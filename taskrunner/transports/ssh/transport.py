"""A node over SSH as a target: the engine there does the work, and a session with it is kept."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from taskrunner.engine.feed import Chunk, Position
from taskrunner.errors import TargetError
from taskrunner.transports import copying, staging
from taskrunner.transports.ssh.connection import Lost
from taskrunner.transports.ssh.endpoint import resolve
from taskrunner.transports.ssh.handshake import Node
from taskrunner.transports.ssh.sending import send
from taskrunner.transports.ssh.session import Session

T = TypeVar("T")

CONNECT_TIMEOUT = 10.0
RECONNECT_TIMEOUT = 300.0


class SshTransport:
    """Runs on a node that is reached by SSH.

    `target` is `ssh://[user@]host[:port]`, completed from ~/.ssh/config. `python` is the node's
    interpreter (3.8 or later), `state` the folder of its state root (default: that of the user
    there). `connect_timeout` and `reconnect_timeout`, in seconds, are for the first connection and
    for getting back one that was lost. Host keys are checked; with `accept_new_host_keys` one that
    is not known yet is taken and remembered.

    One transport is for one thread at a time, but for `cancel`.
    """

    def __init__(
        self,
        target: str,
        *,
        python: str = "python3",
        state: str = "",
        connect_timeout: float = CONNECT_TIMEOUT,
        reconnect_timeout: float = RECONNECT_TIMEOUT,
        accept_new_host_keys: bool = False,
    ) -> None:
        self.name = target if "://" in target else f"ssh://{target}"
        self.endpoint = resolve(target, accept_new=accept_new_host_keys)
        self.session = Session(Node(self.endpoint, python, state, connect_timeout), reconnect_timeout)
        self._warming: threading.Thread | None = None
        self._said: dict[str, str | None] = {}
        self._followed: set[str] = set()
        self._joined: set[str] = set()
        self._epoch = 0
        self._cancelling: dict[str, str] = {}
        self._number = 0

    def go_through(self, command: str) -> None:
        """Connect by the stdin and stdout of this command (ProxyCommand)."""
        self.endpoint = self.endpoint._replace(proxy_command=command, proxy_jump=())
        self.session.endpoint = self.endpoint
        self.session.node = self.session.node._replace(endpoint=self.endpoint)

    def hello(self) -> dict[str, Any]:
        """What the node is: python, version and root of the engine there. Raises TargetError."""
        return self.open().hello

    def check(self) -> None:
        """Connecting tells."""

    def ping(self) -> None:
        """Wait for a sign of life."""
        self._ask("ping")

    def ready(self) -> str:
        """How the node's own start went: see engine/verbs.py."""
        return str(self._ask("ready"))

    def warm(self) -> None:
        """Begin to connect, beside what this thread does; what goes wrong shows with the first use."""

        def begin() -> None:
            try:
                self.session.open()
            except TargetError as error:
                self._cold = error

        if self._warming is None:
            self._warming = threading.Thread(target=begin, daemon=True)
            self._warming.start()

    _cold: TargetError | None = None

    def open(self) -> Session:
        """The session, connected. Raises TargetError."""
        if self._warming is not None:
            warming, self._warming = self._warming, None
            while warming.is_alive():
                warming.join(0.1)  # a Ctrl-C is heard in between
            if self._cold is not None:
                raise self._cold
        self.session.open()
        if self._epoch != self.session.epoch:
            # What belongs to a connection is told to each new one.
            for run in self._joined:
                self.session.request("join", run=run)
            for run, token in self._cancelling.items():
                self.session.request("cancel", run=run, token=token)
            self._cancelling.clear()
            self._epoch = self.session.epoch
        return self.session

    def close(self) -> None:
        """End the connection. Runs go on."""
        if self._warming is not None:
            self._warming.join()
        self.session.close()

    def start(self, run: str, plan: dict[str, Any]) -> dict[str, Any]:
        folder = f"{self.open().hello['root']}/runs/{run}"
        staged = staging.stage(plan, folder, self._place)
        self._ask("start", run=run, plan=staged)
        self._joined.add(run)
        return staged

    def plan(self, run: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self._ask("plan", run=run)
        return found

    def read(self, run: str, name: str, offset: int, limit: int = -1) -> bytes:
        data: bytes = self._ask("read", run=run, name=name, offset=offset, limit=limit)
        return data

    def follow(self, run: str, *, output: str, wait: bool = True) -> Iterator[Chunk | None]:
        self._followed.add(run)
        try:
            yield from self._followed_on(run, output, wait)
        except TargetError:
            self._joined.discard(run)
            raise
        finally:
            self._followed.discard(run)

    def _followed_on(self, run: str, output: str, wait: bool) -> Iterator[Chunk | None]:
        at, lost = Position(), False
        while True:
            try:
                session = self.open()
                if lost:
                    lost = False
                    yield self._connection("back", f"{self.endpoint}: connected again", at)
                ended = False
                for chunk in self._feed(session, run, output, wait, at):
                    ended = chunk is not None and chunk.data == b""
                    if chunk is not None and not ended:
                        at = chunk.position
                    if not ended:
                        yield chunk
                if ended:
                    return
            except Lost as error:
                if not lost:
                    yield self._connection("lost", str(error), at)
                lost = True
                for _ in self.session.reconnecting():
                    yield None

    def _feed(
        self, session: Session, run: str, output: str, wait: bool, at: Position
    ) -> Iterator[Chunk | None]:
        """The run from a position on; at its end a chunk without data. Ends without one when the node
        was asked to pause, because something else took long: then it is to be asked again.
        """
        self._number += 1
        number, epoch = self._number, session.epoch
        session.post("follow", feed=number, run=run, output=output, wait=wait, at=at)
        over = False
        try:
            for found in session.news():
                if found is None:
                    if number in session.paused:
                        over = True
                        return
                    yield None
                elif found[0]["feed"] == number:
                    message, data = found
                    if "over" in message:
                        self._said[run], over = message["over"], True
                        yield Chunk("", b"", at)
                        return
                    at = Position(*message["at"])
                    yield Chunk(message["log"], data, at)
                if session.epoch != epoch:
                    # Another request has found the connection lost, and made a new one.
                    over = True
                    raise Lost(f"{self.endpoint}: the connection was lost")
        finally:
            if not over:
                self._quietly("unfollow", feed=number)

    def _connection(self, state: str, detail: str, at: Position) -> Chunk:
        event = {"type": "connection", "time": round(time.time() + self.session.skew, 3),
                 "state": state, "detail": detail}  # fmt: skip
        return Chunk("", json.dumps(event).encode() + b"\n", at)

    @property
    def skew(self) -> float:
        """Seconds by which the node's clock is ahead of ours."""
        return self.session.skew

    def alive(self, run: str) -> bool:
        return bool(self._ask("alive", run=run))

    def last_words(self, run: str) -> str | None:
        return self._said.get(run)

    def cancel(self, run: str) -> bool:
        token = uuid.uuid4().hex
        if run not in self._followed:
            return bool(self._ask("cancel", run=run, token=token))
        # Its answer would come behind all that the run has printed. It is asked again over a new
        # connection; the token makes it one request.
        self._cancelling[run] = token
        with contextlib.suppress(Lost):
            self.session.post("cancel", run=run, token=token)
        return True

    def join(self, run: str) -> None:
        self._ask("join", run=run)
        self._joined.add(run)

    def leave(self, run: str) -> None:
        self._joined.discard(run)
        self._quietly("leave", run=run)

    def followed(self, run: str) -> bool:
        return bool(self._ask("followed", run=run))

    def runs(self) -> list[str]:
        return list(self._ask("runs"))

    def info(self, run: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self._ask("info", run=run)
        return found

    def infos(self, limit: int, live: bool = False) -> list[dict[str, Any]]:
        return list(self._ask("infos", limit=limit, live=live))

    def discard(self, run: str) -> None:
        self._joined.discard(run)
        self._ask("discard", run=run)

    def put(self, source: str | Path, target: str) -> int:
        """Copy a file, or all in a folder, to the node; returns how many files had to be sent."""
        return self._again(lambda: copying.put(Path(source), target, self._send))

    def get(self, source: str, target: str | Path, name: str = "") -> int:
        """Copy a file, or all in a folder, from the node; returns how many had to be fetched."""
        return self._again(lambda: copying.get(self.open(), source, str(target), name))

    def collect(self, plan: dict[str, Any], index: int, source: dict[str, Any]) -> None:
        staging.collect(plan, index, source, self.get)

    def _place(self, files: staging.Files) -> str:
        """Send what the node does not have of these files; the folder there that holds them."""
        root = f"{self.open().hello['root']}/files"
        self._again(lambda: copying.patiently(lambda: self._send(root, files)))
        return root

    def _send(self, root: str, files: staging.Files) -> int:
        return send(self.open(), root, files)

    def _ask(self, do: str, **about: Any) -> Any:
        return self._again(lambda: self.open().request(do, **about))

    def _again(self, work: Callable[[], T]) -> T:
        """Do what may be done twice: again, when the connection was lost in its middle."""
        while True:
            try:
                return work()
            except Lost:
                for _ in self.session.reconnecting():
                    pass

    def _quietly(self, do: str, **about: Any) -> None:
        """Say something that matters only while there is a connection."""
        if self.session.connected:
            try:
                self.session.post(do, **about)
            except TargetError:
                self.session.close()
