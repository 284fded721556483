"""Who waits here for news: a command that waits takes one of the few that a node runs at a time.

Run Command runs five commands at once on a machine. Two may wait here, so that others, ours and those
of people, get their turn; who came first leaves first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time

from ..store import fileio, identity, lock

SLOTS = 2
POLL_S = 0.5
"""Seconds between two polls of the other requests that wait."""


class WaitSlot:
    """A place to wait, until `wanted` by a later one: of the same controller, or when there are too many."""

    def __init__(self, root: str, who: str) -> None:
        self._folder = os.path.join(root, "seats", identity.machine())
        self._name = "%020d-%d-%s" % (time.time_ns(), os.getpid(), who)
        self._who = who
        self._looked = 0.0

    def __enter__(self) -> WaitSlot:
        fileio.private_folder(self._folder)
        path = os.path.join(self._folder, self._name)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self._folder, self._name))
        os.close(self._fd)

    def wanted(self) -> bool:
        now = time.monotonic()
        if now - self._looked < POLL_S:
            return False
        self._looked = now
        later = [name for name in os.listdir(self._folder) if name > self._name and self._taken(name)]
        return len(later) >= SLOTS or any(name.endswith("-" + self._who) for name in later)

    def _taken(self, name: str) -> bool:
        """Whether who sat there is still there."""
        path = os.path.join(self._folder, name)
        if lock.held(path):
            return True
        with contextlib.suppress(OSError):
            os.unlink(path)
        return False
