"""What is asked of an instance, and what becomes of it."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from taskrunner.errors import TargetError
from taskrunner.transports.ssm.pacing import POLL_MAX_S


@dataclass(frozen=True)
class Request:
    """A request to an instance: what goes in a command, and when it may be sent and must be answered."""

    instance: str
    python: str
    shared: Mapping[str, Any]
    """What it has in common with requests to other instances; one command carries it once."""
    own: Mapping[str, Any]
    timeout: int
    """Seconds that it may take on the node."""
    delivery: int = 600
    """Seconds in which it must be delivered, or never."""
    ends: float = 0.0
    """The time at which the node answers at the latest, where that is known: the clock's."""
    since: float = 0.0
    """Since when there is no news of it, so that it need not be polled so often."""
    joins: float = 0.0
    """Seconds in which others may join it, more than BATCH_WINDOW_S."""
    fanned: bool = False
    """Whether AWS goes from one instance to the next with it: it may get to this one late, or never."""
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def key(self) -> str:
        """What its answer is known by in a bucket."""
        return f"{self.token}-{self.instance}"

    @property
    def batch_key(self) -> tuple[object, ...]:
        """Equal for requests that can go in one command."""
        return self.python, self.shared, self.timeout, self.delivery

    @property
    def message(self) -> dict[str, Any]:
        """What this instance alone is told."""
        return {**self.own, "token": self.token}


class Pending:
    """A request on its way. `done` is set when `output` or `error` is there.

    `trouble` is what keeps it from being sent or looked at just now. `running` is true once the node has it.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.due = 0.0
        self.command = ""
        self.sent = 0.0
        self.began = time.time()
        self.running = False
        self.cancelled = False
        self.late = POLL_MAX_S
        """Seconds between two polls at most."""
        self.segments = 0
        """Segments of the answer that were read already."""
        self.output = b""
        self.error: TargetError | None = None
        self.status = ""
        self.printed = ""
        """What the command has printed that ended without an answer."""
        self.trouble: TargetError | None = None
        self.done = threading.Event()

    @property
    def instance(self) -> str:
        return self.request.instance

    def end(self, output: bytes = b"", error: TargetError | None = None) -> None:
        self.output, self.error, self.trouble = output, error, None
        self.done.set()
