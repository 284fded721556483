"""How a target is reached: start a plan there, follow it, signal it.

Transports differ in nothing else; what a run means is the engine's business alone. This module is public: it
has all that a transport of somebody else needs. One is added by an entry point of the group
`taskrunner.transports`: its name is the scheme of its targets, its object a function that takes a target and
the options of `connect`, and returns a Transport.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, cast

from taskrunner._lazy import lazy
from taskrunner.errors import NeverRanError, StateError, TargetError, UsageError, closest

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Unpack

    from taskrunner.engine.plan import Plan
    from taskrunner.engine.store.follow import ALL, LAST, NONE, Chunk, Cursor
    from taskrunner.transports.local import LocalTransport
    from taskrunner.transports.remote import RemoteTransport
    from taskrunner.transports.slurm.transport import SlurmTransport
    from taskrunner.transports.ssh.transport import SshTransport
    from taskrunner.transports.ssm.transport import SsmTransport

__all__ = [
    "ALL",
    "LAST",
    "NONE",
    "Chunk",
    "ConnectOptions",
    "Cursor",
    "LocalTransport",
    "NeverRanError",
    "NodeTransport",
    "Plan",
    "RemoteTransport",
    "SlurmTransport",
    "SshTransport",
    "SsmTransport",
    "StateError",
    "TargetError",
    "Transport",
    "connect",
]

__getattr__ = lazy(
    __name__,
    {
        "taskrunner.engine.plan": "Plan",
        "taskrunner.engine.store.follow": "ALL LAST NONE Chunk Cursor",
        "taskrunner.transports.local": "LocalTransport",
        "taskrunner.transports.remote": "RemoteTransport",
        "taskrunner.transports.slurm.transport": "SlurmTransport",
        "taskrunner.transports.ssh.transport": "SshTransport",
        "taskrunner.transports.ssm.transport": "SsmTransport",
    },
)


class Transport(Protocol):
    """What the rest of taskrunner needs of a target.

    Every method raises TargetError when the target cannot be reached, StateError when its state
    cannot be read or written.
    """

    name: str
    """The target, as it would be asked for; "" is this machine."""

    @property
    def skew(self) -> float:
        """Seconds by which the target's clock is ahead of ours."""

    def open(self) -> object:
        """Reach the target now. Everything else does that, too, when it needs to."""

    def warm(self) -> None:
        """Get ready beside what this thread does; what goes wrong shows with the first use."""

    def close(self) -> None:
        """Leave the target. Runs go on."""

    def start(self, run: str, plan: Plan) -> Plan:
        """Put the plan into a new run directory, start the engine on it, detached, and join it.

        Returns the plan as it is there: its `cwd` may begin with `~`, the home there.
        """

    def plan(self, run: str) -> Plan | None:
        """The plan of a run; None when there is none."""

    def read(self, run: str, name: str, offset: int, limit: int = -1) -> bytes:
        """A file of the run directory from a byte offset on (a negative one: from the end); nothing
        when it is not there.
        """

    def follow(self, run: str, *, output: str, wait: bool = True) -> Iterator[Chunk | None]:
        """The run from its beginning, in order, as it comes; None now and then while nothing does.

        `output` is one of NONE, LAST (the end of what is new is enough) and ALL.

        Ends with the run, when its engine was lost, or, unless `wait`, when all so far was read.
        """

    def alive(self, run: str) -> bool:
        """Whether the engine of the run is at work."""

    def last_words(self, run: str) -> str | None:
        """What the engine said at its end that is not in its log; None when no end was heard of."""

    def cancel(self, run: str) -> bool:
        """Ask a run to stop; False when there is no engine to hear it."""

    def join(self, run: str) -> None:
        """Note, until this process ends or calls `leave`, that somebody follows the run."""

    def leave(self, run: str) -> None:
        """End what `join` or `start` began."""

    def followed(self, run: str) -> bool:
        """Whether somebody follows the run."""

    def runs(self) -> list[str]:
        """The ids of the runs whose directories are there, the newest first."""

    def info(self, run: str) -> dict[str, Any] | None:
        """What is known of a run (see engine/store/runs.py); None for one that never began."""

    def infos(self, limit: int, live: bool = False) -> list[dict[str, Any]]:
        """The same of the last runs, the newest first; `live`: of those under way only."""

    def discard(self, run: str) -> None:
        """Remove the directory of a run that is not live."""

    def collect(self, plan: Plan, index: int, source: Plan) -> None:
        """Bring here what a step of a plan was to bring back; the run of the plan `source` has done it."""


class NodeTransport(Transport, Protocol):
    """What can be asked of another machine besides."""

    def hello(self) -> dict[str, Any]:
        """What the node is: python, version and root of the engine there."""

    def check(self) -> None:
        """Raise TargetError with the reason, where one is known for which the node is not reached."""

    def ping(self) -> None:
        """Wait for a sign of life."""

    def ready(self) -> str:
        """How the node's own start went: "" when it has ended well, else what is in the way."""

    def put(self, source: str | Path, target: str) -> int:
        """Copy a file, or all in a folder, to the node; returns how many files had to be sent."""

    def get(self, source: str, target: str | Path, name: str = "") -> int:
        """Copy a file, or all in a folder, from the node; returns how many had to be fetched."""


class ReachOptions(TypedDict, total=False):
    """How to reach a target; see SshTransport and SsmTransport."""

    connect_timeout: float
    reconnect_timeout: float
    accept_new_host_keys: bool
    region: str
    profile: str
    bucket: str
    stream: str


OF_AWS = ("region", "profile", "bucket", "stream")
"""Options that mean something to schemes that end with `ssm` only."""


class ConnectOptions(ReachOptions, total=False):
    """The same, and what is particular to it."""

    python: str
    state: str


BUILT_IN = {
    "slurm": "taskrunner.transports.slurm.transport:SlurmTransport",
    "ssh": "taskrunner.transports.ssh.transport:SshTransport",
    "ssh+ssm": "taskrunner.transports.ssm.tunnel:connect",
    "ssm": "taskrunner.transports.ssm.transport:SsmTransport",
}
"""Schemes and where their transports are; a heavy library is imported with its first target."""

EXTRAS = {"paramiko": "ssh", "boto3": "aws", "botocore": "aws"}


def connect(target: str, **options: Unpack[ConnectOptions]) -> Transport:
    """The transport of a target such as ssh://user@host:port or ssm://i-...; reached when it is first used.

    Raises UsageError.
    """
    scheme, separator, _ = target.partition("://")
    scheme = scheme.lower()
    if not separator:
        hint = "expected ssh://user@host:port, ssm://i-... or slurm://JOB/NODE"
        hint += "; `runner run NODE FILE` accepts node names"
        raise UsageError(f"{target!r} is not a target", hint)
    if not scheme.endswith("ssm"):
        for unused in OF_AWS:
            options.pop(unused, None)  # type: ignore[misc]
    module, _, name = BUILT_IN.get(scheme, "").partition(":")
    try:
        made = getattr(import_module(module), name) if module else _registered(scheme)
        return cast("Transport", made(target, **options))
    except ModuleNotFoundError as error:
        extra = EXTRAS.get(error.name or "")
        if extra is None:
            raise
        raise UsageError(f"{scheme}:// needs {error.name}", f"pip install 'taskrunner[{extra}]'") from error


def _registered(scheme: str) -> Any:
    from importlib.metadata import entry_points

    plugins = {point.name: point for point in entry_points(group="taskrunner.transports")}
    if scheme not in plugins:
        names = sorted([*BUILT_IN, *plugins])
        hint = closest(scheme, names) or "known: " + ", ".join(f"{name}://" for name in names)
        raise UsageError(f"unknown target scheme {scheme}://", hint)
    return plugins[scheme].load()
