"""One run on each of many nodes at once, and what becomes of it, as one stream of events."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from taskrunner import log
from taskrunner.errors import LockHeldError, NeverRanError, TargetError, TaskrunnerError
from taskrunner.fleet.nodes import Node
from taskrunner.runs import Run
from taskrunner.transports import Transport

if TYPE_CHECKING:
    from taskrunner.events import Event, NodeEvent, NodeFinished

CONNECTING = 64
"""Connections that are made at one time: each handshake is work, and hosts give up on slow ones."""
AHEAD = 256
"""Events that may wait to be shown: who shows them slowly slows down the nodes' reading, not memory."""

WHOLE = 1 << 20
"""Bytes of a failed step's output that are brought here; the rest stays on the node."""

Status = Literal["ok", "failed", "cancelled", "unreachable", "locked", "skipped"]
EXITS: dict[str, int] = {"unreachable": 3, "failed": 1, "locked": 4, "cancelled": 130, "skipped": 1}
"""The exit status of each, the gravest first: that of the fleet is its gravest node's."""


Begin = Callable[[Transport, Callable[[Run], object]], Run]
"""Begins, or finds, a run; what it is given is to be called several times a second until the run is there."""


class Work(NamedTuple):
    """What is to be done on a node: how it is reached, and how the run begins there."""

    node: Node
    reach: Callable[[], Transport]
    begin: Begin


class Fleet:
    """Runs under way on nodes.

    `max_parallel` (0: no limit) nodes are at work at a time; with `serial`, so many are begun and
    brought to their end before the next. With `fail_fast`, the first failure asks the others to stop
    and no further node is begun. `output` is as for Run.events.
    """

    def __init__(
        self,
        work: Sequence[Work],
        *,
        max_parallel: int = 0,
        serial: int = 0,
        fail_fast: bool = False,
        output: bool | Literal["last"] = False,
    ) -> None:
        self.statuses: dict[str, str] = {}
        self._work = list(work)
        self._batch = serial or len(self._work)
        self._slots = threading.Semaphore(max_parallel or max(1, len(self._work)))
        self._connecting = threading.Semaphore(CONNECTING)
        self._fail_fast = fail_fast
        self._output = output
        self._events: queue.Queue[tuple[str, Any]] = queue.Queue(AHEAD)
        self._stopping = threading.Event()
        self._left = threading.Event()

    @property
    def exit(self) -> int:
        """The exit status for all: 0 when every node is done."""
        return next((code for status, code in EXITS.items() if status in self.statuses.values()), 0)

    def cancel(self) -> None:
        """Ask every run to stop, and begin no other."""
        self._stopping.set()

    def leave(self) -> None:
        """Stop following. The runs go on."""
        self._left.set()

    def events(self, idle: Callable[[], object] = lambda: None) -> Iterator[tuple[str, Event | NodeEvent]]:
        """The events of all nodes, each with its node's name, until every node has ended.

        `idle` is called several times a second.
        """
        try:
            for first in range(0, len(self._work), self._batch):
                batch = self._work[first : first + self._batch]
                for work in batch:
                    threading.Thread(target=self._one, args=(work,), daemon=True).start()
                left = len(batch)
                while left:
                    idle()
                    try:
                        name, event = self._events.get(timeout=0.1)
                    except queue.Empty:
                        continue
                    if event["type"] == "node.finished":
                        left -= 1
                        self.statuses[name] = event["status"]
                        if self._fail_fast and event["status"] not in ("ok", "skipped"):
                            self.cancel()
                    yield name, event
        finally:
            self.leave()

    def _one(self, work: Work) -> None:
        name = work.node.name
        began = time.monotonic()
        log.debug("node.started", node=name)
        ended: NodeFinished = {
            "type": "node.finished",
            "time": 0.0,
            "status": "skipped",
            "exit": 1,
            "run": "",
            "duration": 0.0,
            "ok": 0,
            "skipped": 0,
            "failed": 0,
            "message": "",
            "hint": "",
            "output": "",
        }
        with self._slots:
            if not self._stopping.is_set():
                try:
                    self._run(work, ended)
                except _Left:
                    return
                except TaskrunnerError as error:
                    status: Status = "failed"
                    if isinstance(error, NeverRanError):
                        status = "cancelled"
                    elif isinstance(error, TargetError):
                        status = "unreachable"
                    elif isinstance(error, LockHeldError):
                        status = "locked"
                    message = str(error).removeprefix(f"{name}: ")
                    ended["status"], ended["exit"] = status, error.exit_status
                    ended["message"], ended["hint"] = message, error.hint
                except Exception as error:
                    said = f"internal error: {type(error).__name__}: {error}"
                    ended["status"], ended["message"] = "failed", said
        ended["time"], ended["duration"] = round(time.time(), 3), round(time.monotonic() - began, 3)
        log.info("node.finished", node=name, status=ended["status"], seconds=ended["duration"])
        self._put(name, ended)

    def _run(self, work: Work, ended: NodeFinished) -> None:
        name = work.node.name
        self._put(name, {"type": "node.started", "time": round(time.time(), 3)})
        transport = work.reach()
        try:
            with self._connecting:
                transport.open()
            cancelled = False

            def idle(run: Run) -> None:
                nonlocal cancelled
                if self._left.is_set():
                    raise _Left
                if self._stopping.is_set() and not cancelled:
                    cancelled = run.cancel()

            with work.begin(transport, idle) as run:
                ended["run"] = run.id
                for event in run.events(output=self._output, idle=lambda: idle(run)):
                    self._put(name, event)
                    if event["type"] == "run.finished":
                        for key in ("status", "exit", "ok", "skipped", "failed"):
                            ended[key] = event[key]
                    elif event["type"] == "step.finished" and event["status"] == "failed":
                        ended["output"] += run.log(event["step"], WHOLE).decode("utf-8", "replace")
        finally:
            transport.close()

    def _put(self, name: str, event: Any) -> None:
        while not self._left.is_set():
            try:
                self._events.put((name, event), timeout=0.2)
                return
            except queue.Full:
                continue


class _Left(Exception):
    """Nobody follows any more."""
