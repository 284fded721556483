"""The live table of nodes on a terminal: those at work, and how many are done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from rich.console import Group, RenderableType
from rich.live import Live as Region
from rich.table import Table
from rich.text import Text

from taskrunner.cli.output.console import HarmlessConsole, printable
from taskrunner.cli.output.format import detail, duration
from taskrunner.cli.output.nodes_text import MARKS, About, explained, outcome, table

if TYPE_CHECKING:
    from taskrunner.events import Event, NodeEvent, NodeFinished, StepFinished

REFRESH_PER_SECOND = 4
RESERVED = 6
"""Lines of the screen that the table leaves alone."""


class Row:
    """What is known of a node at work."""

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.step = self.line = self.half = ""
        self.index = self.count = 0


class Live:
    """A row for each node at work: its step, for how long, and the last line of output."""

    wants_output: bool | Literal["last"] = "last"

    def __init__(self, nodes: Sequence[str], context: About) -> None:
        self._console = HarmlessConsole()
        self._nodes = list(nodes)
        self._about = context
        self._failed: dict[str, list[StepFinished]] = {}
        self._rows: dict[str, Row] = {}
        self._ends: dict[str, NodeFinished] = {}
        self._region = Region(
            get_renderable=self._view,
            console=self._console,
            refresh_per_second=REFRESH_PER_SECOND,
            transient=True,
        )

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
            row.count = len(event["steps"])
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

    def note(self, text: str) -> None:
        self._console.print(Text(text, style="yellow"))

    def summary(self) -> None:
        for line in table(self._nodes, self._ends, most=self._console.height - RESERVED):
            style = {"✓": "green", "✗": "red", "■": "yellow"}.get(line[:1], "bold")
            self._console.print(Text(line, style=style))

    def _view(self) -> RenderableType:
        if not self._rows and len(self._ends) == len(self._nodes):
            return Text("")
        # Drawn by a thread of the library while rows come and go.
        rows = list(self._rows.items())
        shown = max(1, self._console.height - RESERVED)
        lines = [
            (
                name,
                f"{row.index + 1}/{row.count}" if row.step else "",
                row.step or "connecting",
                duration(time.monotonic() - row.since),
                printable(row.line),
            )
            for name, row in rows[:shown]
        ]
        grid = Table.grid(padding=(0, 2), expand=True)
        for column in range(4):
            # The output alone gives way to a narrow terminal.
            grid.add_column(no_wrap=True, min_width=max((len(line[column]) for line in lines), default=0))
        grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1, style="dim")
        for line in lines:
            grid.add_row(*map(Text, line))
        waiting = len(self._nodes) - len(self._ends) - len(rows)
        more = f"{len(rows) - shown} more running, " if len(rows) > shown else ""
        done = f"{more}{waiting} waiting, {len(self._ends)} of {len(self._nodes)} done"
        return Group(grid, Text(done, style="dim", no_wrap=True))
