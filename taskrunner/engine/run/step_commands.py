"""The guard and the commands of a step: run in one bash process to its end, and what that end means."""

from __future__ import annotations

import time

from . import processes
from .context import START_WITHIN, Cancelled, StepError
from .step_process import Shell, tag_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..plan import Step
    from .context import Context
    from .step_script import Marks

GUARD_TIMEOUT = 60.0


def run_commands(ctx: Context, step: Step, attempt: str, guard: str | None, commands: list[str]) -> bool:
    """Run the step's process to its end; True when its guard held.

    A process that fails, is cancelled or takes too long ends with everything that it has started:
    whatever is run next never runs beside it.
    """
    shell = ctx.prepared
    if shell is None or shell.tag != tag_of(ctx, step, attempt):
        if shell is not None and shell.index == step["index"]:
            shell.discard()  # its turn came in another way
            ctx.prepared = None
        try:
            shell = ctx.with_room(
                lambda: Shell(ctx, step, attempt, guard, commands, key_of(ctx, step)), START_WITHIN
            )
        except OSError as error:
            raise StepError("start", "cannot start the step: %s" % (error.strerror or error)) from error
    else:
        ctx.prepared = None
    ctx.finished.append(shell)
    shell.go()
    ctx.look_ahead()
    try:
        status, cause = _wait(ctx, step, shell, guard is not None)
    finally:
        marks = shell.ended()
    if (
        status == 0
        and guard is not None
        and marks.guard is None
        and marks.command is None
        and not marks.skipped
    ):
        raise StepError("guard", "the result of the guard could not be recorded")
    return judge(step, marks, status, cause)


def guard_holds(ctx: Context, step: Step) -> bool:
    """Evaluate a step's guard alone."""
    return run_commands(ctx, step, "check", step["guard"], [])


def key_of(ctx: Context, step: Step) -> str:
    """The identity of what a step does: its definition, and the content of its files."""
    if not step.get("files"):
        return str(step["key"])
    from . import step_files

    if step["index"] not in ctx.keys:
        ctx.keys[step["index"]] = step_files.key(ctx, step)
    return ctx.keys[step["index"]]


def judge(step: Step, marks: Marks, status: int, cause: str) -> bool:
    """What the end of a step's process means: True for a guard that held, False for done.

    `status` is its exit status, -N for signal N. Done is done: a step whose commands have all succeeded
    counts, even if it was asked to stop meanwhile.
    """
    if cause and not (status == 0 and marks.done):
        if cause == "cancelled":
            raise Cancelled
        if cause == "guard":
            seconds = step.get("guard_timeout", GUARD_TIMEOUT)
            raise StepError("guard", "the guard did not end within %g s" % seconds)
        raise StepError("timeout", "did not end within %g s" % step["timeout"], _shown(status), marks.command)
    if status < 0:
        raise StepError("exit", "ended by signal %d" % -status, _shown(status), marks.command)
    if status:
        detail = "exit status %d" % status
        if status > 128:
            detail += ", which usually means ended by signal %d" % (status - 128)
        raise StepError("exit", detail, status, marks.command)
    return marks.skipped


def _shown(status: int) -> int:
    """An exit status as shells show it."""
    return status if status >= 0 else 128 - status


def _wait(ctx: Context, step: Step, shell: Shell, guarded: bool) -> tuple[int, str]:
    """Wait for the end of the process, or bring it about; its status and why it was brought about, "" when it
    came by itself.
    """
    control = ctx.control
    timeout: float | None = step.get("timeout")
    deadline = time.monotonic() + step.get("guard_timeout", GUARD_TIMEOUT) if guarded else None
    if not guarded and timeout is not None:
        deadline = time.monotonic() + timeout
    pause = 0.0
    while True:
        status = control.ended(shell.pid)
        if status is not None:
            if status != 0:
                end(ctx, step["id"], shell.tag, shell.pid)
            return status, ""
        cause = "cancelled" if control.cancelled else ""
        now = time.monotonic()
        late = deadline is not None and now >= deadline
        if guarded and pause and not cause and shell.marks().guard is not None:
            # The step's own time starts with the end of its guard.
            guarded, late = False, False
            deadline = None if timeout is None else now + timeout
            ctx.events.emit("step.running", step=step["id"], index=step["index"])
        if late and not cause:
            cause = "guard" if guarded else "timeout"
        if cause:
            end(ctx, step["id"], shell.tag, shell.pid)
            status = control.ended(shell.pid)
            return -9 if status is None else status, cause
        left = None if deadline is None else deadline - now
        if guarded:
            # Only the marks tell when the guard has ended; most steps are over before the first look.
            pause = min(pause * 1.5, 0.25) or 0.05
            left = min(pause, left or pause)
        control.pause(left)


def end(ctx: Context, step: str, tag: str, root: int | None) -> None:
    """End the whole tree of the process of a step, given by its id."""
    immortal = processes.end_tree(tag, root, ctx.grace, ctx.control.reap)
    if immortal:
        message = "some processes cannot be killed: %s" % sorted(immortal)
        ctx.events.emit("warning", step=step, message=message)
