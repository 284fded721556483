"""taskrunner: runs JSON task files, step by step, idempotently.

    from taskrunner import run

    result = run("tasks/quickstart.json", env={"PORT": 8765})
    print(result.status, result.ok, result.skipped)

With `on="ssh://user@host"` it runs there.

This module, `taskrunner.events`, `taskrunner.log` and `taskrunner.transports` are public, the others are not.
Everything is imported when it is first used, so that the command starts quickly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskrunner._lazy import lazy
from taskrunner._version import __version__

if TYPE_CHECKING:
    from taskrunner.api import LoadedFile, Options, compile, load, run, start, validate
    from taskrunner.engine.plan import Plan
    from taskrunner.errors import (
        EngineDiedError,
        HostKeyError,
        LockHeldError,
        NeverRanError,
        NotFoundError,
        Problem,
        StateError,
        TargetError,
        TaskFileError,
        TaskrunnerError,
        UsageError,
    )
    from taskrunner.events import Event, NodeEvent, Status, StepFinished
    from taskrunner.fleet.nodes import Node, Nodes, load_nodes
    from taskrunner.fleet.parallel import Fleet
    from taskrunner.fleet.plans import run_on
    from taskrunner.history import RunInfo, past_runs
    from taskrunner.model.models import (
        File,
        LogPattern,
        Metadata,
        Probe,
        Retries,
        Service,
        Task,
        TaskFile,
        Variable,
    )
    from taskrunner.runs import Result, Run, attach
    from taskrunner.transports import NodeTransport, Transport, connect
    from taskrunner.transports.local import LocalTransport
    from taskrunner.transports.slurm.transport import SlurmTransport
    from taskrunner.transports.ssh.transport import SshTransport
    from taskrunner.transports.ssm.transport import SsmTransport

__getattr__ = lazy(
    __name__,
    {
        "taskrunner.api": "LoadedFile Options compile load run start validate",
        "taskrunner.engine.plan": "Plan",
        "taskrunner.errors": "EngineDiedError HostKeyError LockHeldError NeverRanError NotFoundError Problem"
        " StateError TargetError TaskFileError TaskrunnerError UsageError",
        "taskrunner.events": "Event NodeEvent Status StepFinished",
        "taskrunner.fleet.nodes": "Node Nodes load_nodes",
        "taskrunner.fleet.parallel": "Fleet",
        "taskrunner.fleet.plans": "run_on",
        "taskrunner.model.models": "File LogPattern Metadata Probe Retries Service Task TaskFile Variable",
        "taskrunner.history": "RunInfo past_runs",
        "taskrunner.runs": "Result Run attach",
        "taskrunner.transports": "NodeTransport Transport connect",
        "taskrunner.transports.local": "LocalTransport",
        "taskrunner.transports.slurm.transport": "SlurmTransport",
        "taskrunner.transports.ssh.transport": "SshTransport",
        "taskrunner.transports.ssm.transport": "SsmTransport",
    },
)

__all__ = [
    "EngineDiedError",
    "Event",
    "File",
    "Fleet",
    "HostKeyError",
    "LoadedFile",
    "LocalTransport",
    "LockHeldError",
    "LogPattern",
    "Metadata",
    "NeverRanError",
    "Node",
    "NodeEvent",
    "NodeTransport",
    "Nodes",
    "NotFoundError",
    "Options",
    "Plan",
    "Probe",
    "Problem",
    "Result",
    "Retries",
    "Run",
    "RunInfo",
    "Service",
    "SlurmTransport",
    "SshTransport",
    "SsmTransport",
    "StateError",
    "Status",
    "StepFinished",
    "TargetError",
    "Task",
    "TaskFile",
    "TaskFileError",
    "TaskrunnerError",
    "Transport",
    "UsageError",
    "Variable",
    "__version__",
    "attach",
    "compile",
    "connect",
    "load",
    "load_nodes",
    "past_runs",
    "run",
    "run_on",
    "start",
    "validate",
]


def __dir__() -> list[str]:
    return sorted(__all__)
