"""What the parts of one run share."""

from __future__ import annotations

import os

from . import layout, processes, script
from .control import Control
from .events import EventLog
from .journal import Journal
from .masking import Masker, Pump

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from .shells import Shell


LIB = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
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

    def __init__(self, directory: str, plan: dict[str, Any], events: EventLog, masker: Masker):
        self.directory = directory
        self.root = layout.root_of(directory)
        self.plan = plan
        self.run: str = plan["run"]
        self.events = events
        self.masker = masker
        self.journal = Journal(layout.journal_path(self.root, plan["key"]))
        self.control = Control()
        self.prepared: Shell | None = None
        self.finished: list[Shell] = []
        self.look_ahead: Callable[[], None] = lambda: None
        self.grace: float = plan.get("grace", 10.0)
        self._env = {
            name: value for name, value in os.environ.items() if name not in ("BASH_ENV", "ENV", "OLDPWD")
        }
        self._env.update(plan["variables"])
        self._env["TASKRUNNER_RUN"] = self.run
        self._env["TASKRUNNER_LIB"] = LIB

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

    def folder(self, step: dict[str, Any], part: dict[str, Any] | None = None) -> str:
        """The working directory of a step, or of a part of it: `~` is the home here, a relative one
        starts at the folder that the run was started in.
        """
        cwd = (part or {}).get("cwd") or step.get("cwd") or ""
        return os.path.join(self.plan["cwd"], os.path.expanduser(cwd))

    def spawn(
        self, argv: list[str], env: dict[str, str], stdin: int, log: str, go: int = -1
    ) -> tuple[int, Pump | None]:
        """Start a process whose output goes to the log, masked where there are secrets.

        `go` is the descriptor on which it waits for its turn.
        """
        more = ((go, script.GO_FD),) if go >= 0 else ()
        with layout.open_append(log) as output:
            pump = Pump(self.masker, output) if self.masker else None
            try:
                pid = processes.spawn(argv, env, stdin, pump.write_end if pump else output, more)
            except (OSError, ValueError) as error:
                if pump:
                    pump.settle()
                raise StepError("start", "cannot start %s: %s" % (argv[0], error)) from error
        return pid, pump
