"""The bash process of a step, which may be up before its turn comes.

Starting bash takes longer than a short step does, so the next step's is started while the current
one runs. It waits, before it has read a word of its program, for a byte on a pipe; when the engine
dies instead, the pipe ends and so does it.
"""

from __future__ import annotations

import contextlib
import os

from . import layout, script
from .context import StepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .context import Context


class Shell:
    """A step's process for one attempt: `pid`, the `tag` of its tree, and the `path` of its marks.

    Raises StepError when it cannot be started.
    """

    def __init__(
        self,
        ctx: Context,
        step: dict[str, Any],
        attempt: str,
        guard: str | None,
        commands: list[str],
        ahead: bool = False,
    ) -> None:
        index = step["index"]
        self.tag = tag_of(ctx, step, attempt)
        self.path = path_of(ctx.directory, index, attempt)
        argv, exports = script.argv(step["id"], self.tag, ahead), None
        if step.get("run_as"):
            argv = script.as_user(step["run_as"], argv)
            exports = ctx.exports(step["env"], self.tag)
        content = script.program(ctx.folder(step), guard, commands, exports)
        env = ctx.env(step["env"], self.tag)
        log = layout.log_path(ctx.directory, index, step["id"])
        wait, self._go = os.pipe() if ahead else (-1, -1)
        stdin = script.write(self.path, content)
        try:
            self.pid, self._pump = ctx.spawn(argv, env, stdin, log, wait)
        except StepError:
            self.discard()
            raise
        finally:
            os.close(stdin)
            if ahead:
                os.close(wait)

    def go(self) -> None:
        """Let it run its program."""
        if self._go >= 0:
            # It may be gone already, killed from outside: then its status tells.
            with contextlib.suppress(BrokenPipeError):
                os.write(self._go, b"\n")
            os.close(self._go)
            self._go = -1

    def ended(self) -> script.Marks:
        """All its output is in the log when this returns; what it has noted of itself."""
        if self._pump:
            self._pump.settle()
        return self.marks()

    def marks(self) -> script.Marks:
        return script.read_marks(layout.read_bytes(self.path))

    def forget(self) -> None:
        """Remove the program: it may hold secrets."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    def discard(self) -> None:
        """Do without it: it ends by itself, without having run anything."""
        if self._go >= 0:
            os.close(self._go)
            self._go = -1
        self.forget()


def ahead(ctx: Context, step: dict[str, Any]) -> Shell | None:
    """The process for a step whose turn comes next; None where only its turn can tell."""
    guard, commands = step.get("guard"), [command["text"] for command in step["commands"]]
    if step.get("run_as") or step.get("files") or (guard is None and not commands):
        return None
    with contextlib.suppress(StepError, OSError):
        return Shell(ctx, step, "1", guard, commands, ahead=True)
    return None


def tag_of(ctx: Context, step: dict[str, Any], attempt: str) -> str:
    return "%s/%d.%s" % (ctx.run, step["index"], attempt)


def path_of(directory: str, index: int, attempt: str) -> str:
    return os.path.join(directory, "steps", "%d.%s" % (index, attempt))
