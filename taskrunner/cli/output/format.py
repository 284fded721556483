"""How things are put into words for people."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taskrunner.events import Event, NodeEvent, RunFinished, StepFinished, StepPlanned, StepSkipped

Resume = Callable[[str], str]
"""From a step's id to the command that goes on there."""

GO_ON = "to resume: "

SKIPPED = {
    "guard": "skip_if holds",
    "journal": "already done",
    "files": "already there",
    "service": "already in the wanted state",
    "when": "does not apply",
    "from": "before",
    "until": "after",
    "only": "not in",
}


def duration(seconds: float) -> str:
    """0.4s, 12s, 3m05s, 2h07m."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def stamp(when: float) -> str:
    """A time, in seconds since the epoch, as it is here."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))


def skipped(event: StepSkipped | StepPlanned) -> str:
    """Why a step is not run."""
    detail = event.get("detail", "")
    if event["reason"] in ("from", "until", "only"):
        return f"{SKIPPED[event['reason']]} {detail}"
    separator = " " if event["reason"] == "journal" else ", "
    return SKIPPED[event["reason"]] + (separator + detail if detail else "")


def runs_again(because: str) -> str:
    """Why a step that was done before is run."""
    return f"runs again because {because} ran"


def summary(event: RunFinished) -> str:
    """The last line of a run."""
    parts = [f"{event['ok']} ok", f"{event['skipped']} skipped", f"{event['failed']} failed"]
    ending = "cancelled: " if event["status"] == "cancelled" else ""
    return f"{ending}{', '.join(parts)} in {duration(event['duration'])}"


def detail(event: Event | NodeEvent) -> str:
    """What the less common events say, "" for those that are shown otherwise."""
    if event["type"] == "run.started" and "previous" in event:
        return f"resuming run {event['previous']}, whose engine was lost"
    if event["type"] == "step.retrying":
        return (
            f"{event['step']}: {event['detail']}; attempt {event['attempt']} of"
            f" {event['attempts']} in {duration(event['delay'])}"
        )
    if event["type"] == "service":
        return f"service {event['name']} {event['state']} (pid {event['pid']})"
    if event["type"] == "waiting":
        return f"{event['step']}: waiting for {event['for']}"
    if event["type"] == "connection":
        return event["detail"] + ("; the run continues there" if event["state"] == "lost" else "")
    if event["type"] == "warning":
        return event["message"]
    if event["type"] == "check.finished":
        if not event["again"]:
            return "idempotent: no guarded step would run a second time"
        steps = "; ".join(f"{item['step']} ({item['detail']})" for item in event["again"])
        return f"not idempotent, these steps would run again: {steps}"
    return ""


def failure(event: StepFinished, file: str, resume: Resume, tail: bool) -> list[str]:
    """What a failed step needs said: its command, the end of its output, how to go on."""
    lines = []
    command = event.get("command")
    if command:
        first, *rest = command["source"].splitlines() or [""]
        lines.append(f"{command.get('file', file)}:{command['line']}: {first}")
        lines += ["  " + line for line in rest[:5]] + ["  ..."] * (len(rest) > 5)
    if tail:
        lines += ["| " + line for line in event.get("tail", ())]
    if not (event.get("tolerated") or event.get("later")):
        lines.append(GO_ON + resume(event["step"]))
    return lines
