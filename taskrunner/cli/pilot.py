"""What the pilot of a plan has measured: by how much starts of one configuration differ."""

from __future__ import annotations

import json
from pathlib import Path

from taskrunner.experiments import comparisons
from taskrunner.experiments.schedule import Schedule
from taskrunner.inference.output import write

SPREAD = "spread.json"


def judge(folder: Path) -> dict[str, float]:
    """The spread between the starts in a pilot's folder by metric, on logarithms; also kept there."""
    from taskrunner.analysis.load import METRICS, load
    from taskrunner.analysis.spread import between, starts

    counting = load(folder).counting()
    found = {metric: between(starts(counting, metric)) for metric in METRICS}
    spreads = {metric: value for metric, value in found.items() if value is not None}
    write(str(folder / SPREAD), json.dumps(spreads))
    return spreads


def known(folder: Path) -> float | None:
    """The largest spread that the pilot of a plan has found; None without one."""
    try:
        values = json.loads((folder / SPREAD).read_text())
        return max(float(value) for value in values.values())
    except (OSError, ValueError, AttributeError, TypeError):
        return None


def lines(planned: Schedule, spreads: dict[str, float], replicated: int) -> list[str]:
    """What that means for the plan."""
    text = []
    for metric, spread in spreads.items():
        told = ", ".join(
            f"{blocks} blocks {least:.1%}"
            for blocks in (2, 3, 5)
            if (least := comparisons.detectable(blocks, replicated, spread)) is not None
        )
        text.append(
            f"{metric}: two starts differ by {spread:.1%}: found in four of five sweeps, roughly: {told}"
        )
    return text
