"""What a killed engine has left: its last step may have finished, be at work still, or be cut."""

from __future__ import annotations

import contextlib
import os
import time

from ..store import fileio, identity, paths
from . import processes, reaper, step_script
from .context import Cancelled, StepError
from .plan_file import UNREADABLE
from .step_commands import end, judge, key_of
from .step_process import path_of
from .steps import WORK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..plan import Step
    from .context import Context

NOTED_WITHIN = 10.0
"""Seconds in which the reaper of a run notes the end of a process that has ended."""


class Left:
    """A step that was under way when the engine of an earlier run died."""

    def __init__(self, ctx: Context, run: str, index: int, attempt: str):
        self.run = run
        self.directory = paths.run_dir(ctx.root, run)
        self.tag = "%s/%d.%s" % (run, index, attempt)
        self.path = path_of(self.directory, index, attempt)
        self.index = index
        marks = self.marks()
        process = marks.process
        if process is None:
            pid = processes.root_of(self.tag)
            process = identity.of(pid) if pid is not None else {}
        self.process: dict[str, Any] = dict(process)
        self.id: Any = (marks.step or {}).get("id")
        self.key: Any = (marks.step or {}).get("key")
        self.began = marks.skipped or marks.guard is not None or marks.command is not None

    @property
    def root(self) -> int | None:
        """Its session, as long as that is sure to be this one."""
        return identity.session(self.process)

    @property
    def alive(self) -> bool:
        return identity.alive(self.process)

    def marks(self) -> step_script.Marks:
        return step_script.read_marks(fileio.read_bytes(self.path))

    def done(self) -> bool:
        """Whether its commands have succeeded, now that its process has ended."""
        deadline = time.monotonic() + NOTED_WITHIN
        while self.marks().end is None and reaper.at_work(self.directory) and time.monotonic() < deadline:
            time.sleep(0.01)
        marks = self.marks()
        if marks.end is None:
            # Its reaper was killed, too: what the program has said itself, at its very end, counts.
            return marks.done and marks.command is not None
        return marks.end == 0 and not marks.skipped and marks.command is not None


def find(ctx: Context, previous: str) -> list[Left]:
    """The steps whose process has begun in the run `previous`, and whose end its engine did not see to."""
    found = []
    folder = os.path.join(paths.run_dir(ctx.root, previous), "steps")
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        index, _, attempt = name.partition(".")
        if index.isdigit():
            found.append(Left(ctx, previous, int(index), attempt))
    return [left for left in found if left.began or left.alive]


def recover(ctx: Context, previous: list[str]) -> set[str]:
    """Look after what earlier runs have left: steps whose commands have succeeded are taken over. Returns
    the runs that alone know of such a step, until all its parts are done.

    A step that is part of this plan is waited for; one of another definition is ended: never two at a time.
    What cannot be read is nothing to recover. Raises OSError when the state cannot be written.
    """
    needed = set()
    for run in previous:
        lefts: list[Left] = []
        try:
            lefts = find(ctx, run)
        except UNREADABLE as error:
            message = "the state left by run %s cannot be read and is not recovered: %s" % (run, error)
            ctx.events.emit("warning", message=message)
        for left in lefts:
            # Not done or asked to stop: the pass over the steps sees to both.
            with contextlib.suppress(Cancelled, StepError):
                if settle(ctx, left):
                    needed.add(run)
    return needed


def settle(ctx: Context, left: Left) -> bool:
    """Wait for the process of a step, or end it; whether the step is taken over with parts still to do."""
    step = next((step for step in ctx.plan["steps"] if step["id"] == left.id), None)
    forgotten = ctx.plan["forget"]
    again = forgotten is None or left.id in forgotten
    if step is not None and left.key == key_of(ctx, step) and not again:
        if left.alive:
            _follow(ctx, left, step)
        if left.done():
            return not step.get("always") and _take_over(ctx, left, step)
    # Cut in its middle, or failed, or another step now: what it left of itself goes before anything is run.
    end(ctx, left.id or "", left.tag, left.root)
    return False


def _take_over(ctx: Context, left: Left, step: Step) -> bool:
    if ctx.journal.find(step["id"], left.key) is not None:
        return False  # all of it is done, and what has been done since comes after it
    ctx.forget_after(step["index"])
    ctx.taken_over.add(step["id"])
    if step.get("guard") is not None:
        return False  # its guard will tell
    if any(step.get(part) for part in WORK):
        return True
    ctx.record(step["id"], left.key, left.run)
    return False


def _follow(ctx: Context, left: Left, step: Step) -> None:
    ctx.events.emit("step.started", step=step["id"], index=step["index"], attempt=1, adopted=left.run)
    # The same file under the new run's name: what is still to come appears in both.
    with contextlib.suppress(OSError):
        os.link(
            paths.log_path(left.directory, left.index, step["id"]),
            paths.log_path(ctx.directory, step["index"], step["id"]),
        )
    timeout = step.get("timeout")
    deadline = None if timeout is None else time.monotonic() + timeout
    pause = 0.01
    while left.alive:
        late = deadline is not None and time.monotonic() >= deadline
        if ctx.control.cancelled or late:
            end(ctx, step["id"], left.tag, left.root)
            if not left.done():
                judge(step, left.marks(), -15, "timeout" if late else "cancelled")
        ctx.control.pause(pause)
        pause = min(pause * 1.5, 0.25)
    if ctx.control.cancelled and not left.done():
        raise Cancelled
