"""The cells of a schedule: a pattern in a block, or a tool's run of one size. Each has one result."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from taskrunner.experiments.configurations import digest
from taskrunner.experiments.order import Start
from taskrunner.experiments.patterns import Measurement
from taskrunner.experiments.schedule import Schedule
from taskrunner.experiments.tools import Run


class Cell(NamedTuple):
    """A pattern in a block, and the start whose servers it is measured on; `number` counts from 1."""

    number: int
    start: Start
    pattern: Measurement

    @property
    def block(self) -> int:
        return self.start.block


def cells(schedule: Schedule) -> Iterator[Cell]:
    """Every measurement of a schedule, in its order."""
    numbers = itertools.count(1)
    for start in schedule.starts:
        for name in start.patterns:
            yield Cell(next(numbers), start, schedule.patterns[name])


def fingerprint(schedule: Schedule, cell: Cell) -> str:
    """What a result must be of to count: the servers' arguments, and the client's."""
    pattern = cell.pattern
    client = [pattern.prompt_tokens, pattern.max_tokens, pattern.concurrency]
    return digest(
        [cell.start.configuration.key, *client, schedule.requests(pattern), schedule.warmup(pattern)]
    )


def tool_fingerprint(run: Run) -> str:
    """The same for a tool."""
    return digest(run.words)


def place(schedule: Schedule, cell: Cell) -> str:
    """The folder of a cell's results, below results/."""
    return f"{schedule.name}/{cell.pattern.id}/{cell.block}"


def tool_place(schedule: Schedule, run: Run) -> str:
    """The same for a tool."""
    return f"{schedule.name}/{run.pattern.id}/{run.part}"
