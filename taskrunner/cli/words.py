"""How things are put into words for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taskrunner.events import RunFinished, StepPlanned, StepSkipped

SKIPPED = {
    "guard": "already true",
    "journal": "already done",
    "files": "already there",
    "service": "already so",
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


def skipped(event: StepSkipped | StepPlanned) -> str:
    """Why a step is not run."""
    detail = event.get("detail", "")
    if event["reason"] in ("from", "until", "only"):
        return f"{SKIPPED[event['reason']]} {detail}"
    separator = " " if event["reason"] == "journal" else ", "
    return SKIPPED[event["reason"]] + (separator + detail if detail else "")


def summary(event: RunFinished) -> str:
    """The last line of a run."""
    parts = [f"{event['ok']} ok", f"{event['skipped']} skipped", f"{event['failed']} failed"]
    ending = "cancelled: " if event["status"] == "cancelled" else ""
    return f"{ending}{', '.join(parts)} in {duration(event['duration'])}"
