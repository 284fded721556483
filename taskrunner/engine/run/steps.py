"""One step: its files, its guard and commands, then its service, waits and outputs; and its retries."""

from __future__ import annotations

import time

from .context import Cancelled, StepError
from .step_commands import run_commands
from .step_process import GUARD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..plan import Step
    from .context import Context

WORK = ("service", "wait_for", "outputs")
"""What a step may do besides its commands."""


def run(ctx: Context, step: Step, commands_done: bool) -> str:
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


def _attempt(ctx: Context, step: Step, attempt: int, commands_done: bool) -> str:
    # Few steps have a service or files: a run without them starts sooner without these modules.
    guard = step.get("guard") if attempt == 1 and not commands_done else None
    commands = [] if commands_done else [command["text"] for command in step["commands"]]
    if guard is not None and alone(ctx, step):
        # Whether the step begins is to be known before anything that its beginning changes.
        if run_commands(ctx, step, GUARD % attempt, guard, []):
            return "guard"
        guard = None
    if step.get("files"):
        from . import step_files

        if not step_files.place(ctx, step) and only_copies(step):
            return "files"
    if commands:
        if guard is None:
            ctx.begins()
        if run_commands(ctx, step, str(attempt), guard, commands):
            return "guard"
    kept = False
    if step.get("service"):
        from . import services

        kept = services.ensure(ctx, step, step["service"])
    if step.get("wait_for"):
        wait(ctx, step)
    if step.get("outputs"):
        from . import step_files

        step_files.collect(ctx, step)
    return "service" if kept and not commands and not step.get("wait_for") else ""


def only_copies(step: Step) -> bool:
    """Whether a step does nothing but to place its files."""
    return bool(step.get("files")) and not step["commands"] and not set(WORK) & step.keys()


def alone(ctx: Context, step: Step) -> bool:
    """Whether a step's guard needs a process of its own."""
    return bool(step.get("files")) or not step["commands"] or ctx.would_forget()


def wait(ctx: Context, step: Step) -> None:
    """Ask `wait_for` until the answer is yes."""
    from . import service_record
    from .probes import describe, probe

    wanted = step["wait_for"]
    ctx.events.emit("waiting", step=step["id"], **{"for": describe(wanted)})
    own_log = service_record.log_of(ctx, wanted["log"].get("service")) if "log" in wanted else ""
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
