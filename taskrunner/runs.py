"""Runs as objects: start one, follow its events, attach to one, ask for its end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from taskrunner.engine import layout
from taskrunner.engine.events import parse
from taskrunner.errors import EngineDiedError, LockHeldError, NotFoundError, closest
from taskrunner.model.compile import Plan
from taskrunner.transports import Transport
from taskrunner.transports.local import LocalTransport

if TYPE_CHECKING:
    from taskrunner.events import Event, Status, StepFinished

POLL = 0.05
"""Seconds between two looks at a run that has no bell, and at a step's output."""
PACE = 0.01
"""Seconds at least between two looks: what reads every event at once slows down who writes them."""
SILENCE = 1.0
"""Seconds without news after which the engine is asked for."""


class Result(NamedTuple):
    """How a run ended: `exit` is the exit status, `duration` in seconds, the rest count steps."""

    run: str
    status: Status
    exit: int
    duration: float
    ok: int
    skipped: int
    failed: int
    failures: tuple[StepFinished, ...]


class Run:
    """A run, under way or ended. Its events can be read from the beginning any number of times."""

    def __init__(self, id: str, transport: Transport, attached: bool = False) -> None:
        self.id = id
        self.transport = transport
        self.attached = attached

    def events(self, *, output: bool = False) -> Iterator[Event]:
        """The events so far, then those to come, until the run ends.

        With `output`, what the steps print comes, too, as events of type `output`; all that a step
        printed comes before the event of its end. Raises EngineDiedError when the engine was lost;
        StateError, TargetError.
        """
        follower = _Follower(self, output)
        quiet_since = time.monotonic()
        while True:
            news = False
            for event in follower.read():
                news = True
                yield event
                if event["type"] in ("run.finished", "run.refused"):
                    return
            if news:
                quiet_since = time.monotonic()
                time.sleep(PACE)
            elif time.monotonic() - quiet_since > SILENCE or self.transport.last_words(self.id) is not None:
                if not self.transport.alive(self.id) and not follower.unread():
                    raise self._lost()
                quiet_since = time.monotonic()
            self.transport.wait(self.id, POLL if output else POLL * 4)

    def so_far(self, *, output: bool = False) -> Iterator[Event]:
        """The events up to now, without waiting for more."""
        yield from _Follower(self, output).read()

    def result(self, on_event: Callable[[Event], object] | None = None) -> Result:
        """Wait for the end. Raises EngineDiedError, StateError, TargetError."""
        failures: list[StepFinished] = []
        for event in self.events():
            if on_event is not None:
                on_event(event)
            if event["type"] == "step.finished" and event["status"] == "failed":
                failures.append(event)
            if event["type"] == "run.finished":
                return Result(
                    self.id, event["status"], event["exit"], event["duration"], event["ok"],
                    event["skipped"], event["failed"], tuple(failures),
                )  # fmt: skip
        raise self._lost()

    def cancel(self) -> bool:
        """Ask it to stop: the step's processes end, clean-up steps run. False when it has ended."""
        return self.transport.cancel(self.id)

    def alive(self) -> bool:
        """Whether the engine is at work."""
        return self.transport.alive(self.id)

    def log(self, step: str) -> bytes:
        """All that a step has printed so far. Raises NotFoundError for an unknown step."""
        plan = self.transport.plan(self.id) or {"steps": []}
        index = {item["id"]: item["index"] for item in plan["steps"]}
        if step not in index:
            hint = closest(step, index) or "the steps are " + ", ".join(list(index)[:20])
            raise NotFoundError(f"run {self.id} has no step {step!r}", hint)
        return self.transport.read(self.id, _log_name(index[step], step), 0)

    def close(self) -> None:
        """Stop following. The run goes on."""
        self.transport.unfollow(self.id)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lost(self) -> EngineDiedError:
        said = self.transport.last_words(self.id)
        if said:
            return EngineDiedError(f"run {self.id} has ended early: {said}")
        return EngineDiedError(
            f"run {self.id} was cut off: its engine was killed, or the machine went down",
            "run the same command again: it goes on after the last step that finished",
        )


class _Follower:
    """Reads the event log and the steps' logs, each from where it was."""

    def __init__(self, run: Run, output: bool) -> None:
        self._run = run
        self._output = output
        self._offset = 0
        self._rest = b""
        self._step: dict[str, Any] | None = None
        self._log_offset = 0

    def read(self) -> Iterator[Event]:
        """What is new, in order."""
        data = self._read_log_of_events()
        for line in data:
            event = parse(line)
            if event is None:
                continue
            if event["type"] in ("step.finished", "step.skipped") or (
                event["type"] == "step.started" and self._step
            ):
                yield from self._printed()
                self._step = None
            if event["type"] == "step.started" and self._output:
                self._step, self._log_offset = event, 0
            yield cast("Event", event)
        yield from self._printed()

    def unread(self) -> bool:
        return bool(self._run.transport.read(self._run.id, layout.EVENTS, self._offset, 1))

    def _read_log_of_events(self) -> list[bytes]:
        data = self._run.transport.read(self._run.id, layout.EVENTS, self._offset)
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return lines

    def _printed(self) -> Iterator[Event]:
        while self._step is not None:
            name = _log_name(self._step["index"], self._step["step"])
            data = self._run.transport.read(self._run.id, name, self._log_offset, 1 << 20)
            # A character that is cut by the end of what is there stays for the next time.
            whole = data[: len(data) - _partial(data)] or data
            self._log_offset += len(whole)
            if not whole:
                return
            yield {
                "type": "output",
                "time": time.time(),
                "step": self._step["step"],
                "index": self._step["index"],
                "text": whole.decode("utf-8", "replace"),
            }


def _log_name(index: int, step: str) -> str:
    return os.path.relpath(layout.log_path("/", index, step), "/")


def _partial(data: bytes) -> int:
    """How many bytes at the end are the beginning of a UTF-8 character."""
    for length in range(1, min(4, len(data)) + 1):
        byte = data[-length]
        if byte >= 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return length if length < needed else 0
        if byte < 0x80:
            return 0
    return 0


def new_id() -> str:
    """A run id: the time (UTC) to the microsecond, readable and sortable."""
    now = time.time()
    return time.strftime("%Y%m%d-%H%M%S-", time.gmtime(now)) + f"{int(now % 1 * 1e6):06d}"


def launch(plan: Plan, transport: Transport | None = None) -> Run:
    """Start a plan, or attach to the run that does the same already and that nobody follows.

    Raises LockHeldError when another run of the task file is under way; StateError, TargetError,
    EngineDiedError.
    """
    transport = transport or LocalTransport()
    run = Run(new_id(), transport)
    transport.start(run.id, {**plan, "run": run.id})
    for event in run.events():
        if event["type"] == "run.refused":
            return _instead(run, plan, event["holder"])
        break
    return run


def _instead(refused: Run, plan: Plan, holder: str) -> Run:
    """The run that holds the lock, if it is one to attach to."""
    transport = refused.transport
    if isinstance(transport, LocalTransport):
        transport.discard(refused.id)
    theirs = transport.plan(holder)
    if theirs and theirs["fingerprint"] == plan["fingerprint"] and not transport.followed(holder):
        transport.follow(holder)
        return Run(holder, transport, attached=True)
    why = "with other steps or variables" if theirs and theirs["fingerprint"] != plan["fingerprint"] \
        else "and somebody follows it"  # fmt: skip
    raise LockHeldError(
        holder,
        f"{plan['file']} is being run already, by run {holder}, {why}",
        f"`taskrunner attach {holder}` shows it, `taskrunner cancel {holder}` stops it",
    )


def attach(run: str, transport: Transport | None = None) -> Run:
    """A run by its id (or its beginning, or "last"). Raises NotFoundError."""
    transport = transport or LocalTransport()
    known = transport.runs()
    found = known[:1] if run == "last" else [name for name in known if name.startswith(run)]
    if run in known:
        found = [run]
    if len(found) != 1:
        hint = closest(run, known) or "`taskrunner history` lists the runs"
        what = "several runs begin with" if found else "there is no run"
        raise NotFoundError(f"{what} {run!r}", hint)
    transport.follow(found[0])
    return Run(found[0], transport, attached=True)
