"""A node with which a session is kept as a target: the engine there does the work."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from taskrunner.engine.plan import Plan
from taskrunner.engine.store.follow import Chunk, Cursor
from taskrunner.errors import TargetError
from taskrunner.transports import file_copy, replies, staging
from taskrunner.transports.remote import RemoteTransport, T
from taskrunner.transports.stream.dialer import Lost
from taskrunner.transports.stream.file_copy import send
from taskrunner.transports.stream.session import Session


class StreamTransport(RemoteTransport):
    """What transports with a session have in common. One is for one thread at a time, but for `cancel`."""

    def __init__(self, name: str, session: Session) -> None:
        super().__init__(name)
        self.session = session
        self._joined: set[str] = set()
        self._epoch = 0
        self._cancelling: dict[str, str] = {}
        self._number = 0

    def hello(self) -> dict[str, Any]:
        """What the node is: python, version and root of the engine there. Raises TargetError."""
        return self.open().hello

    def check(self) -> None:
        """Connecting tells."""

    def warm(self) -> None:
        """Begin to connect, beside what this thread does; what goes wrong shows with the first use."""

        def begin() -> None:
            try:
                self.session.open()
            except TargetError as error:
                self._cold = error

        self._warm(begin)

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

    def start(self, run: str, plan: Plan) -> Plan:
        folder = f"{self.open().hello['root']}/runs/{run}"
        staged = staging.stage(plan, folder, self._place)
        self._launch(run, staged)
        self._joined.add(run)
        return staged

    def _launch(self, run: str, plan: Plan) -> None:
        self._ask("start", run=run, plan=plan)

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
        at, lost = Cursor(), False
        while True:
            try:
                session = self.open()
                if lost:
                    lost = False
                    yield self._connection("back", f"{self.session.name}: connected again", at)
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
        self, session: Session, run: str, output: str, wait: bool, at: Cursor
    ) -> Iterator[Chunk | None]:
        """The run from a position on; at its end a chunk without data. Ends without one when the node
        was asked to pause, because something else took long: then it is to be asked again.
        """
        self._number += 1
        number, epoch = self._number, session.epoch
        session.post("follow", feed=number, run=run, output=output, wait=wait, at=at)
        over = False
        try:
            for item in session.news():
                if item is None:
                    if number in session.paused:
                        over = True
                        return
                    yield None
                elif item[0].get("feed") == number:
                    message, data = item
                    if "over" in message:
                        self._said[run], over = str(message["over"] or "") or None, True
                        yield Chunk("", b"", at)
                        return
                    chunk = replies.chunk(self.name, message, data)
                    at = chunk.position
                    yield chunk
                if session.epoch != epoch:
                    # Another request has found the connection lost, and made a new one.
                    over = True
                    raise Lost(f"{self.session.name}: the connection was lost")
        finally:
            if not over:
                self._quietly("unfollow", feed=number)

    def _connection(self, state: str, detail: str, at: Cursor) -> Chunk:
        event = {
            "type": "connection",
            "time": round(time.time() + self.session.skew, 3),
            "state": state,
            "detail": detail,
        }
        return Chunk("", json.dumps(event).encode() + b"\n", at)

    @property
    def skew(self) -> float:
        """Seconds by which the node's clock is ahead of ours."""
        return self.session.skew

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

    def discard(self, run: str) -> None:
        self._joined.discard(run)
        super().discard(run)

    def _place(self, files: staging.Files) -> str:
        """Send what the node does not have of these files; the folder there that holds them."""
        root = f"{self.open().hello['root']}/files"
        self._again(lambda: file_copy.patiently(lambda: self._send(root, files)))
        return root

    def _send(self, root: str, files: staging.Files) -> int:
        return send(self.open(), root, files)

    def _conversation(self) -> Session:
        return self.open()

    def _again(self, work: Callable[[], T]) -> T:
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
