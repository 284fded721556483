"""The engine's side of a connection: what a controller asks for on stdin is answered on stdout.

Messages are those of frames.py. A request has an `id` and what to `do`, with that function's
arguments; its answer has the `id` and `ok` with the value, or `error` with the message (and `errno`,
`path`, where the system has refused something). Between the answers come, for a run that is
followed, its chunks (`feed`, the follower's number; `log`, `at`: see store/follow.py) and its end (`feed`,
`over`: null, or what the engine has said when it was lost); and at least every TICK seconds a `tick`.

Whoever is at the other end says something at least every SILENCE_LIMIT_S seconds. After that, or when stdin
ends, this process ends, and with it what it has joined. The runs do not end: each is a process of
its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import sys
import time

from .. import VERSION
from ..run import launch, plan_file, retention
from ..store import file_sync, paths, runs
from ..store.follow import Cursor, RunReader
from .frames import Unpacker, pack
from .requests import RequestHandler

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..plan import Plan

TICK = 5.0
SILENCE_LIMIT_S = 30.0
POLL_S = 0.05
"""Seconds between two polls of a run that has no bell, and of a step's output."""
HELLO = b"\0taskrunner-engine "
"""The first bytes of this process (see bootstrap.py)."""
AT_ONCE = 4 << 20
"""Bytes of news after which a request gets its turn."""


def main() -> int:
    """Serve until the controller leaves."""
    os.set_blocking(1, False)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        Server(paths.default_root()).serve()
    return 0


class Follower:
    """A run whose news are sent, until its end or, unless `wait`, until there is nothing new."""

    def __init__(self, run: str, feed: RunReader, wait: bool) -> None:
        self.run, self.feed, self.wait = run, feed, wait


class Server(RequestHandler):
    """One connection."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.joined: dict[str, int] = {}
        self.followers: dict[int, Follower] = {}
        self.bells: set[int] = set()
        self.children: dict[int, str] = {}
        self.told = time.monotonic()
        self.asked = 0
        self.receiver = file_sync.Receiver(self.tick)

    def serve(self) -> None:
        hello = {
            "version": VERSION,
            "python": "%d.%d.%d" % sys.version_info[:3],
            "root": self.root,
            "home": os.path.expanduser("~"),
            "time": time.time(),
        }
        _write(HELLO + pack(hello))
        unpacker = Unpacker(trusted=True)
        heard = time.monotonic()
        more = False
        while True:
            pause = 0.0 if more else POLL_S if self.followers else TICK
            ready = select.select([0, *self.bells], [], [], pause)[0]
            now = time.monotonic()
            for bell in ready:
                if bell and not os.read(bell, 65536):
                    os.close(bell)
                    self.bells.discard(bell)
            if 0 in ready:
                data = os.read(0, 1 << 20)
                if not data:
                    return
                if now - heard > 1.0:
                    for run in self.joined:
                        runs.heard(self.root, run)
                heard = now
                for message, payload in unpacker.feed(data):
                    self._asked(message, payload)
            elif now - heard > SILENCE_LIMIT_S:
                return
            self.tick()
            self._reap()
            news = [self._news(number) for number in list(self.followers)]
            more = any(news)

    def _asked(self, message: dict[str, Any], payload: bytes) -> None:
        self.asked = message.pop("id")
        message.pop("size", None)
        answer, data = self.answer(message, *([payload] if payload else []))
        _write(pack({"id": self.asked, **answer}, data))

    def do_start(self, run: str, plan: Plan) -> None:
        """Start a run, once however often it is asked for, and join it."""
        directory = self.prepare(run, plan)
        self.do_join(run)
        bell, ring = os.pipe()
        try:
            pid = launch.launch(directory, ring)
        except OSError:
            os.close(bell)
            plan_file.scrub(directory)
            raise
        finally:
            os.close(ring)
        self.bells.add(bell)
        if pid:
            self.children[pid] = run
        retention.prune(self.root, run)

    def do_prepare(self, run: str, plan: Plan) -> None:
        """Make a run ready that something else starts, and join it."""
        self.prepare(run, plan)
        self.do_join(run)
        retention.prune(self.root, run)

    def do_alive(self, run: str) -> bool:
        # A child of this process is alive from before the engine has written who it is.
        return super().do_alive(run) or (run in self.children.values() and not runs.known(self.root, run))

    def do_followed(self, run: str) -> bool:
        # Who asks here says something just now.
        return run in self.joined or super().do_followed(run)

    def do_join(self, run: str) -> None:
        if run not in self.joined:
            self.joined[run] = runs.join(self.root, run, paths.FOLLOWERS_AWAY)
            runs.heard(self.root, run)

    def do_leave(self, run: str) -> None:
        if run in self.joined:
            os.close(self.joined.pop(run))

    def do_follow(self, feed: int, run: str, output: str, wait: bool, at: list[Any]) -> None:
        """Send what comes after this position."""
        reader = RunReader(paths.run_dir(self.root, run), output, Cursor(*at))
        self.followers[feed] = Follower(run, reader, wait)

    def do_unfollow(self, feed: int) -> None:
        self.followers.pop(feed, None)

    def do_discard(self, run: str) -> None:
        self.do_leave(run)
        super().do_discard(run)

    def do_missing(self, root: str, files: list[dict[str, Any]]) -> list[list[int]]:
        return self.receiver.missing(self.path(root), files)

    def do_receive(self, data: bytes = b"", *, root: str, file: dict[str, Any], offset: int) -> None:
        self.receiver.receive(self.path(root), file, offset, data)

    def do_send(self, path: str, offset: int) -> str:
        """Send a file from this offset on, in pieces that come before the answer: its digest."""
        digest, sent = hashlib.sha256(), 0
        for block in file_sync.blocks(self.path(path)):
            digest.update(block)
            if sent + len(block) > offset:
                _write(pack({"piece": self.asked}, block[max(0, offset - sent) :]))
            else:
                self.tick()
            sent += len(block)
        return digest.hexdigest()

    def _news(self, number: int) -> bool:
        """Send what is new of a run; whether there may be more at once."""
        follower = self.followers[number]
        sent = 0
        for chunk in follower.feed.read():
            _write(pack({"feed": number, "log": chunk.log, "at": chunk.position}, chunk.data))
            sent += len(chunk.data)
            if sent > AT_ONCE:
                return True
        if follower.feed.over or not follower.wait:
            self._over(number, None)
        elif follower.feed.lost(lambda: self.do_alive(follower.run)):
            self._over(number, runs.last_words(self.root, follower.run))
        return False

    def tick(self) -> None:
        """Say that this end is alive; also in the middle of long work."""
        now = time.monotonic()
        if now - self.told >= TICK:
            _write(pack({"tick": now}))
            self.told = now

    def _over(self, number: int, status: str | None) -> None:
        del self.followers[number]
        _write(pack({"feed": number, "over": status}))

    def _reap(self) -> None:
        for pid in list(self.children):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0] == pid:
                    del self.children[pid]


def _write(data: bytes) -> None:
    """Raises BrokenPipeError when nothing is taken for so long that nobody can be there."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(1, view) :]
        except BlockingIOError:
            if not select.select([], [1], [], SILENCE_LIMIT_S)[1]:
                raise BrokenPipeError from None
