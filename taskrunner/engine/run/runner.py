"""Runs one plan: takes the lock, goes through the steps, remembers, and says how it ended."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import time

from .. import VERSION
from ..store import fileio, identity, lock, paths, unsettled
from ..store.events import NO_SPACE, EventLog
from . import aws_secrets, plan_file, recovery, step_commands, step_process, steps
from .context import Cancelled, Context, StepError
from .masking import Masker, secrets_of
from .signals import Control

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..plan import Step
    from .reaper import Watched

OK, FAILED, CANCELLED = "ok", "failed", "cancelled"
EXIT = {OK: 0, FAILED: 1, CANCELLED: 130}
LOCKED = 4
NEVER = ("false", "/bin/false", "exit 1")
"""Guards that say on purpose that a step is run every time."""


class Fatal(Exception):
    """The run cannot go on, and may not be able to write that down."""


def run(directory: str, bell: int, watched: Watched) -> int:
    """Run the plan in a run directory, under a reaper (see there); returns the exit status of the run.

    Raises Fatal when the state cannot be written.
    """
    try:
        return _run(directory, bell, watched)
    except BaseException:
        plan_file.forget_secrets(directory)
        raise


def _run(directory: str, bell: int, watched: Watched) -> int:
    plan = plan_file.load_plan(directory)
    if plan is None:
        raise Fatal("no complete plan in %s" % directory)
    if plan.get("format") != VERSION:
        raise Fatal("the plan has format %s, this engine supports %s" % (plan.get("format"), VERSION))
    try:
        plan = aws_secrets.resolve(plan)
    except aws_secrets.Unresolved as error:
        raise Fatal("cannot read secret: %s" % error) from error
    masker = Masker(secrets_of(plan, os.environ))
    try:
        for folder in ("logs", "steps"):
            fileio.private_folder(os.path.join(directory, folder))
        events = EventLog(directory, bell, masker)
        control = Control()  # whoever knows this process may ask it to stop
        own = identity.of(os.getpid())
        fileio.write_atomic(os.path.join(directory, paths.ENGINE), json.dumps(own).encode())
        if plan.get("dry"):
            return PlanRun(Context(directory, plan, events, masker, control), [], None).dry()
        root = paths.root_of(directory)
        held, holder = lock.take(root, plan["key"], plan["run"])
        if held is None:
            events.emit("run.refused", holder=holder)
            plan_file.scrub(directory)
            return LOCKED
        before = unsettled.of(root, plan["key"])
        unsettled.note(root, plan["key"], plan["run"])
        begun = watched(directory)
        ctx = Context(directory, plan, events, masker, control)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(directory, paths.EARLY))
            os.kill(os.getpid(), signal.SIGTERM)  # asked for before this process could hear it
        begun()
        os.chdir("/")  # a step may delete the folder the run was started in
        return PlanRun(ctx, before, held).all()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES):
            raise Fatal("%s: %s" % (error.strerror, error.filename or directory)) from error
        raise


class PlanRun:
    """The state of one pass over the steps."""

    def __init__(self, ctx: Context, previous: list[str], held: int | None) -> None:
        self.ctx = ctx
        self.lock = held
        self.previous = previous
        self.counts = {"ok": 0, "skipped": 0}
        self.failures: list[str] = []
        self.status = OK
        self.started = time.monotonic()

    def all(self) -> int:
        """Run the steps; returns the exit status."""
        ctx, plan = self.ctx, self.ctx.plan
        self._announce(self.previous[-1] if self.previous else None)
        for message in plan.get("warnings", ()):
            ctx.events.emit("warning", message=message)
        ctx.journal.forget(plan["forget"])
        if self.previous:
            needed = recovery.recover(ctx, self.previous)
            self._settle([run for run in self.previous if run not in needed])
        for step in plan["steps"]:
            self._step(step)
        self._settle(self.previous)
        if self.status == OK and self.failures:
            self.status = FAILED
        if plan.get("check") and self.status == OK:
            self._check()
        return self._conclude()

    def _settle(self, runs: list[str]) -> None:
        for run in runs:
            plan_file.scrub(paths.run_dir(self.ctx.root, run))
            unsettled.settled(self.ctx.root, self.ctx.plan["key"], run)

    def dry(self) -> int:
        """Say of each step whether it would run. Only guards are run, and nothing is remembered."""
        forgotten = self.ctx.plan["forget"]
        first = ""
        self._announce(None)
        for step in self.ctx.plan["steps"]:
            skip = dict(step.get("skip") or {"reason": ""})
            remembered = "" if forgotten is None or step["id"] in forgotten else self._remembered(step)
            if first and remembered and not skip["reason"]:
                remembered, skip["because"] = "", first
            if self.ctx.control.cancelled:
                self.status = CANCELLED
                break
            if not skip["reason"] and remembered:
                skip = {"reason": "journal", "detail": "in run " + remembered}
            elif (
                not skip["reason"] and step.get("guard") is not None and os.path.isdir(self.ctx.folder(step))
            ):
                # In a folder that an earlier step has still to make, no guard holds.
                try:
                    skip["reason"] = "guard" if step_commands.guard_holds(self.ctx, step) else ""
                except StepError as error:
                    skip["detail"] = error.detail
                except Cancelled:
                    continue
            elif not skip["reason"] and steps.only_copies(step):
                from . import step_files

                skip["reason"] = "files" if step_files.placed(self.ctx, step) else ""
            if not (skip["reason"] or first) and not step.get("always") and not self._only_asks(step):
                first = step["id"]
            self.ctx.events.emit("step.planned", step=step["id"], index=step["index"], **skip)
        return self._conclude()

    def _only_asks(self, step: Step) -> bool:
        """Whether a step changes nothing, or only its turn can tell."""
        return not step["commands"] and not step.get("files")

    def _announce(self, previous: str | None) -> None:
        plan = self.ctx.plan
        self.ctx.events.emit(
            "run.started",
            run=self.ctx.run,
            name=plan["name"],
            file=plan["file"],
            pid=os.getpid(),
            steps=[{"id": step["id"], "name": step["name"]} for step in plan["steps"]],
            previous=previous,
        )

    def _conclude(self) -> int:
        ctx = self.ctx
        if ctx.prepared is not None:
            ctx.prepared.discard()
        plan_file.scrub(ctx.directory, ctx.plan)
        if self.lock is not None:
            # Who hears of the end may start the next run at once, and finds nothing to recover.
            unsettled.settled(ctx.root, ctx.plan["key"], ctx.run)
            os.ftruncate(self.lock, 0)
            os.close(self.lock)
        ctx.events.emit(
            "run.finished",
            status=self.status,
            exit=EXIT[self.status],
            duration=round(time.monotonic() - self.started, 3),
            failed=len(self.failures),
            failures=self.failures,
            **self.counts,
        )
        if not ctx.events.flush():
            raise Fatal("the run has ended (%s), but there is no space to record it" % self.status)
        ctx.events.reserve.spend()
        return EXIT[self.status]

    def _step(self, step: Step) -> None:
        ctx, events = self.ctx, self.ctx.events
        fields = {"step": step["id"], "index": step["index"]}
        if ctx.control.cancelled:
            self.status = CANCELLED
            ctx.control.answer()
        if step.get("skip"):
            # Decided when the plan was made: `when`, --from, --until, --only.
            self.counts["skipped"] += 1
            events.emit("step.skipped", **fields, **step["skip"])
            return
        if self.status != OK and not step.get("always"):
            return
        ctx.step = step["index"]
        ctx.keys.pop(step["index"], None)  # its files are what they are now
        remembered = self._remembered(step)
        taken_over = step["id"] in ctx.taken_over
        if remembered and not (step.get("service") or step.get("wait_for")):
            self.counts["skipped"] += 1
            events.emit(
                "step.skipped", **fields, reason="journal", detail="in run " + remembered, run=remembered
            )
            return
        ctx.look_ahead = lambda: self._look_ahead(step["index"] + 1)
        because = ctx.because.get(step["id"])
        events.emit("step.started", **fields, name=step["name"], attempt=1, because=because)
        began = time.monotonic()
        try:
            reason = steps.run(ctx, step, bool(remembered) or taken_over)
        except StepError as error:
            self._failed(step, error, began)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            self._failed(step, StepError("start", str(error)), began)
        except (ValueError, TypeError, LookupError, ArithmeticError) as error:
            # A mistake of ours, or a value that nobody has thought of, must not cost the clean-up.
            detail = "the engine cannot run this step: %s: %s" % (type(error).__name__, error)
            self._failed(step, StepError("engine", detail), began)
        except Cancelled:
            self._cancelled(step, began)
        else:
            if reason:
                self.counts["skipped"] += 1
                events.emit("step.skipped", **fields, reason=reason)
            else:
                self._done(step, bool(remembered), began)
        ctx.forget_finished()

    def _done(self, step: Step, remembered: bool, began: float) -> None:
        ctx = self.ctx
        if step["commands"] and step.get("guard") is None and not step.get("always") and not remembered:
            # On disk before the next step starts, and before anybody is told.
            try:
                ctx.record(step["id"], step_commands.key_of(ctx, step), ctx.run)
            except OSError as error:
                if error.errno not in NO_SPACE:
                    raise
                detail = "the step is done, but this cannot be recorded: %s" % error.strerror
                self._failed(step, StepError("journal", detail), began)
                return
        self.counts["ok"] += 1
        ctx.events.emit(
            "step.finished", step=step["id"], index=step["index"], status=OK, duration=_since(began)
        )
        guard = (step.get("guard") or "").strip() or "false"
        # Of a service, its own state says whether it is done.
        if step["commands"] and guard not in NEVER and not step.get("always"):
            self._ask_again(step)

    def _ask_again(self, step: Step) -> None:
        """Warn when the guard of a step that has just been done does not hold: it will never be skipped."""
        log = paths.log_path(self.ctx.directory, step["index"], step["id"])
        with contextlib.suppress(StepError, Cancelled, OSError):
            before = os.path.getsize(log)
            if not step_commands.guard_holds(self.ctx, step):
                message = (
                    "%s: its skip_if does not hold afterwards, so the next run repeats it and all later steps"
                )
                message = ": ".join([message % step["id"], *fileio.tail(log, 1, begin=before)])
                self.ctx.events.emit("warning", step=step["id"], message=message)

    def _remembered(self, step: Step) -> str:
        """The run that has done the step's commands, as the journal knows it; "" when none has."""
        if step.get("guard") is not None or step.get("always") or not step["commands"]:
            return ""
        entry = self.ctx.journal.find(step["id"], step_commands.key_of(self.ctx, step))
        return str(entry["run"]) if entry else ""

    def _failed(self, step: Step, error: StepError, began: float) -> None:
        self.failures.append(step["id"])
        command = step["commands"][error.command] if error.command is not None else None
        log = paths.log_path(self.ctx.directory, step["index"], step["id"])
        self.ctx.events.emit(
            "step.finished",
            step=step["id"],
            index=step["index"],
            status=FAILED,
            cause=error.cause,
            detail=error.detail,
            exit=error.exit,
            command=command
            and {name: command[name] for name in ("source", "line", "file") if name in command},
            duration=_since(began),
            tail=fileio.tail(log),
            tolerated=True if step.get("on_failure") == "continue" else None,
            later=True if self.status != OK else None,
        )
        if self.status == OK and step.get("on_failure") != "continue":
            self.status = FAILED

    def _cancelled(self, step: Step, began: float) -> None:
        self.ctx.control.answer()
        self.status = CANCELLED
        self.ctx.events.emit(
            "step.finished",
            step=step["id"],
            index=step["index"],
            status=CANCELLED,
            cause="cancelled",
            duration=_since(began),
        )

    def _look_ahead(self, index: int) -> None:
        """Start the process of the step at this index, if it is sure to need one."""
        for step in self.ctx.plan["steps"][index : index + 1]:
            if self.ctx.prepared is None and not (
                step.get("skip") or step.get("files") or self._remembered(step)
            ):
                self.ctx.prepared = step_process.ahead(self.ctx, step, steps.alone(self.ctx, step))

    def _check(self) -> None:
        """Evaluate the guards again: which steps would run a second time?"""
        again = []
        for step in self.ctx.plan["steps"]:
            if step.get("skip") or step.get("guard") is None or not step["commands"]:
                continue
            try:
                if not step_commands.guard_holds(self.ctx, step):
                    again.append({"step": step["id"], "detail": "its skip_if does not hold afterwards"})
            except StepError as error:
                again.append({"step": step["id"], "detail": error.detail})
            except Cancelled:
                self.status = CANCELLED
                return
        self.ctx.forget_finished()
        self.ctx.events.emit("check.finished", again=again)
        if again:
            self.status = FAILED


def _since(began: float) -> float:
    return round(time.monotonic() - began, 4)
