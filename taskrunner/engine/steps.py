"""One step: its guard and commands in one bash process, then its service, waits and files."""

from __future__ import annotations

import time

from . import processes
from .context import START_WITHIN, Cancelled, StepError
from .shells import GUARD, Shell, tag_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .context import Context
    from .script import Marks

GUARD_TIMEOUT = 60.0
WORK = ("service", "wait_for", "outputs")
"""What a step may do besides its commands."""


def run(ctx: Context, step: dict[str, Any], commands_done: bool) -> str:
    """Run a step, with its retries. Returns "" when it ran, else the reason why it was skipped.

    `commands_done`: the commands have succeeded before; what else the step has is still to do.
    Raises StepError when the last attempt failed, Cancelled when the run was asked to stop.
    """
    ctx.hold_room()
    retries = step.get("retries") or {"attempts": 1}
    attempts, delay = retries["attempts"], retries.get("delay", 0)
    for attempt in range(1, attempts + 1):
        try:
            return _attempt(ctx, step, attempt, commands_done)
        except StepError as error:
            if attempt == attempts or error.cause == "guard":
                raise
            ctx.events.emit(
                "step.retrying",
                step=step["id"],
                index=step["index"],
                attempt=attempt + 1,
                attempts=attempts,
                delay=delay,
                detail=error.detail,
            )
        ctx.forget_finished()
        ctx.control.sleep(delay)
        if ctx.control.cancelled:
            raise Cancelled
        delay *= retries.get("backoff", 1)
    raise AssertionError("a step has at least one attempt")


def _attempt(ctx: Context, step: dict[str, Any], attempt: int, commands_done: bool) -> str:
    # Few steps have a service or files: a run without them starts sooner without these modules.
    guard = step.get("guard") if attempt == 1 and not commands_done else None
    commands = [] if commands_done else [command["text"] for command in step["commands"]]
    if guard is not None and alone(ctx, step):
        # Whether the step begins is to be known before anything that its beginning changes.
        if _bash(ctx, step, GUARD % attempt, guard, []):
            return "guard"
        guard = None
    if step.get("files"):
        from . import transfer

        if not transfer.place(ctx, step) and not (set(WORK) & step.keys() or step["commands"]):
            return "files"
    if commands:
        if guard is None:
            ctx.begins()
        if _bash(ctx, step, str(attempt), guard, commands):
            return "guard"
    kept = False
    if step.get("service"):
        from . import services

        kept = services.ensure(ctx, step, step["service"])
    if step.get("wait_for"):
        wait(ctx, step)
    if step.get("outputs"):
        from . import transfer

        transfer.collect(ctx, step)
    return "service" if kept and not commands and not step.get("wait_for") else ""


def alone(ctx: Context, step: dict[str, Any]) -> bool:
    """Whether a step's guard needs a process of its own."""
    return bool(step.get("files")) or not step["commands"] or ctx.would_forget()


def guard_holds(ctx: Context, step: dict[str, Any]) -> bool:
    """Evaluate a step's guard alone."""
    return _bash(ctx, step, "check", step["guard"], [])


def key_of(ctx: Context, step: dict[str, Any]) -> str:
    """The identity of what a step does: its definition, and the content of its files."""
    if not step.get("files"):
        return str(step["key"])
    from . import transfer

    if step["index"] not in ctx.keys:
        ctx.keys[step["index"]] = transfer.key(ctx, step)
    return ctx.keys[step["index"]]


def _bash(ctx: Context, step: dict[str, Any], attempt: str, guard: str | None, commands: list[str]) -> bool:
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
        raise StepError("guard", "what the guard has found could not be noted")
    return judge(step, marks, status, cause)


def judge(step: dict[str, Any], marks: Marks, status: int, cause: str) -> bool:
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
            detail += ", as of a process that signal %d has ended" % (status - 128)
        raise StepError("exit", detail, status, marks.command)
    return marks.skipped


def _shown(status: int) -> int:
    """An exit status as shells show it."""
    return status if status >= 0 else 128 - status


def _wait(ctx: Context, step: dict[str, Any], shell: Shell, guarded: bool) -> tuple[int, str]:
    """Wait for the end of the process, or bring it about; its status and why it was brought about, "" when it
    came by itself.
    """
    control = ctx.control
    timeout: float | None = step.get("timeout")
    deadline = time.monotonic() + step.get("guard_timeout", GUARD_TIMEOUT) if guarded else None
    if not guarded and timeout is not None:
        deadline = time.monotonic() + timeout
    pause = 0.05
    while True:
        status = control.ended(shell.pid)
        if status is not None:
            if status != 0:
                end(ctx, step, shell.tag, shell.pid)
            return status, ""
        cause = "cancelled" if control.cancelled else ""
        now = time.monotonic()
        late = deadline is not None and now >= deadline
        if guarded and not cause and shell.marks().guard is not None:
            # The step's own time starts with the end of its guard.
            guarded, late = False, False
            deadline = None if timeout is None else now + timeout
            ctx.events.emit("step.running", step=step["id"], index=step["index"])
        if late and not cause:
            cause = "guard" if guarded else "timeout"
        if cause:
            end(ctx, step, shell.tag, shell.pid)
            status = control.ended(shell.pid)
            return -9 if status is None else status, cause
        left = None if deadline is None else deadline - now
        if guarded:
            # Only the marks tell when the guard has ended; most have before the first look.
            left = min(pause, left or pause)
            pause = min(pause * 1.5, 0.25)
        control.pause(left)


def end(ctx: Context, step: dict[str, Any], tag: str, root: int | None) -> None:
    """End the whole tree of a step's process."""
    immortal = processes.end_tree(tag, root, ctx.grace, ctx.control.reap)
    if immortal:
        message = "processes that cannot be ended: %s" % sorted(immortal)
        ctx.events.emit("warning", step=step["id"], message=message)


def wait(ctx: Context, step: dict[str, Any]) -> None:
    """Ask `wait_for` until the answer is yes."""
    from . import services
    from .probes import describe, probe

    wanted = step["wait_for"]
    ctx.events.emit("waiting", step=step["id"], **{"for": describe(wanted)})
    own_log = services.log_of(ctx, wanted["log"].get("service")) if "log" in wanted else ""
    deadline = time.monotonic() + wanted["timeout"]
    pause = 0.05
    while True:
        missing = probe(wanted, ctx.folder(step), own_log)
        if not missing:
            return
        if ctx.control.cancelled:
            raise Cancelled
        if time.monotonic() >= deadline:
            raise StepError("wait_for", "not within %g s: %s" % (wanted["timeout"], missing))
        ctx.control.sleep(min(pause, deadline - time.monotonic()))
        pause = min(pause * 1.5, 1.0)
