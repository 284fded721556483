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
        self._ended: dict[int, int] = {}
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

    def reap(self) -> None:
        """Collect every child that has ended."""
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                self._ended[pid] = status
        except ChildProcessError:
            pass

    def ended(self, pid: int) -> int | None:
        """The exit status of a child that has ended, 128 + N for signal N; None while it lives."""
        self.reap()
        status = self._ended.pop(pid, None)
        if status is None:
            return None
        if os.WIFSIGNALED(status):
            return 128 + os.WTERMSIG(status)
        return os.WEXITSTATUS(status)
