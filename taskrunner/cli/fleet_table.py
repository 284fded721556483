"""The live table of nodes on a terminal: those at work, and how many are done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from rich.console import Console, RenderableType
from rich.live import Live as Region
from rich.table import Table
from rich.text import Text

from taskrunner.cli.fleet import MARKS, About, explained, outcome, table
from taskrunner.cli.terminal import printable
from taskrunner.cli.words import detail, duration

if TYPE_CHECKING:
    from taskrunner.events import Event, NodeEvent, NodeFinished, StepFinished

REFRESH_PER_SECOND = 4
RESERVED = 6
"""Lines of the screen that the table leaves alone."""
STYLES = {"ok": "green", "cancelled": "yellow", "skipped": "dim"}


class Row:
    """What is known of a node at work."""

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.step = self.line = self.half = ""
        self.index = 0


class Live:
    """A row for each node at work: its step, for how long, and the last line of output."""

    wants_output: bool | Literal["last"] = "last"

    def __init__(self, nodes: Sequence[str], steps: int, about: About) -> None:
        self._console = Console(highlight=False)
        self._nodes = list(nodes)
        self._count = steps
        self._about = about
        self._failed: dict[str, list[StepFinished]] = {}
        self._rows: dict[str, Row] = {}
        self._ends: dict[str, NodeFinished] = {}
        self._region = Region(
            get_renderable=self._view, console=self._console, refresh_per_second=REFRESH_PER_SECOND,
            transient=True,
        )  # fmt: skip

    def __enter__(self) -> object:
        self._region.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.clear()
        self._region.stop()

    def event(self, node: str, event: Event | NodeEvent) -> None:
        if event["type"] == "node.finished":
            self._rows.pop(node, None)
            self._ends[node] = event
            if event["status"] not in ("ok", "skipped"):
                self._console.print(Text(f"{MARKS[event['status']]} {node}  {outcome(event)}", style="red"))
                for line in explained(node, event, self._failed.get(node, []), self._about):
                    self._console.print(Text(line))
            return
        row = self._rows.setdefault(node, Row())
        if event["type"] == "run.started":
            self._count = len(event["steps"])
        elif event["type"] == "step.started":
            row.step, row.index, row.since = event["step"], event["index"], time.monotonic()
            row.line = row.half = ""
        elif event["type"] == "step.finished" and event["status"] == "failed":
            self._failed.setdefault(node, []).append(event)
        elif event["type"] == "output":
            *lines, row.half = (row.half + event["text"]).split("\n")
            row.line = next((line for line in reversed([*lines, row.half]) if line.strip()), row.line)
            row.half = row.half[-4096:]
        elif text := detail(event):
            row.line = text

    def summary(self) -> None:
        for line in table(self._nodes, self._ends)[-1 if len(self._nodes) > self._console.height else 0 :]:
            status = next((end["status"] for name, end in self._ends.items() if f" {name} " in line), "")
            self._console.print(Text(line, style=STYLES.get(status, "red" if status else "bold")))

    def _view(self) -> RenderableType:
        if not self._rows and len(self._ends) == len(self._nodes):
            return Text("")
        grid = Table.grid(padding=(0, 2))
        for _ in range(5):
            grid.add_column(no_wrap=True)
        # Drawn by a thread of the library while rows come and go.
        rows = list(self._rows.items())
        shown = max(1, self._console.height - RESERVED)
        for name, row in rows[:shown]:
            took = duration(time.monotonic() - row.since)
            place = f"{row.index + 1}/{self._count}" if row.step else ""
            room = max(10, self._console.width - 50)
            grid.add_row(
                name, Text(place, style="dim"), row.step or "connecting", Text(took, style="cyan"),
                Text(printable(row.line)[:room], style="dim"),
            )  # fmt: skip
        waiting = len(self._nodes) - len(self._ends) - len(rows)
        more = f"{len(rows) - shown} more at work, " if len(rows) > shown else ""
        done = f"{more}{waiting} waiting, {len(self._ends)} of {len(self._nodes)} done"
        grid.add_row("", "", Text(done, style="dim"))
        return grid
