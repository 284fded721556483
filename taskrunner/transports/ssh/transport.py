"""A node over SSH as a target: the engine there does the work, and a session with it is kept."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from taskrunner.engine.feed import Chunk, Position
from taskrunner.errors import TargetError
from taskrunner.transports import staging
from taskrunner.transports.ssh import copying
from taskrunner.transports.ssh.connection import Lost
from taskrunner.transports.ssh.endpoint import resolve
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
        self.session = Session(
            self.endpoint, python=python, state=state, timeout=connect_timeout, patience=reconnect_timeout
        )
        self._warming: threading.Thread | None = None
        self._said: dict[str, str | None] = {}
        self._feeds: dict[int, str] = {}
        self._number = 0

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
            warming.join()
            if self._cold is not None:
                raise self._cold
        self.session.open()
        return self.session

    def close(self) -> None:
        """End the connection. Runs go on."""
        if self._warming is not None:
            self._warming.join()
        self.session.close()

    def start(self, run: str, plan: dict[str, Any]) -> None:
        folder = f"{self.open().hello['root']}/runs/{run}"
        staged = staging.stage(plan, folder, self._place)
        self._ask("start", run=run, plan=staged)

    def plan(self, run: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self._ask("plan", run=run)
        return found

    def read(self, run: str, name: str, offset: int, limit: int = -1) -> bytes:
        data: bytes = self._ask("read", run=run, name=name, offset=offset, limit=limit)
        return data

    def follow(self, run: str, *, output: str, wait: bool = True) -> Iterator[Chunk | None]:
        at, lost = Position(), False
        while True:
            try:
                session = self.open()
                if lost:
                    session.request("join", run=run)
                    lost = False
                    yield self._connection("back", f"{self.endpoint}: connected again", at)
                for chunk in self._feed(session, run, output, wait, at):
                    if chunk is not None:
                        at = chunk.position
                    yield chunk
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
        self._number += 1
        number = self._number
        session.post("follow", feed=number, run=run, output=output, wait=wait, at=at)
        self._feeds[number] = run
        over = False
        try:
            for found in session.news():
                if found is None:
                    yield None
                    continue
                message, data = found
                if message["feed"] != number:
                    continue
                if "over" in message:
                    self._said[run], over = message["over"], True
                    return
                yield Chunk(message["log"], data, Position(*message["at"]))
        finally:
            del self._feeds[number]
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
        if run in self._feeds.values():
            # Its answer would come behind all that the run has printed.
            self.session.post("cancel", run=run)
            return True
        return bool(self._ask("cancel", run=run))

    def join(self, run: str) -> None:
        self._ask("join", run=run)

    def leave(self, run: str) -> None:
        self._quietly("leave", run=run)

    def followed(self, run: str) -> bool:
        return bool(self._ask("followed", run=run))

    def runs(self) -> list[str]:
        return list(self._ask("runs"))

    def infos(self, limit: int, live: bool = False) -> list[dict[str, Any]]:
        return list(self._ask("infos", limit=limit, live=live))

    def discard(self, run: str) -> None:
        self._ask("discard", run=run)

    def put(self, source: str | Path, target: str) -> int:
        """Copy a file, or all in a folder, to the node; returns how many files had to be sent."""
        return self._again(lambda: copying.put(self.open(), Path(source), target))

    def get(self, source: str, target: str | Path, name: str = "") -> int:
        """Copy a file, or all in a folder, from the node; returns how many had to be fetched."""
        return self._again(lambda: copying.get(self.open(), source, str(target), name))

    def collect(self, plan: dict[str, Any], index: int) -> None:
        staging.collect(plan, index, self.get)

    def _place(self, files: staging.Files) -> str:
        """Send what the node does not have of these files; the folder there that holds them."""
        root = f"{self.open().hello['root']}/files"
        self._again(lambda: copying.send(self.open(), root, files))
        return root

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
