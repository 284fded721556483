"""Shows the events of a run: plain lines, JSON lines, or (in `terminal`) a live view."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Literal, Protocol

from taskrunner.cli import typed
from taskrunner.cli.output.format import (
    Resume,
    detail,
    duration,
    failure,
    runs_again,
    skipped,
    stamp,
    summary,
)
from taskrunner.cli.output.streams import write_output

if TYPE_CHECKING:
    from taskrunner.engine.plan import Plan
    from taskrunner.events import Event, StepFinished


class Renderer(Protocol):
    """Shows events. As a context manager it owns what it has drawn on the screen."""

    wants_output: bool | Literal["last"]

    def event(self, event: Event) -> None: ...
    def note(self, text: str) -> None: ...
    def __enter__(self) -> object: ...
    def __exit__(self, *_: object) -> None: ...


def renderer(args: typed.Shown, plan: Plan, resume: Resume) -> Renderer:
    """The renderer that the arguments and the terminal ask for."""
    if args.json:
        return JsonLines(args.verbose)
    if args.quiet:
        return Quiet(plan, resume)
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not args.verbose:
        from taskrunner.cli.output.run_live import Live

        return Live(plan, resume)
    return Plain(plan, resume, args.verbose)


class JsonLines:
    """Each event as the line of JSON that it is."""

    def __init__(self, output: bool) -> None:
        self.wants_output: bool | Literal["last"] = output

    def event(self, event: Event) -> None:
        print(json.dumps(event), flush=True)

    def note(self, text: str) -> None:
        print(json.dumps({"type": "note", "time": round(time.time(), 3), "message": text}), flush=True)

    def __enter__(self) -> object:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Plain:
    """Timestamped lines for logs and CI: [RUN] [SKIP] [OK] [FAIL] [DONE]."""

    def __init__(self, plan: Plan, resume: Resume, output: bool = False) -> None:
        self.wants_output: bool | Literal["last"] = output
        self._names = {step["id"]: step["name"] for step in plan.get("steps", ())}
        self._guarded = {step["id"] for step in plan.get("steps", ()) if step.get("guard") is not None}
        self._file = plan.get("file", "")
        self._resume = resume
        self._announced: set[str] = set()
        self._middle_of_line = False

    def event(self, event: Event) -> None:
        kind = event["type"]
        if event["type"] == "step.started":
            # A guarded step is announced when its guard is known not to hold.
            if event["step"] not in self._guarded or "adopted" in event:
                self._announce(event["time"], event["step"], event.get("because", ""))
        elif event["type"] == "step.running":
            self._announce(event["time"], event["step"])
        elif event["type"] == "step.retrying":
            self._announce(event["time"], event["step"])
            self._line(event["time"], "INFO", detail(event))
        elif event["type"] == "step.skipped":
            self._line(event["time"], "SKIP", f"{self._title(event['step'])} ({skipped(event)})")
        elif event["type"] == "step.finished":
            self._announce(event["time"], event["step"])
            took = duration(event["duration"])
            if event["status"] == "ok":
                self._line(event["time"], "OK", f"{self._title(event['step'])} ({took})")
            else:
                self._line(event["time"], "FAIL", f"{self._title(event['step'])} ({took}): {_why(event)}")
                if event["status"] == "failed":
                    self._explain(event)
        elif event["type"] == "output":
            self._write(event["text"])
        elif event["type"] == "run.finished":
            self._line(event["time"], "DONE", summary(event))
        elif text := detail(event):
            warns = kind == "warning" or (event["type"] == "check.finished" and bool(event["again"]))
            self._line(event["time"], "WARN" if warns else "INFO", text)

    def note(self, text: str) -> None:
        self._line(time.time(), "INFO", text)

    def _announce(self, when: float, step: str, because: str = "") -> None:
        if step not in self._announced:
            self._announced.add(step)
            self._line(when, "RUN", self._title(step) + (f" ({runs_again(because)})" if because else ""))

    def _title(self, step: str) -> str:
        name = self._names.get(step, step)
        return step if name == step else f"{step} {name}"

    def _explain(self, event: StepFinished) -> None:
        for line in failure(event, self._file, self._resume, tail=not self.wants_output):
            print("    " + line, flush=True)

    def _write(self, text: str) -> None:
        write_output(text)
        self._middle_of_line = not text.endswith("\n")

    def _line(self, when: float, tag: str, text: str) -> None:
        if self._middle_of_line:
            sys.stdout.write("\n")
            self._middle_of_line = False
        print(f"{stamp(when)} [{tag}] {text}", flush=True)

    def __enter__(self) -> object:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Quiet(Plain):
    """Failures only."""

    def event(self, event: Event) -> None:
        if event["type"] == "step.finished" and event["status"] == "failed":
            self._line(event["time"], "FAIL", f"{self._title(event['step'])}: {_why(event)}")
            self._explain(event)
        elif event["type"] == "check.finished" and event["again"]:
            self._line(event["time"], "WARN", detail(event))

    def note(self, text: str) -> None:
        print(text, file=sys.stderr)


def _why(event: StepFinished) -> str:
    return event.get("detail", event["status"])
