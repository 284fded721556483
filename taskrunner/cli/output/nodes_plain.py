"""Shows runs on many nodes: plain lines, JSON lines, or a live table."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from taskrunner.cli import typed
from taskrunner.cli.output.format import detail, duration, skipped, stamp
from taskrunner.cli.output.nodes_text import About, explained, outcome, table

if TYPE_CHECKING:
    from taskrunner.events import Event, NodeEvent, NodeFinished, StepFinished

LONGEST_LINE = 1 << 16
"""Characters of a line that are waited for: what is longer is shown in pieces."""


class Renderer(Protocol):
    """Shows events of nodes. As a context manager it owns what it has drawn on the screen."""

    wants_output: bool | Literal["last"]

    def event(self, node: str, event: Event | NodeEvent) -> None: ...
    def note(self, text: str) -> None: ...
    def summary(self) -> None: ...
    def __enter__(self) -> object: ...
    def __exit__(self, *_: object) -> None: ...


def renderer(args: typed.Shown, nodes: Sequence[str], context: About) -> Renderer:
    """The renderer that the arguments and the terminal ask for."""
    if args.json:
        return JsonLines(args.verbose)
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not (args.verbose or args.quiet):
        from taskrunner.cli.output.nodes_live import Live

        return Live(nodes, context)
    return Plain(nodes, context, args.verbose, args.quiet)


class JsonLines:
    """Each event as a line of JSON, with the name of its node."""

    def __init__(self, output: bool) -> None:
        self.wants_output: bool | Literal["last"] = output

    def event(self, node: str, event: Event | NodeEvent) -> None:
        print(json.dumps({"node": node, **event}), flush=True)

    def note(self, text: str) -> None:
        print(json.dumps({"type": "note", "time": round(time.time(), 3), "message": text}), flush=True)

    def summary(self) -> None:
        """The nodes' last events are one."""

    def __enter__(self) -> object:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Plain:
    """Timestamped lines, each with its node; the output of a failed step comes whole, at its end."""

    def __init__(
        self, nodes: Sequence[str], context: About, output: bool = False, quiet: bool = False
    ) -> None:
        self.wants_output: bool | Literal["last"] = output
        self._width = max(map(len, nodes), default=0)
        self._nodes = list(nodes)
        self._quiet = quiet
        self._half: dict[str, str] = {}
        self._failed: dict[str, list[StepFinished]] = {}
        self._about = context
        self._ends: dict[str, NodeFinished] = {}

    def event(self, node: str, event: Event | NodeEvent) -> None:
        if event["type"] == "node.finished":
            self._ends[node] = event
            self._flush(node)
            if self._quiet and event["status"] == "ok":
                return
            self._say(node, event["time"], event["status"].upper(), outcome(event))
            for line in explained(node, event, self._failed.get(node, []), self._about):
                self._write(line)
            return
        if event["type"] == "step.finished" and event["status"] == "failed":
            self._failed.setdefault(node, []).append(event)
        if event["type"] == "output":
            *lines, self._half[node] = (self._half.get(node, "") + event["text"]).split("\n")
            if len(self._half[node]) > LONGEST_LINE:
                lines.append(self._half.pop(node))
            for line in lines:
                self._write(f"{node:<{self._width}} | {line}")
        elif self._quiet:
            return
        elif event["type"] == "step.started":
            self._say(node, event["time"], "RUN", event["step"])
        elif event["type"] == "step.skipped":
            self._say(node, event["time"], "SKIP", f"{event['step']} ({skipped(event)})")
        elif event["type"] == "step.finished":
            self._flush(node)
            why = f": {event['detail']}" if "detail" in event else ""
            tag = {"ok": "OK", "failed": "FAIL"}.get(event["status"], event["status"].upper())
            self._say(node, event["time"], tag, f"{event['step']} ({duration(event['duration'])}){why}")
        elif text := detail(event):
            self._say(node, event["time"], "INFO", text)

    def note(self, text: str) -> None:
        print(text, file=sys.stderr)

    def summary(self) -> None:
        for line in [] if self._quiet else table(self._nodes, self._ends):
            self._write(line)

    def _flush(self, node: str) -> None:
        half = self._half.pop(node, "")
        if half:
            self._write(f"{node:<{self._width}} | {half}")

    def _say(self, node: str, when: float, tag: str, text: str) -> None:
        self._write(f"{stamp(when)} [{tag}] {node}: {text}")

    def _write(self, line: str) -> None:
        print(line, flush=True)

    def __enter__(self) -> object:
        return self

    def __exit__(self, *_: object) -> None:
        pass
