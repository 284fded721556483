"""What a sweep says after each measurement: its figures, whether it counts, and what is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from taskrunner.cli.output.format import duration
from taskrunner.experiments import results
from taskrunner.experiments.schedule import Schedule
from taskrunner.experiments.sweep.steps import measuring

SHOWN = {"ttft": "TTFT", "tpot": "TPOT", "e2e_latency": "E2E"}


class Progress:
    """A remark (see output/remarks.py) on the steps that measure. `folder` has the plan's results in it; of
    those, what was measured before `since` is measured again.
    """

    def __init__(self, schedule: Schedule, folder: Path, since: float = 0.0) -> None:
        self._schedule, self._folder = schedule, folder
        self._cells = measuring(schedule)
        self._left = results.missing(results.rows(schedule, folder), since)

    def __call__(self, event: Any) -> str:
        cell = self._cells.get(event.get("step", ""))
        if cell is None or event["type"] != "step.finished":
            return ""
        row = results.of_cell(self._schedule, cell, self._folder)
        if not row.why:
            self._left.discard((cell.pattern.id, cell.start.number))
        figures = [f"{name} p50 {value:.2f} ms" for key, name in SHOWN.items() if (value := row.figure(key))]
        doubt = [f"does not count: {row.why}"] if row.why else []
        left = what_is_left(self._schedule, results.left(self._schedule, self._left, cell.start.number))
        return f"{cell.pattern.id}, block {cell.block}: {', '.join([*figures, *doubt])}; {left}"


def what_is_left(schedule: Schedule, left: results.Left) -> str:
    """What a sweep still has to do, by the plan's estimates and what was measured."""
    text = f"{left.measurements} measurements and {left.starts} starts are left"
    if not left.measurements:
        return text
    price: float | None = schedule.plan.file.price_per_hour
    cost = f", {price * schedule.nodes * left.seconds / 3600:.0f} to pay" if price else ""
    return f"{text}: about {duration(left.seconds)}{cost}"
