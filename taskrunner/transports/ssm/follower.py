"""What a run on an instance prints and tells, brought here in order, whatever happens on the way."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

from taskrunner.engine.store.follow import Chunk, Cursor
from taskrunner.errors import NeverRanError, TargetError
from taskrunner.transports import replies
from taskrunner.transports.ssm import pacing
from taskrunner.transports.ssm.client import Answer, InstanceClient, Lost
from taskrunner.transports.ssm.request import Pending


class PendingStart:
    """A run that is being started: `post` asks for it, as often as need be, until there is an `answer`."""

    def __init__(
        self, post: Callable[[], Pending], answered: Callable[[], object], whole: bool = False
    ) -> None:
        self.whole = whole
        """Whether the answer comes with the end of the run only."""
        self.post = post
        self.pending = post()
        self.answer: Answer | None = None
        self.cancelled = False
        self._answered = answered

    def keep(self, answer: Answer) -> Answer:
        """Note the answer: the run may be read from its beginning more than once."""
        self.answer = answer._replace(frames=list(answer.frames))
        self._answered()
        return self.answer


class Follower:
    """One pass over a run, from its `beginning` where that is under way."""

    def __init__(
        self,
        client: InstanceClient,
        run: str,
        output: str,
        mode: str,
        who: str,
        patience: float,
        beginning: PendingStart | None,
    ) -> None:
        self.client, self.run, self.output, self.who = client, run, output, who
        self.mode = mode
        self.end_status: str | None = None
        self._beginning = beginning
        self._patience = patience
        self._at = Cursor()
        self._lost = 0.0
        self._news = time.monotonic()
        self._warned = False

    def chunks(self, wait: bool) -> Iterator[Chunk | None]:
        """What is new, as it comes, and None in between."""
        while True:
            try:
                answer = yield from self._answer(wait)
                yield from self._back()
                for message, data in answer.frames:
                    yield from self._chunk(message, data)
            except Lost as error:
                yield from self._away(error)
                wake = time.monotonic() + pacing.RETRY_S
                while time.monotonic() < wake:
                    yield None
                    time.sleep(0.05)
                continue
            reply = answer.message["ok"]
            if reply.get("never"):
                raise NeverRanError(f"run {self.run} was cancelled before it reached the node")
            self._at = Cursor(*reply["at"])
            if self.client.ungranted and not self._warned:
                self._warned = True
                said = f"{self.client.name} cannot upload output to the bucket ({self.client.ungranted})"
                yield self._event("warning", message=f"{said}; it comes through Run Command, which is slow")
            if reply["over"]:
                self.end_status = reply["said"]
                return
            if not wait and not reply["more"]:
                return

    def _begun(self, beginning: PendingStart) -> Generator[Chunk | None, None, Answer]:
        pending = beginning.pending
        if pending.done.is_set() and pending.error is not None:
            if beginning.cancelled and not pending.running:
                raise NeverRanError(f"run {self.run} was cancelled before it was delivered")
            beginning.pending = beginning.post()
        return beginning.keep((yield from self._waited(beginning.pending, beginning.post, 0.0)))

    def _answer(self, wait: bool) -> Generator[Chunk | None, None, Answer]:
        beginning = self._beginning if self._at == Cursor() else None
        if beginning is not None and beginning.whole:
            while not (beginning.pending.running or beginning.pending.done.is_set()):
                yield None
                time.sleep(0.05)
            if isinstance(beginning.pending.error, NeverRanError):
                raise beginning.pending.error
        elif beginning is not None:
            answer = beginning.answer or (yield from self._begun(beginning))
            self._beginning = None  # it has said all that it will, even if nothing had happened yet
            return answer
        dispatcher, instance = self.client.dispatcher, self.client.instance
        dispatcher.followed.add(instance)
        several = len(dispatcher.followed) > 1
        seconds = pacing.news_wait(time.time(), several) if wait else 0.0
        ends = time.time() + seconds
        ships = wait and self.mode == "s3" and not self.client.ungranted
        fields = {
            "run": self.run,
            "output": self.output,
            "at": self._at,
            "wait": round(seconds, 1),
            "who": self.who,
            "pace": pacing.SEGMENT_S if ships else 0.0,
            "expected": beginning is not None,
            "until": round(ends + self.client.skew, 1),
        }

        joins = pacing.join_window(time.monotonic() - self._news)

        def post() -> Pending:
            return self.client.post(
                "follow",
                fields,
                grant=self.mode != "poll",
                timeout=pacing.REQUEST_TIMEOUT_S + int(pacing.LONG_POLL_S),
                since=self._news,
                ends=ends if several and wait else 0.0,
                joins=joins if several else 0.0,
            )

        pending = post()
        try:
            if ships:
                pending.late = pacing.POLL_STREAMED_S
                yield from self._shipped(pending)
            return (yield from self._waited(pending, post, seconds + pacing.NO_ANSWER_S))
        finally:
            dispatcher.followed.discard(instance)

    def _shipped(self, pending: Pending) -> Iterator[Chunk | None]:
        """What a node puts into the bucket, until it has answered."""
        bucket = self.client.bucket
        assert bucket is not None
        pause, wake = pacing.LIST_MIN_S, 0.0
        while not pending.done.is_set():
            if time.monotonic() < wake:
                yield None
                time.sleep(0.05)
                continue
            try:
                there = bucket.listed(pending.request.key, pending.segments)
                for segment in bucket.segments(pending.request.key, pending.segments, there):
                    for message, data in replies.messages(self.client.name, segment):
                        yield from self._chunk(message, data)
                    pending.segments += 1
                    pause = pacing.LIST_MIN_S
                yield from self._back()
            except TargetError as error:
                yield from self._away(error)
            pause = pacing.list_pause(pause)
            wake = time.monotonic() + pause

    def _chunk(self, message: dict[str, Any], data: bytes) -> Iterator[Chunk]:
        if "log" in message:
            self._news = time.monotonic()
            chunk = replies.chunk(self.client.name, message, data)
            self._at = chunk.position
            yield chunk

    def _waited(
        self, pending: Pending, post: Callable[[], Pending], patience: float
    ) -> Generator[Chunk | None, None, Answer]:
        """An answer; Lost when it does not come in its time."""
        began = time.monotonic()
        troubled = 0.0
        waiting = self.client.wait(post, pending)
        while True:
            try:
                next(waiting)
            except StopIteration as stop:
                answer: Answer = stop.value
                return answer
            yield None
            if pending.trouble is None:
                if troubled:
                    yield from self._back()
                troubled = 0.0
                if patience and time.monotonic() - began > patience:
                    self.client.dispatcher.cancel(pending)
                    raise Lost(f"{self.client.name}: no response from its agent")
                continue
            troubled = troubled or time.monotonic()
            if time.monotonic() - troubled > pacing.TELL_AFTER_S:
                try:
                    yield from self._away(pending.trouble)
                except TargetError:
                    self.client.dispatcher.cancel(pending)
                    raise

    def _away(self, error: TargetError) -> Iterator[Chunk]:
        """Tell once that the node is not heard of. Raises TargetError when that lasts too long."""
        now = time.monotonic()
        if not self._lost:
            self._lost = now
            yield self._event("connection", state="lost", detail=str(error))
        if now - self._lost > self._patience:
            hint = "what was started there may still be running; the same command attaches to it"
            raise TargetError(
                f"{self.client.name}: lost, and not reconnected within {self._patience:g} s: {error}",
                "\n".join(filter(None, (error.hint, hint))),
            ) from error

    def _back(self) -> Iterator[Chunk]:
        if self._lost:
            self._lost = 0.0
            yield self._event("connection", state="back", detail=f"{self.client.name}: responds again")

    def _event(self, kind: str, **about: Any) -> Chunk:
        event = {"type": kind, "time": round(time.time() + self.client.skew, 3), **about}
        return Chunk("", json.dumps(event).encode() + b"\n", self._at)
