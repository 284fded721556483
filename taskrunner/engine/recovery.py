"""What a killed engine has left: its last step may have finished, be at work still, or be cut."""

from __future__ import annotations

import contextlib
import json
import os
import time

from . import layout, processes, script
from .context import Cancelled
from .events import read_events
from .masking import Masker
from .shells import path_of
from .steps import WORK, judge

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .context import Context


class Left:
    """The step that was under way when the engine of an earlier run died."""

    def __init__(self, run: str, directory: str, step: dict[str, Any], attempt: str, pid: int | None):
        self.run, self.directory, self.step = run, directory, step
        self.tag = "%s/%d.%s" % (run, step["index"], attempt)
        self.path = path_of(directory, step["index"], attempt)
        self.pid = pid

    @property
    def alive(self) -> bool:
        return self.pid is not None and processes.tagged(self.pid, self.tag)


def find(ctx: Context, previous: str) -> Left | None:
    """The step that the run `previous` was at, when its engine did not end it."""
    directory = layout.run_dir(ctx.root, previous)
    events, _ = read_events(os.path.join(directory, layout.EVENTS))
    if not events or events[-1]["type"] in ("run.finished", "run.refused"):
        return None
    open_index = None
    for event in events:
        if event["type"] == "step.started":
            open_index = event["index"]
        elif event["type"] in ("step.finished", "step.skipped") and event["index"] == open_index:
            open_index = None
    plan = load_plan(directory)
    if open_index is None or plan is None:
        return None
    steps = os.path.join(directory, "steps")
    prefix = "%d." % open_index
    with contextlib.suppress(FileNotFoundError):
        names = [name for name in os.listdir(steps) if name.startswith(prefix)]
        names.sort(key=lambda name: os.stat(os.path.join(steps, name)).st_mtime_ns)
        if names:
            marks = script.read_marks(layout.read_bytes(os.path.join(steps, names[-1])))
            attempt = names[-1][len(prefix) :]
            return Left(previous, directory, plan["steps"][open_index], attempt, marks.pid)
    return None


def settle(ctx: Context, left: Left) -> str:
    """Take over a step that is part of this plan: wait for its process. The id of a step whose
    commands have succeeded, else "".

    A step of another definition is ended instead: never two at a time.
    """
    same = any(
        step["id"] == left.step["id"] and step["key"] == left.step["key"] for step in ctx.plan["steps"]
    )
    if not same:
        processes.end_tree(left.tag, left.pid, ctx.grace, ctx.control.reap)
        return ""
    if left.alive:
        _follow(ctx, left)
    marks = script.read_marks(layout.read_bytes(left.path))
    if marks.end != 0 or marks.skipped or marks.command is None:
        # Cut in its middle, or failed: what it left of itself goes before it is run again.
        processes.end_tree(left.tag, left.pid, ctx.grace, ctx.control.reap)
        return ""
    if not any(left.step.get(part) for part in WORK):
        ctx.journal.record(left.step["id"], left.step["key"], left.run)
    return str(left.step["id"])


def _follow(ctx: Context, left: Left) -> None:
    index = next(s["index"] for s in ctx.plan["steps"] if s["id"] == left.step["id"])
    ctx.events.emit("step.started", step=left.step["id"], index=index, attempt=1, adopted=left.run)
    # The same file under the new run's name: what is still to come appears in both.
    with contextlib.suppress(OSError):
        os.link(
            layout.log_path(left.directory, left.step["index"], left.step["id"]),
            layout.log_path(ctx.directory, index, left.step["id"]),
        )
    timeout = left.step.get("timeout")
    deadline = None if timeout is None else time.monotonic() + timeout
    pause = 0.01
    while left.alive:
        late = deadline is not None and time.monotonic() >= deadline
        if ctx.control.cancelled or late:
            processes.end_tree(left.tag, left.pid, ctx.grace, ctx.control.reap)
            judge(left.step, script.read_marks(b""), 143, "timeout" if late else "cancelled")
        ctx.control.pause(pause)
        pause = min(pause * 1.5, 0.25)
    if ctx.control.cancelled:
        raise Cancelled


def load_plan(directory: str) -> dict[str, Any] | None:
    """The plan of a run directory; None when it is not there or not whole."""
    try:
        plan = json.loads(layout.read_bytes(os.path.join(directory, layout.PLAN)))
    except ValueError:
        return None
    return plan if isinstance(plan, dict) else None


def scrub(directory: str) -> None:
    """Remove the secrets of a run that has ended: from its plan, and its steps' programs whole."""
    plan = load_plan(directory)
    if plan is None:
        return
    if plan.get("secrets"):
        masker = Masker([plan["variables"].get(name, "") for name in plan["secrets"]])
        for name in plan["secrets"]:
            plan["variables"].pop(name, None)
        plan["secrets"] = []
        text = json.dumps(masker.value(plan))
        layout.write_atomic(os.path.join(directory, layout.PLAN), text.encode())
    steps = os.path.join(directory, "steps")
    with contextlib.suppress(OSError):
        for name in os.listdir(steps):
            os.unlink(os.path.join(steps, name))
        os.rmdir(steps)
