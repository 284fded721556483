"""What a sweep says after each measurement: its figures, whether it counts, and what is left."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from taskrunner.cli.output.format import duration
from taskrunner.experiments import results
from taskrunner.experiments.schedule import Schedule
from taskrunner.experiments.sweep.steps import ROUNDS, key_of, measuring

CENTS_BELOW = 10.0
"""Of the currency of `price_per_hour`: a smaller sum is shown with its cents."""
SHOWN = {"ttft": "TTFT", "tpot": "TPOT", "e2e_latency": "E2E"}


class Progress:
    """A remark (see output/remarks.py) on the steps that measure. `folder` has the plan's results in it; of
    those, what was measured before `since` is measured again.
    """

    def __init__(self, schedule: Schedule, folder: Path, pairs: int = 1, since: float = 0.0) -> None:
        self._schedule, self._folder, self._pairs = schedule, folder, pairs
        self._cells = measuring(schedule)
        self._left = results.missing(results.rows(schedule, folder), since)
        self._starts = {key_of(start, again): start.number for start in schedule.starts for again in ROUNDS}
        self._begun: dict[int, float] = {}
        """When the first step of a start began."""
        self._taken: dict[int, float] = {}
        """Minutes from then to the first measurement of the start."""

    def __call__(self, event: Any) -> str:
        step = event.get("step", "")
        if (start := self._starts.get(step.partition("-")[0])) is not None:
            self._begun.setdefault(start, event["time"])
        cell = self._cells.get(step)
        if cell is None or event["type"] != "step.finished":
            return ""
        took = event["time"] - event["duration"] - self._begun[cell.start.number]
        self._taken.setdefault(cell.start.number, max(0.0, took) / 60)
        row = results.of_cell(self._schedule, cell, self._folder)
        if not row.why:
            self._left.discard((cell.pattern.id, cell.start.number))
        figures = [f"{name} p50 {value:.2f} ms" for key, name in SHOWN.items() if (value := row.figure(key))]
        doubt = [f"does not count: {row.why}"] if row.why else []
        a_start = statistics.fmean(self._taken.values())
        left = results.left(self._schedule, self._left, cell.start.number, a_start)
        rest = what_is_left(self._schedule, left, self._pairs)
        return f"{cell.pattern.id}, block {cell.block}: {', '.join([*figures, *doubt])}; {rest}"


def what_is_left(schedule: Schedule, left: results.Left, pairs: int) -> str:
    """What `pairs` of nodes still have to do, by the plan's estimates and what was measured."""
    every = sum(len(start.patterns) for start in schedule.starts)
    text = (
        f"{left.measurements} of {every} measurements and {left.starts} of {len(schedule.starts)} starts left"
    )
    if not left.measurements:
        return text
    price: float | None = schedule.plan.file.price_per_hour
    cost = (price or 0.0) * schedule.nodes * left.seconds / 3600
    to_pay = f", {cost:.{0 if cost >= CENTS_BELOW else 2}f} to pay" if price else ""
    return f"{text}: about {duration(left.seconds / pairs)}{to_pay}"
