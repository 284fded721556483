"""What is asked of an instance, and what becomes of it."""

from __future__ import annotations

import threading
import time
import uuid
from typing import Any

from taskrunner.errors import TargetError
from taskrunner.transports.ssm.pacing import POLL_MAX_S


class Request:
    """A request on its way to an instance. `done` is set when `output` or `error` is there.

    `trouble` is what keeps it from being sent or looked at just now. `running` is true once the node has it.
    """

    def __init__(self, instance: str, python: str, shared: dict[str, Any], own: dict[str, Any], timeout: int):
        self.instance, self.python, self.shared = instance, python, shared
        self.token = uuid.uuid4().hex
        self.own = {**own, "token": self.token}
        self.timeout = timeout
        """Seconds that it may take on the node."""
        self.delivery = 600
        """Seconds in which it must be delivered, or never."""
        self.ends = 0.0
        """The time at which the node answers at the latest, where that is known: the clock's."""
        self.since = 0.0
        """Since when there is no news of it, so that it need not be polled so often."""
        self.joins = 0.0
        """Seconds in which others may join it, more than BATCH_WINDOW_S."""
        self.due = 0.0
        self.command = ""
        self.sent = 0.0
        self.began = time.time()
        self.running = False
        self.cancelled = False
        self.late = POLL_MAX_S
        """Seconds between two polls at most."""
        self.fanned = False
        """Whether AWS goes from one instance to the next with it: it may get to this one late, or never."""
        self.segments = 0
        """Segments of the answer that were read already."""
        self.output = b""
        self.error: TargetError | None = None
        self.status = ""
        self.said = ""
        self.trouble: TargetError | None = None
        self.done = threading.Event()

    @property
    def key(self) -> str:
        """What its answer is known by in a bucket."""
        return f"{self.token}-{self.instance}"

    def end(self, output: bytes = b"", error: TargetError | None = None) -> None:
        self.output, self.error, self.trouble = output, error, None
        self.done.set()
