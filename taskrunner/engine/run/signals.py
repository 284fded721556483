"""Signals and children of the engine: one place that waits, so nothing has to poll."""

from __future__ import annotations

import os
import select
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Control:
    """Turns SIGTERM and SIGINT into a request to stop, and SIGCHLD into an end of the wait.

    SIGHUP is heard and means nothing: a run outlives the terminal it was started from.
    """

    def __init__(self) -> None:
        self._requests = 0
        self._answered = 0
        self._released: set[int] = set()
        self._wake, waker = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(waker, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._request)
        for number in (signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, lambda *_: None)

    def _request(self, *_: Any) -> None:
        self._requests += 1

    @property
    def cancelled(self) -> bool:
        """Whether there is a request to stop that has not been answered."""
        return self._requests > self._answered

    def answer(self) -> None:
        """Take note of the requests so far: what runs from here on is the clean-up."""
        self._answered = self._requests

    def pause(self, seconds: float | None) -> None:
        """Wait, at most this long, until a child ends or a signal comes."""
        select.select([self._wake], [], [], None if seconds is None else max(0.0, seconds))
        try:
            while os.read(self._wake, 512):
                pass
        except BlockingIOError:
            pass

    def sleep(self, seconds: float) -> None:
        """Wait this long unless there is a request to stop."""
        deadline = time.monotonic() + seconds
        while not self.cancelled and time.monotonic() < deadline:
            self.pause(deadline - time.monotonic())

    def ended(self, pid: int) -> int | None:
        """How a child has ended: its exit status, -N for signal N; None while it lives.

        It stays a zombie until `release`: what came of it can still be asked by whoever inherits it,
        should this process be killed before that is noted.
        """
        status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if status is None:
            return None
        return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status

    def release(self, pid: int) -> None:
        """Let go of a child whose end is noted, or of no interest."""
        self._released.add(pid)
        self.reap()

    def reap(self) -> None:
        """Collect the released children that have ended."""
        for pid in list(self._released):
            try:
                if os.waitpid(pid, os.WNOHANG)[0] == pid:
                    self._released.discard(pid)
            except ChildProcessError:
                self._released.discard(pid)
