"""Two sweeps of one plan: a version, an image or an instance type against another."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from taskrunner.analysis.compare import Asked, compare_all
from taskrunner.analysis.load import METRICS, Measurement, Sweep

OTHER = "other/"
"""What stands before the names of the other sweep's patterns and configurations."""


def against(sweep: Sweep, other: Sweep, margin: str = "5 %") -> list[dict[str, Any]]:
    """This sweep against another, metric by metric, over the patterns that both have.

    `regression` is true where this one is slower.
    """
    renamed = [
        one._replace(pattern=OTHER + one.pattern, configuration=OTHER + one.configuration)
        for one in other.counting()
    ]
    names = sorted(_names(sweep.counting()) & _names(other.counting()))
    asked = [
        Asked(
            metric,
            f"{sweep.name} against {other.name}",
            metric,
            [(OTHER + name, name) for name in names],
            margin=margin,
            smallest_effect=margin,
        )
        for metric in METRICS
    ]
    found = compare_all([*sweep.counting(), *renamed], asked)
    return [{**one, "regression": one.get("ratio", 1.0) > 1.0} for one in found]


def _names(measurements: Iterable[Measurement]) -> set[str]:
    return {one.pattern for one in measurements}
