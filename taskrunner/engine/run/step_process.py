"""The bash process of a step, which may be up before its turn comes.

Starting bash takes longer than a short step does, so the next step's is started while the current
one runs. It waits, before it has read a word of its program, for a byte on a pipe; when the engine
dies instead, the pipe ends and so does it.
"""

from __future__ import annotations

import contextlib
import os

from ..store import fileio, identity, paths
from . import processes, step_script
from .context import StepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..plan import Step
    from .context import Context
    from .masking import Pump


class Shell:
    """A step's process for one attempt: `pid`, the `tag` of its tree, and the `path` of its marks.

    `key` is the identity of what the step does. Raises StepError, OSError when the process cannot be
    started.
    """

    pid = 0
    _pump: Pump | None = None

    def __init__(
        self,
        ctx: Context,
        step: Step,
        attempt: str,
        guard: str | None,
        commands: list[str],
        key: str,
    ) -> None:
        self.index = index = step["index"]
        self._ctx = ctx
        self.tag = tag_of(ctx, step, attempt)
        self.path = path_of(ctx.directory, index, attempt)
        argv, exports = step_script.argv(self.tag, wait=not step.get("run_as")), None
        if step.get("run_as"):
            # What changes the user closes the descriptor on which it would wait.
            argv = step_script.as_user(step["run_as"], argv)
            exports = ctx.exports(step["env"], self.tag)
        content = step_script.program(ctx.folder(step), guard, commands, exports)
        env = ctx.env(step["env"], self.tag)
        log = paths.log_path(ctx.directory, index, step["id"])
        wait, self._go = (-1, -1) if step.get("run_as") else os.pipe()
        stdin = -1
        try:
            stdin = step_script.write(self.path, content, {"id": step["id"], "key": key})
            self.pid, self._pump = ctx.spawn(argv, env, stdin, log, wait)
            # Noted before it begins, so that whoever finds this file can tell what became of it.
            # (Appended, as the file is open for that; the place from which bash reads stays.)
            os.pwrite(stdin, step_script.mark_line(b"p", identity.of(self.pid)), 0)
        except (OSError, StepError):
            if self.pid and step.get("run_as"):  # it has not waited
                processes.end_tree(self.tag, self.pid, ctx.grace, ctx.control.reap)
            self.discard()
            raise
        finally:
            for fd in (stdin, wait):
                if fd >= 0:
                    os.close(fd)

    def go(self) -> None:
        """Let it run its program."""
        if self._go >= 0:
            # It may be gone already, killed from outside: then its status tells.
            with contextlib.suppress(BrokenPipeError):
                os.write(self._go, b"\n")
            os.close(self._go)
            self._go = -1

    def ended(self) -> step_script.Marks:
        """All its output is in the log when this returns; what it has noted of itself."""
        if self._pump:
            self._pump.settle()
            self._ctx.control.release(self._pump.pid)
            self._pump = None
        return self.marks()

    def marks(self) -> step_script.Marks:
        return step_script.read_marks(fileio.read_bytes(self.path))

    def forget(self) -> None:
        """Its end is noted: remove the program, which may hold secrets, and let the process go."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        if self.pid:
            self._ctx.control.release(self.pid)

    def discard(self) -> None:
        """Do without it: it ends by itself, without having run anything."""
        if self._go >= 0:
            os.close(self._go)
            self._go = -1
        if self._pump:
            self._pump.leave()
            self._ctx.control.release(self._pump.pid)
        self.forget()


def ahead(ctx: Context, step: Step, guard_alone: bool) -> Shell | None:
    """The process for a step whose turn comes next; None where only its turn can tell."""
    guard, commands = step.get("guard"), [command["text"] for command in step["commands"]]
    if step.get("run_as") or step.get("files") or (guard is None and not commands):
        return None
    with contextlib.suppress(StepError, OSError):
        if guard_alone:
            return Shell(ctx, step, GUARD % 1, guard, [], step["key"])
        return Shell(ctx, step, "1", guard, commands, step["key"])
    return None


GUARD = "%d.guard"
"""The attempt at a step that is its guard alone."""


def tag_of(ctx: Context, step: Step, attempt: str) -> str:
    return "%s/%d.%s" % (ctx.run, step["index"], attempt)


def path_of(directory: str, index: int, attempt: str) -> str:
    return os.path.join(directory, "steps", "%d.%s" % (index, attempt))
