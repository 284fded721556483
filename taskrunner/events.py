"""The events of a run, as types: each is the JSON object that the engine has written.

`event["type"]` tells which; a type checker narrows on it. `OutputEvent` and `ConnectionChanged` are
made while following: the first is what a step has printed since the last one.
"""

from __future__ import annotations

from typing import Literal, TypedDict

Status = Literal["ok", "failed", "cancelled"]


class _Event(TypedDict):
    time: float


class StepTitle(TypedDict):
    """A step in the list of a run."""

    id: str
    name: str


class _Command(TypedDict):
    source: str
    line: int


class FailedCommand(_Command, total=False):
    """A command as it is written in the file, and its line there; `file`: in this one, which is included."""

    file: str


class _RunStarted(_Event, total=False):
    previous: str


class RunStarted(_RunStarted):
    """The engine has the lock and begins. `previous`: the interrupted run that it goes on from."""

    type: Literal["run.started"]
    run: str
    name: str
    file: str
    pid: int
    steps: list[StepTitle]


class RunRefused(_Event):
    """Another run of the same task file holds the lock."""

    type: Literal["run.refused"]
    holder: str


class _StepStarted(_Event, total=False):
    name: str
    adopted: str
    because: str


class StepStarted(_StepStarted):
    """A step begins; `adopted`: its process is still at work from that earlier run; `because`: it was
    done before, but this step before it has run since.
    """

    type: Literal["step.started"]
    step: str
    index: int
    attempt: int


class StepRunning(_Event):
    """The guard of a step that takes a while does not hold: its commands run."""

    type: Literal["step.running"]
    step: str
    index: int


Reason = Literal["", "guard", "journal", "files", "service", "when", "from", "until", "only"]


class _StepPlanned(_Event, total=False):
    detail: str
    because: str


class StepPlanned(_StepPlanned):
    """What a dry run expects of a step: `reason` is why it would be skipped, "" when it would run;
    `because`: it was done before, but this step before it would run.
    """

    type: Literal["step.planned"]
    step: str
    index: int
    reason: Reason


class _StepSkipped(_Event, total=False):
    detail: str
    run: str


class StepSkipped(_StepSkipped):
    """A step is not run, and why; `run`: the one that has done it, for the reason `journal`."""

    type: Literal["step.skipped"]
    step: str
    index: int
    reason: Reason


class StepRetrying(_Event):
    """An attempt failed; the next one follows after `delay` seconds."""

    type: Literal["step.retrying"]
    step: str
    index: int
    attempt: int
    attempts: int
    delay: float
    detail: str


class _StepFinished(_Event, total=False):
    cause: str
    detail: str
    exit: int
    command: FailedCommand
    tail: list[str]
    tolerated: bool
    later: bool


class StepFinished(_StepFinished):
    """A step has ended; `duration` in seconds. A failure has its cause and the end of its output;
    `later`: the run had failed or was cancelled before.
    """

    type: Literal["step.finished"]
    step: str
    index: int
    status: Status
    duration: float


class ServiceChanged(_Event):
    """A service is in a new state."""

    type: Literal["service"]
    step: str
    name: str
    state: Literal["starting", "ready", "kept", "stopping", "stopped", "ended"]
    pid: int


Waiting = TypedDict("Waiting", {"type": Literal["waiting"], "time": float, "step": str, "for": str})


class _Warning(_Event, total=False):
    step: str


class Warned(_Warning):
    """Something is not as it should be, but the run goes on."""

    type: Literal["warning"]
    message: str


class StepAgain(TypedDict):
    """A step that would run a second time."""

    step: str
    detail: str


class CheckFinished(_Event):
    """The guards were evaluated again after the run (`--check`)."""

    type: Literal["check.finished"]
    again: list[StepAgain]


class RunFinished(_Event):
    """The end: `exit` is the exit status, `duration` in seconds, the rest are counts of steps."""

    type: Literal["run.finished"]
    status: Status
    exit: int
    duration: float
    ok: int
    skipped: int
    failed: int
    failures: list[str]


class OutputEvent(_Event):
    """What a step has printed since the last event, undecodable bytes replaced."""

    type: Literal["output"]
    step: str
    index: int
    text: str


class ConnectionChanged(_Event):
    """The connection to the node was lost, or is back; the run goes on there meanwhile."""

    type: Literal["connection"]
    state: Literal["lost", "back"]
    detail: str


class NodeStarted(_Event):
    """A node's turn has come."""

    type: Literal["node.started"]


class NodeFinished(_Event):
    """A node is done: how its run ended, or why there was none. `output`: of the steps that failed."""

    type: Literal["node.finished"]
    status: Literal["ok", "failed", "cancelled", "unreachable", "locked", "skipped"]
    exit: int
    run: str
    duration: float
    ok: int
    skipped: int
    failed: int
    message: str
    hint: str
    output: str


NodeEvent = NodeStarted | NodeFinished

Event = (
    RunStarted
    | RunRefused
    | StepStarted
    | StepRunning
    | StepPlanned
    | StepSkipped
    | StepRetrying
    | StepFinished
    | ServiceChanged
    | Waiting
    | Warned
    | CheckFinished
    | RunFinished
    | OutputEvent
    | ConnectionChanged
)
