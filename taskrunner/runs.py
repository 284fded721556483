"""Runs as objects: start one, follow its events, attach to one, ask for its end."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

from taskrunner.engine.node.frames import PIECE
from taskrunner.engine.store import follow, paths
from taskrunner.engine.store.events import parse_event
from taskrunner.errors import EngineDiedError, LockHeldError, NotFoundError, StateError, closest
from taskrunner.transports import Transport
from taskrunner.transports.local import LocalTransport

if TYPE_CHECKING:
    from taskrunner.engine.plan import Plan
    from taskrunner.events import Event, Status, StepFinished, StepSkipped, StepStarted

LONGEST = 256 << 10
"""Bytes of an event that is not of the run as a whole."""
SKEW = 2.0
"""Seconds by which a node's clock may be off before its events are put right."""

NO_PLAN = cast("Plan", {"steps": []})
"""Stands for a plan that the target does not have any more."""


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
        self.collects = True
        """Whether following it brings here what its steps are to bring back."""
        self.plan: Plan | None = None
        """Its plan as it was made here; None for a run that was found on the target."""
        self._told: Plan | None = None
        self._indices: dict[str, int] | None = None
        self._ended: set[str] = set()

    def events(
        self, *, output: bool | Literal["last"] = False, idle: Callable[[], object] = lambda: None
    ) -> Iterator[Event]:
        """The events so far, then those to come, until the run ends.

        With `output`, what the steps print comes, too, as events of type `output`; all that a step
        printed comes before the event of its end. With "last", of a flood only the end comes. What a
        step is to bring back from a node is here when its end is told. `idle` is called several times
        a second, also while nothing happens. Raises EngineDiedError when the engine was lost;
        StateError, TargetError.
        """
        last = ""
        for event in self._read(output, True, idle):
            last = event["type"]
            if self.collects and event["type"] in ("step.finished", "step.skipped"):
                yield from self._collect(event)
            yield event
        if last not in ("run.finished", "run.refused"):
            raise self._lost()

    def so_far(self, *, output: bool = False) -> Iterator[Event]:
        """The events up to now, without waiting for more."""
        return self._read(output, False, lambda: None)

    def _read(self, output: bool | str, wait: bool, idle: Callable[[], object]) -> Iterator[Event]:
        step: StepStarted | None = None
        self._ended.clear()
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        wanted = output if isinstance(output, str) else follow.ALL if output else follow.NONE
        for chunk in self.transport.follow(self.id, output=wanted, wait=wait):
            idle()
            if chunk is None:
                continue
            if chunk.log:
                text = decoder.decode(chunk.data)
                if text and step is not None:
                    yield _output(step, text)
                continue
            event = self._event(chunk.data)
            if event is None:
                continue
            if event["type"] in ("step.started", "step.finished", "step.skipped"):
                text = decoder.decode(b"", final=True)
                if text and step is not None:
                    yield _output(step, text)
                step = event if event["type"] == "step.started" else None
            yield self._in_our_time(event)

    def _event(self, line: bytes) -> Event | None:
        """The event of a line; None for what is none, or cannot be one of this run: what is kept of a run
        here is not for the target to decide.
        """
        event = parse_event(line)
        if event is None or not self.transport.name:
            return cast("Event | None", event)
        if not event["type"].startswith("run.") and len(line) > LONGEST:
            return None
        step = event.get("step")
        if step is not None:
            steps = self._steps()
            if step not in steps or event.get("index", steps[step]) != steps[step]:
                return None
        if event["type"] in ("step.finished", "step.skipped"):
            if step in self._ended:
                return None
            self._ended.add(event["step"])
        return cast("Event", event)

    def _steps(self) -> dict[str, int]:
        """The steps' ids with their indices."""
        if self._indices is None:
            self._indices = {step["id"]: step["index"] for step in self._known_plan()["steps"]}
        return self._indices

    def _in_our_time(self, event: Event) -> Event:
        """The event as if the node's clock were right, where it is clearly not."""
        if abs(self.transport.skew) > SKEW:
            event["time"] = round(event["time"] - self.transport.skew, 3)
        return event

    def _collect(self, event: StepFinished | StepSkipped) -> Iterator[Event]:
        """Bring back the outputs of a step; also of one that an earlier run has done, if need be."""
        if not self.transport.name:
            return  # the engine has put them where they are wanted
        run = self.id if event["type"] == "step.finished" else event.get("run", "")
        if not run or (event["type"] == "step.finished" and event["status"] != "ok"):
            return
        plan = self._known_plan()
        step = next((step for step in plan["steps"] if step["id"] == event["step"]), None)
        if step is None or not step.get("outputs"):
            return
        mine = run == self.id and not self.attached
        source = plan if mine else self.transport.plan(run)
        if source is None:
            message = (
                f"its outputs are no longer on the node, which has removed run {run};"
                f" --only {event['step']} recreates them"
            )
        else:
            try:
                return self.transport.collect(plan, step["index"], source)
            except StateError as error:
                if self.plan is not None:
                    raise
                message = ": ".join(filter(None, (str(error), error.hint)))
        yield {
            "type": "warning",
            "time": round(time.time(), 3),
            "step": event["step"],
            "message": f"{event['step']}: {message}",
        }

    def _known_plan(self) -> Plan:
        if self.plan is not None:
            return self.plan
        if self._told is None:
            self._told = self.transport.plan(self.id) or NO_PLAN
        return self._told

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
                    self.id,
                    event["status"],
                    event["exit"],
                    event["duration"],
                    event["ok"],
                    event["skipped"],
                    event["failed"],
                    tuple(failures),
                )
        raise self._lost()

    def cancel(self) -> bool:
        """Ask it to stop: the step's processes end, clean-up steps run. False when it has ended."""
        return self.transport.cancel(self.id)

    def alive(self) -> bool:
        """Whether the engine is at work."""
        return self.transport.alive(self.id)

    def log(self, step: str, limit: int = 0) -> bytes:
        """All that a step has printed so far, or the last `limit` bytes of it.

        Raises NotFoundError for an unknown step.
        """
        return b"".join(self.printed(step, limit))

    def printed(self, step: str, limit: int = 0) -> Iterator[bytes]:
        """The same in pieces: of a long log not all is kept in memory."""
        name, offset = paths.log_path("", self.index(step), step), -limit
        while piece := self.transport.read(self.id, name, offset, PIECE):
            yield piece
            offset += len(piece)
            if len(piece) < PIECE or (limit and offset >= 0):
                return

    def index(self, step: str) -> int:
        """The index of a step, from 0. Raises NotFoundError for an unknown one."""
        steps = self._steps()
        if step not in steps:
            hint = closest(step, steps) or "the steps are " + ", ".join(list(steps)[:20])
            raise NotFoundError(f"run {self.id} has no step {step!r}", hint)
        return steps[step]

    def close(self) -> None:
        """Stop following. The run goes on."""
        self.transport.leave(self.id)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lost(self) -> EngineDiedError:
        words = self.transport.last_words(self.id) or "its engine was killed, or the machine went down"
        return EngineDiedError(
            f"run {self.id} was interrupted: {words}",
            "run the same command again: it resumes after the last step that finished",
        )


def _output(step: StepStarted, text: str) -> Event:
    return {"type": "output", "time": time.time(), "step": step["step"], "index": step["index"], "text": text}


def new_id() -> str:
    """A run id: the time (UTC) to the microsecond, readable and sortable."""
    now = time.time()
    return time.strftime("%Y%m%d-%H%M%S-", time.gmtime(now)) + f"{int(now % 1 * 1e6):06d}"


def launch(
    plan: Plan,
    transport: Transport | None = None,
    *,
    id: str = "",
    idle: Callable[[Run], object] = lambda _: None,
) -> Run:
    """Start a plan, or attach to the run that does the same already and that nobody follows.

    `idle` is called several times a second until the run has begun. Raises LockHeldError when another
    run of the task file is under way; StateError, TargetError, EngineDiedError.
    """
    transport = transport or LocalTransport()
    run = Run(id or new_id(), transport)
    run.plan = transport.start(run.id, {**plan, "run": run.id})
    for event in run.events(idle=lambda: idle(run)):
        if event["type"] == "run.refused":
            return _instead(run, plan, event["holder"])
        if event["type"] == "run.started":
            break
    return run


def _instead(refused: Run, plan: Plan, holder: str) -> Run:
    """The run that holds the lock, if it is one to attach to."""
    transport = refused.transport
    transport.discard(refused.id)
    if not holder:
        raise LockHeldError(
            "", f"{plan['file']} is already being run, by a run that is just starting", "try again"
        )
    theirs = transport.plan(holder)
    same = bool(theirs and theirs["fingerprint"] == plan["fingerprint"])
    if same and not transport.followed(holder):
        transport.join(holder)
        other = Run(holder, transport, attached=True)
        other.plan = refused.plan  # it says the same, and was made here
        return other
    why = (
        "with other steps or variables"
        if theirs and theirs["fingerprint"] != plan["fingerprint"]
        else "and another client follows it"
    )
    raise LockHeldError(
        holder,
        f"{plan['file']} is already being run, by run {holder}, {why}",
        f"`taskrunner attach {holder}` shows it, `taskrunner cancel {holder}` stops it",
    )


def attach(run: str, transport: Transport | None = None) -> Run:
    """A run by its id (or its beginning, or "last"). Raises NotFoundError."""
    transport = transport or LocalTransport()
    names = transport.runs()
    matching = names[:1] if run == "last" else [name for name in names if name.startswith(run)]
    if run in names:
        matching = [run]
    if len(matching) != 1:
        hint = closest(run, names) or "`taskrunner history` lists the runs"
        what = "several runs start with" if matching else "no such run:"
        raise NotFoundError(f"{what} {run!r}", hint)
    transport.join(matching[0])
    return Run(matching[0], transport, attached=True)
