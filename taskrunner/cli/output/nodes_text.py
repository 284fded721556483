"""Text about the nodes of a run: how each ended, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from taskrunner.cli.output.format import GO_ON, duration, failure

if TYPE_CHECKING:
    from taskrunner.events import NodeFinished, StepFinished

MARKS = {"ok": "✓", "failed": "✗", "unreachable": "✗", "locked": "✗", "cancelled": "■", "skipped": "–"}


class About(NamedTuple):
    """What failures are explained with: a node's task file, and the command that goes on at its step."""

    file: Callable[[str], str]
    resume: Callable[[str, str], str]


def outcome(event: NodeFinished) -> str:
    """How a node ended, in one line."""
    if event["message"]:
        return event["message"]
    if not event["run"]:
        return "not begun"
    counts = f"{event['ok']} ok, {event['skipped']} skipped, {event['failed']} failed"
    return f"{counts} in {duration(event['duration'])}"


def explained(node: str, event: NodeFinished, failed: Sequence[StepFinished], context: About) -> list[str]:
    """What else there is to say of a node that did not do it: why, what was printed, how to go on."""
    lines = event["hint"].splitlines()
    ends = []
    for step in failed:
        explanation = failure(step, context.file(node), partial(context.resume, node), tail=False)
        lines += [line for line in explanation if not line.startswith(GO_ON)]
        ends += [line for line in explanation if line.startswith(GO_ON)]
    lines += ["| " + line for line in event["output"].splitlines()]
    return ["    " + line for line in [*lines, *ends]]


def table(nodes: Sequence[str], ends: dict[str, NodeFinished], most: int = 0) -> list[str]:
    """A line for each node: how it ended; of more than `most` nodes for those that are not done."""
    width = max(map(len, nodes), default=0)
    counts: dict[str, int] = {}
    lines = []
    for node in nodes:
        event = ends.get(node)
        status = event["status"] if event else "skipped"
        counts[status] = counts.get(status, 0) + 1
        if status == "ok" and 0 < most < len(nodes):
            continue
        cell = outcome(event) if event else "not begun"
        lines.append(f"{MARKS[status]} {node:<{width}}  {status:<11}  {cell}")
    total = ", ".join(f"{number} {status}" for status, number in counts.items())
    return [*lines, f"{len(nodes)} nodes: {total}"]
