"""The console that live views draw on: nothing that they show can move the cursor or change colours."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from taskrunner.cli.output.streams import harmless, raw, shown


class HarmlessConsole(Console):
    """A console whose colours and cursor are its own, whatever it shows."""

    def __init__(self) -> None:
        super().__init__(file=raw(sys.stdout), highlight=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            kept = segment.control or segment.text == "\n"
            yield segment if kept else Segment(shown(segment.text), segment.style)


def printable(line: str) -> str:
    """Without the control sequences that would move the cursor out of the region."""
    return "".join(c for c in harmless(line).expandtabs() if c.isprintable())
