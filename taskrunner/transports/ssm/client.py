"""Questions to the engine on one instance, and its answers; the engine is shipped when it is missing."""

from __future__ import annotations

import base64
import os
import time
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple, NoReturn, TypeVar

from taskrunner import log
from taskrunner.aws.session import NotRegistered, Throttled
from taskrunner.engine.node.frames import LARGEST_PAYLOAD
from taskrunner.engine.store import fileio, paths
from taskrunner.errors import NeverRanError, TargetError
from taskrunner.transports import replies
from taskrunner.transports.bundle import refused, shipped
from taskrunner.transports.ssm import command
from taskrunner.transports.ssm.bucket import Bucket
from taskrunner.transports.ssm.dispatcher import UNDELIVERED, Dispatcher
from taskrunner.transports.ssm.pacing import IDLE_S, REQUEST_DELIVERY_S, REQUEST_TIMEOUT_S
from taskrunner.transports.ssm.request import Pending, Request

T = TypeVar("T")

PARTS_LIMIT = 2 << 20
"""Bytes that go to a node in parts of commands, where there is no bucket: 70 commands."""
SPARE = 1000
"""Characters for what is added to a question: where to begin, how long to wait."""


MUTE = 3
"""Commands that end without an answer, before there ever was one, after which something is wrong there."""


class Lost(TargetError):
    """No answer came, for a reason that may pass."""


class Answer(NamedTuple):
    """What a node has said: its value, bytes where it is bytes, and the frames that come before it."""

    message: dict[str, Any]
    payload: bytes
    frames: Iterable[tuple[dict[str, Any], bytes]]


class InstanceClient:
    """One instance, as one user. `timeout` is the time, in seconds, in which it must answer at first."""

    def __init__(
        self,
        instance: str,
        user: str,
        python: str,
        state: str,
        dispatcher: Dispatcher,
        bucket: Bucket | None,
        timeout: float,
    ) -> None:
        self.instance, self.user, self.python, self.state = instance, user, python, state
        self.dispatcher = dispatcher
        self.bucket = bucket
        self.timeout = timeout
        self.hello: dict[str, Any] = {}
        self.skew = 0.0
        self.ungranted = ""
        """Why nodes cannot upload, once that is known."""
        self._refusals = 0
        self._mute = 0

    @property
    def name(self) -> str:
        return f"{self.user}@{self.instance}" if self.user else self.instance

    def post(
        self,
        do: str,
        fields: Mapping[str, Any],
        *,
        grant: bool = False,
        timeout: int = REQUEST_TIMEOUT_S,
        delivery: int = 0,
        ends: float = 0.0,
        since: float = 0.0,
        joins: float = 0.0,
    ) -> Pending:
        """Send a question, without waiting. Raises TargetError. For the options see Request."""
        shared = self.shared(do, grant)
        if self.bucket is None and not self._has_engine():
            for part in self.parts_of_engine():
                self.dispatcher.post(part)
            shared["engine"]["patience"] = REQUEST_DELIVERY_S
        return self.dispatcher.post(
            Request(
                self.instance,
                self.python,
                shared,
                {"about": dict(fields)},
                timeout,
                delivery or REQUEST_DELIVERY_S,
                ends=ends,
                since=since,
                joins=joins,
            )
        )

    def shared(self, do: str, grant: bool = False) -> dict[str, Any]:
        """What a request has in common with those to other instances."""
        data, digest = shipped()
        engine: dict[str, Any] = {"digest": digest}
        if self.bucket is not None:
            engine["url"] = self.bucket.url(data, "engine")
        else:
            engine["parts"] = -(-len(_packed_engine()) // command.PART)
        shared = {"do": do, "user": self.user, "state": self.state, "engine": engine}
        if grant and self.bucket is not None and not self.ungranted:
            shared["grant"] = self.bucket.grant()
        return shared

    def fits(self, do: str, fields: Mapping[str, Any]) -> bool:
        """Whether a question is short enough for a command."""
        request = {**self.shared(do), "own": {self.instance: {"about": fields}}}
        return len(command.script(self.python, request)) < command.LIMIT - SPARE

    def parts_of_engine(self, instance: str | None = None) -> list[Request]:
        """What brings the engine; what needs it may be sent at the same time, with some patience."""
        shared = self.shared("ping")
        return [
            Request(
                self.instance if instance is None else instance,
                self.python,
                {**shared, "engine": {**shared["engine"], "part": part}},
                {"about": {}},
                REQUEST_TIMEOUT_S,
            )
            for part in enumerate(_parts(_packed_engine()))
        ]

    def send_parts(self, data: bytes, digest: str) -> int:
        """Bring something in parts of commands; how many these are. Raises what `request` raises."""
        if len(data) > PARTS_LIMIT:
            self.too_large(len(data))
        log.info("ssm.parts", instance=self.instance, digest=digest, bytes=len(data))
        asks = [
            self.post("part", {"digest": digest, "number": number, "data": text})
            for number, text in enumerate(_parts(data))
        ]
        for pending in asks:
            drained(self.wait(lambda: pending, pending))  # noqa: B023 - it is waited for at once
        return len(asks)

    def too_large(self, size: int) -> NoReturn:
        raise TargetError(
            f"{self.name}: {size / 1e6:.1f} MB is too much without a bucket (at most"
            f" {PARTS_LIMIT / 1e6:.0f} MB, compressed)",
            "set --bucket NAME or TASKRUNNER_BUCKET to an S3 bucket that this account may use",
        )

    def request(self, do: str, **about: Any) -> Any:
        """Ask, and wait for the answer; bytes where it is bytes. Raises Lost, StateError, TargetError."""
        return self.finish(lambda: self.post(do, about, grant=True))

    def finish(self, post: Callable[[], Pending]) -> Any:
        """The value of a question."""
        answer = drained(self.wait(post))
        payload = answer.payload
        for message, data in answer.frames:
            if "payload" in message:
                payload = data  # it was too long to stand in the answer itself
        return replies.value(self.name, answer.message, payload)

    def wait(
        self, post: Callable[[], Pending], pending: Pending | None = None
    ) -> Generator[None, None, Answer]:
        """Wait for an answer, and yield while it does not come; the Answer is the generator's value.

        Raises Lost, StateError, TargetError.
        """
        pending = pending or post()
        for again in range(3):
            output = yield from self._output(pending)
            messages = list(replies.messages(self.name, output, compressed=False))
            last, payload = messages[-1]
            if "need" in last:
                self._mark(False)
                pending = post()
                continue
            if "failed" in last and last["failed"].get("path") == "S3" and self.bucket is not None:
                if again == 2:
                    raise TargetError(
                        f"{self.name}: {last['failed']['error']}",
                        "check its route to S3 (NAT gateway or gateway endpoint), or use --bucket ''",
                    )
                self.bucket.sign_anew()
                pending = post()
                continue
            if "failed" in last:
                raise refused(self.name, self.python, last["failed"])
            self._mark(True)
            if "kept" in last:
                whole = yield from self._rest(last, payload)
                messages = list(replies.messages(self.name, whole))
                last, payload = messages[-1]
            return self._understood(pending, messages)
        raise TargetError(
            f"{self.name}: the engine does not arrive there", "check the disk of its state folder"
        )

    def _output(self, pending: Pending) -> Generator[None, None, bytes]:
        began = time.monotonic()
        while not pending.done.is_set():
            yield None
            if pending.done.wait(IDLE_S):
                break
            if self.hello or pending.running or pending.request.fanned:
                continue
            # The first contact: what does not go well now, goes wrong.
            waited = time.monotonic() - began
            trouble = pending.trouble
            if trouble is not None and (waited > self.timeout or not isinstance(trouble, Throttled)):
                self.dispatcher.cancel(pending)
                raise trouble
            if waited > self.timeout:
                self.dispatcher.cancel(pending)
                raise NotRegistered(
                    f"{self.name}: the command was not delivered within {self.timeout:g} s",
                    "`runner wait-ready` shows what is missing; --connect-timeout allows more time",
                )
        if pending.error is None:
            return pending.output
        if isinstance(pending.error, NeverRanError):
            raise pending.error
        if not (
            pending.command or pending.cancelled or (self.hello and isinstance(pending.error, NotRegistered))
        ):
            raise pending.error  # it was never sent, and would not be if it were tried again
        if "exit status 127" in pending.printed:
            raise TargetError(
                f"{self.name}: there is no {self.python} on the node ({pending.printed.splitlines()[-1]})",
                "install Python 3.8 or later there, or set `python` in the nodes file",
            )
        if pending.status in UNDELIVERED and not self.hello:
            raise NotRegistered(str(pending.error), "`runner wait-ready` shows what is missing")
        self._mute += pending.running
        if self._mute >= MUTE and not self.hello:
            raise TargetError(
                f"{self.name}: {str(pending.error).removeprefix(f'{self.instance}: ')}",
                f"check that `{self.python} -c pass` works there for this user",
            )
        raise Lost(str(pending.error))

    def _rest(self, last: dict[str, Any], payload: bytes) -> Generator[None, None, bytes]:
        """The whole of an answer that was kept on the node, fetched piece by piece."""
        step = len(payload)
        asks = [
            self.post("rest", {"token": last["kept"], "offset": offset})
            for offset in range(step, min(replies.number(self.name, last["whole"]), LARGEST_PAYLOAD), step)
        ]
        pieces = [payload]
        for pending in asks:
            output = yield from self._output(pending)
            message, piece = list(replies.messages(self.name, output, compressed=False))[-1]
            if not piece:
                raise Lost(f"{self.name}: part of its reply is missing: {message}")
            pieces.append(piece)
        return b"".join(pieces)

    def _understood(self, pending: Pending, messages: list[tuple[dict[str, Any], bytes]]) -> Answer:
        last, payload = messages[-1]
        ok = last.get("ok")
        if isinstance(ok, dict) and "hello" in ok:
            self._note(pending, ok["hello"])
        if last.get("refused"):
            self._refusals += 1
            if self._refusals > 1 or self.bucket is None:
                self.ungranted = str(last["refused"])
            else:
                self.bucket.grant(anew=True)
        if "error" in last and last.get("path") == "S3":
            raise Lost(f"{self.name}: S3: {last['error']}")
        replies.value(self.name, last, payload)

        def frames() -> Iterator[tuple[dict[str, Any], bytes]]:
            if last.get("segments") and self.bucket is not None:
                for segment in self.bucket.segments(pending.request.key, pending.segments, last["segments"]):
                    yield from replies.messages(self.name, segment)
            yield from messages[:-1]

        return Answer(last, payload, frames())

    def _note(self, pending: Pending, hello: dict[str, Any]) -> None:
        self.hello = hello = replies.known(self.name, hello, replies.HELLO)
        # It was said at some time between the sending and now.
        early, late = pending.began - hello["time"], time.time() - hello["time"]
        self.skew = -early if early > 0 else -late if late < 0 else 0.0

    def _marked(self) -> str:
        return f"{paths.default_root()}/nodes/{paths.slug(f'{self.name}-{self.state}')}"

    def _has_engine(self) -> bool:
        """Whether the engine was there when the node was last heard of, as far as is known here."""
        return fileio.read_bytes(self._marked()).decode() == shipped()[1]

    def _mark(self, there: bool) -> None:
        if there != self._has_engine():
            try:
                fileio.private_folder(os.path.dirname(self._marked()))
                fileio.write_atomic(self._marked(), shipped()[1].encode() if there else b"")
            except OSError:
                pass  # it is sent again, then


def drained(waiting: Generator[None, None, T]) -> T:
    """The value of a generator that yields while it waits."""
    while True:
        try:
            next(waiting)
        except StopIteration as stop:
            value: T = stop.value
            return value


@cache
def _packed_engine() -> bytes:
    return zlib.compress(shipped()[0], 9)


def _parts(data: bytes) -> Iterator[str]:
    """Pieces that fit into a command each, as base64."""
    for start in range(0, len(data), command.PART):
        yield base64.b64encode(data[start : start + command.PART]).decode()
