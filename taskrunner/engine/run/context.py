"""What the parts of one run share."""

from __future__ import annotations

import errno
import os
import time

from ..store import fileio, paths
from ..store.events import NO_SPACE, EventLog
from ..store.journal import Journal
from . import processes, step_script
from .masking import SHORTEST, Masker, Pump
from .signals import Control

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, TypeVar

    from ..plan import Plan, Service, Step
    from .step_process import Shell

    T = TypeVar("T")


START_WITHIN, RECORD_WITHIN = 10.0, 60.0
"""Seconds for which a full disk keeps a step from starting, and one that is done from being noted."""
CHOSEN = ("only", "until")
"""Reasons to leave a step out that are somebody's choice for this run."""
LIB = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
"""Where the engine lies, and beside it what steps may call: see inference/__main__.py."""


class StepError(Exception):
    """A step failed. `cause` is one word of the event vocabulary, the text says what happened."""

    def __init__(self, cause: str, detail: str, exit: int | None = None, command: int | None = None):
        super().__init__(detail)
        self.cause, self.detail, self.exit, self.command = cause, detail, exit, command


class Cancelled(Exception):
    """The run was asked to stop; the processes of the step are ended already."""


class Context:
    """One run: its directory, plan, event log, journal, masker and the engine's signals."""

    def __init__(self, directory: str, plan: Plan, events: EventLog, masker: Masker, control: Control):
        self.directory = directory
        self.root = paths.root_of(directory)
        self.plan = plan
        self.run: str = plan["run"]
        self.events = events
        self.masker = masker
        self.control = control
        self.journal = Journal(paths.journal_path(self.root, plan["key"]), plan["cwd"])
        self.project: str = plan.get("project", "")
        self.step = 0
        self.taken_over: set[str] = set()
        """Steps whose commands have succeeded in a run whose engine was killed."""
        self.keys: dict[int, str] = {}
        self.because: dict[str, str] = {}
        """Steps that were done before, and the one that has begun since and comes before them."""
        self.prepared: Shell | None = None
        self.finished: list[Shell] = []
        self.look_ahead: Callable[[], None] = lambda: None
        self.grace: float = plan.get("grace", 10.0)
        self._in_order = False
        self._env = {
            name: value for name, value in os.environ.items() if name not in ("BASH_ENV", "ENV", "OLDPWD")
        }
        self._env.update(plan["variables"])
        self._env["TASKRUNNER_RUN"] = self.run
        self._env["TASKRUNNER_LIB"] = LIB

    def named(self, name: str) -> str:
        """A name that files are given, without what the task file declares to be secret; another secret, as
        of the environment, may come and go.
        """
        plan = self.plan
        declared = [plan["variables"].get(name, "") for name in plan["secrets"]]
        held = any(len(secret) >= SHORTEST and secret in name for secret in declared)
        return Masker(declared).text(name) if held else name

    def begins(self) -> None:
        """The current step changes something: what comes after it is not done because of an earlier time."""
        if not self._in_order and not self.plan["steps"][self.step].get("always"):
            self.forget_after(self.step)
            self._in_order = True

    def forget_after(self, index: int) -> None:
        """Forget what was done of the steps behind this one, but for those that were left out by name."""
        step, *later = self.plan["steps"][index:]
        names = [other["id"] for other in later if (other.get("skip") or {}).get("reason") not in CHOSEN]
        forgotten = self.with_room(lambda: self.journal.forget(names), START_WITHIN)
        self.because.update(dict.fromkeys([*forgotten, *self.taken_over.intersection(names)], step["id"]))
        self.taken_over.difference_update(names)

    def would_forget(self) -> bool:
        """Whether something is remembered that the beginning of the current step makes doubtful."""
        return not self._in_order and self.journal.knows(
            other["id"] for other in self.plan["steps"][self.step + 1 :]
        )

    def forget_finished(self) -> None:
        """Let go of the processes whose end is noted, and remove their programs."""
        for shell in self.finished:
            shell.forget()
        self.finished.clear()

    def record(self, step: str, key: str, run: str) -> None:
        """Remember that a step has succeeded. Raises OSError when that is not safely on disk."""
        self.with_room(lambda: self.journal.record(step, key, run), RECORD_WITHIN)

    def with_room(self, write: Callable[[], T], patience: float) -> T:
        """Call something that writes: on a full disk with the space of the reserve, then as soon as there
        is some.

        Raises OSError when there is none for `patience` seconds, or the run is asked to stop.
        """
        deadline = time.monotonic() + patience
        while True:
            try:
                return write()
            except OSError as error:
                if error.errno not in NO_SPACE:
                    raise
                if not self.events.reserve.spend():
                    if self.control.cancelled or time.monotonic() >= deadline:
                        raise
                    self.control.sleep(0.2)

    def hold_room(self) -> None:
        """See that the end of what is about to start can be noted. Raises StepError."""
        if not self.events.reserve.make():
            try:
                self.with_room(self._hold, START_WITHIN)
            except OSError as error:
                raise StepError("start", "cannot start the step: %s" % error.strerror) from error

    def _hold(self) -> None:
        if not self.events.reserve.make():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def env(self, own: dict[str, str], tag: str) -> dict[str, str]:
        """The environment of a process of this run."""
        env = dict(self._env)
        env.update(own)
        env[processes.TAG] = tag
        return env

    def exports(self, own: dict[str, str], tag: str) -> dict[str, str]:
        """What has to be exported where a change of user has emptied the environment."""
        own = {**self.plan["variables"], **own, "TASKRUNNER_RUN": self.run, "TASKRUNNER_LIB": LIB}
        return {**own, processes.TAG: tag}

    def folder(self, step: Step, part: Service | None = None) -> str:
        """The working directory of a step, or of a part of it: `~` is the home here, a relative one
        starts at the folder that the run was started in.
        """
        cwd = (part.get("cwd") if part else "") or step.get("cwd") or ""
        return os.path.join(self.plan["cwd"], os.path.expanduser(cwd))

    def spawn(
        self, argv: list[str], env: dict[str, str], stdin: int, log: str, go: int = -1
    ) -> tuple[int, Pump | None]:
        """Start a process whose output goes to the log, masked where there are secrets.

        `go` is the descriptor on which it waits for its turn.
        """
        more = ((go, step_script.GO_FD),) if go >= 0 else ()
        with fileio.open_append(log) as output:
            pump = Pump(self.masker, output) if self.masker else None
            try:
                pid = processes.spawn(argv, env, stdin, pump.write_end if pump else output, more)
            except (OSError, ValueError) as error:
                if pump:
                    pump.settle()
                raise StepError("start", "cannot start %s: %s" % (argv[0], error)) from error
        return pid, pump
