"""The live view on a terminal: what is done scrolls up, what runs moves below."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Literal

from rich.console import Group, RenderableType
from rich.live import Live as Region
from rich.markup import escape
from rich.spinner import Spinner
from rich.text import Text

from taskrunner.cli.output.console import HarmlessConsole, printable
from taskrunner.cli.output.format import Resume, detail, duration, failure, skipped, summary

if TYPE_CHECKING:
    from taskrunner.engine.plan import Plan
    from taskrunner.events import Event

TAIL_LINES = 4
REFRESH_PER_SECOND = 12
SHOWN_AT_ONCE = 64 * 1024


class Live:
    """One line for each step with its state and time; the running one with its last output."""

    wants_output: bool | Literal["last"] = "last"

    def __init__(self, plan: Plan, resume: Resume) -> None:
        self._console = HarmlessConsole()
        self._names = {step["id"]: step["name"] for step in plan.get("steps", ())}
        self._count = len(self._names)
        self._file = plan.get("file", "")
        self._resume = resume
        self._running: str | None = None
        self._since = 0.0
        self._state = ""
        self._done = 0
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._half = ""
        self._spinner = Spinner("dots", style="cyan")
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
        self._running = None
        self._region.stop()

    def note(self, text: str) -> None:
        self._console.print(Text(text, style="yellow"))

    def event(self, event: Event) -> None:
        if event["type"] == "step.started":
            self._running, self._since, self._state = event["step"], time.monotonic(), ""
            self._since -= max(0.0, time.time() - event["time"])
            self._tail.clear()
            self._half = ""
        elif event["type"] == "output":
            self._take(event["text"])
        elif event["type"] == "step.skipped":
            self._finish("[dim]–[/]", event["step"], f"[dim]{escape(skipped(event))}[/]")
        elif event["type"] == "step.finished":
            took = duration(event["duration"])
            if event["status"] == "ok":
                self._finish("[green]✓[/]", event["step"], f"[green]{took}[/]")
            else:
                why = escape(event.get("detail", event["status"]))
                self._finish("[red]✗[/]", event["step"], f"[red]{why}[/] [dim]after {took}[/]")
            if event["status"] == "failed":
                for line in failure(event, self._file, self._resume, tail=True):
                    self._console.print(Text("    " + line, style="" if line[:2] == "| " else "bold"))
        elif event["type"] == "run.finished":
            self._running = None
            style = {"ok": "green", "failed": "red"}.get(event["status"], "yellow")
            self._console.print(Text(summary(event), style=f"bold {style}"))
        elif event["type"] == "service" or event["type"] == "waiting":
            self._state = detail(event)
        elif text := detail(event):
            self._console.print(Text(text, style="yellow"))

    def _finish(self, mark: str, step: str, outcome: str) -> None:
        self._running = None
        self._done += 1
        self._console.print(f"{mark} {self._title(step)}  {outcome}", soft_wrap=True)

    def _title(self, step: str) -> str:
        name = self._names.get(step, step)
        return escape(step) if name == step else f"{escape(step)}  [dim]{escape(name)}[/]"

    def _take(self, text: str) -> None:
        # Only the last lines are shown: the rest of a flood need not be looked at.
        lines = (self._half + text)[-SHOWN_AT_ONCE:].split("\n")
        self._half = lines.pop().rsplit("\r", 1)[-1][-4096:]
        self._tail.extend(line.rstrip("\r").rsplit("\r", 1)[-1] for line in lines if line.strip())

    def _view(self) -> RenderableType:
        if self._running is None:
            return Text("")
        took = duration(time.monotonic() - self._since)
        title = f"{self._title(self._running)}  [cyan]{took}[/] [dim]{self._done + 1}/{self._count}[/]"
        if self._state:
            title += f" [dim]{escape(self._state)}[/]"
        self._spinner.update(text=Text.from_markup(title))
        width = self._console.width - 6
        tail = [*self._tail, self._half] if self._half.strip() else list(self._tail)
        lines = [
            Text("    " + printable(line)[:width], style="dim", no_wrap=True, overflow="crop")
            for line in tail[-TAIL_LINES:]
        ]
        return Group(self._spinner, *lines)
