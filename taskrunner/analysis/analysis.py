"""All that is said of a sweep, as one document: for the terminal, the report and machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from taskrunner.analysis import alarms, layers, shapes, verdicts
from taskrunner.analysis.compare import compare
from taskrunner.analysis.load import METRICS, Measurement, Sweep
from taskrunner.analysis.spread import spread, starts

VERSION = 1


def analysis(sweep: Sweep) -> dict[str, Any]:
    """Comparisons with verdicts, the spread between starts by metric, modes, costs, alarms."""
    counting = sweep.counting()
    modes = shapes.modes(counting)
    tpot_parts = shapes.tpot_parts(counting)
    bandwidths = layers.bandwidths(sweep)
    return {
        "version": VERSION,
        "sweep": sweep.name,
        "plan": sweep.schedule.get("plan", ""),
        "measurements": len(sweep.measurements),
        "counting": len(counting),
        "left_out": [
            {"pattern": one.pattern, "block": one.block, "why": one.why}
            for one in sweep.measurements
            if one.why
        ],
        "problems": list(sweep.problems),
        "fingerprints_mixed": mixed(sweep),
        "spread": {metric: _spread(counting, metric) for metric in METRICS},
        "comparisons": compare(sweep),
        "modes": modes,
        "one_mode_per_start": shapes.one_mode_per_start(counting),
        "tpot_parts": tpot_parts,
        "bandwidths": bandwidths,
        "layers": layers.layers(sweep, bandwidths, tpot_parts),
        "transfer_cost": shapes.transfer_cost(shapes.usual(sweep)),
        "proxy_overhead": shapes.proxy_overhead(counting),
        "alarms": alarms.alarms(sweep, modes),
    }


def _spread(counting: Sequence[Measurement], metric: str) -> dict[str, float] | None:
    found = spread(starts(counting, metric))
    return None if found is None else {"sd": found.sd, "freedom": found.freedom}


def mixed(sweep: Sweep) -> list[str]:
    """Patterns whose results are of several fingerprints: other servers, settings or numbers of requests."""
    found: dict[str, set[str]] = {}
    for one in sweep.counting():
        found.setdefault(one.pattern, set()).add(str(one.record["metadata"].get("fingerprint")))
    return sorted(name for name, prints in found.items() if len(prints) > 1)


def alarming(document: dict[str, Any]) -> bool:
    """Whether anything calls for a closer look."""
    regressions = [
        one for one in document["comparisons"] if one.get("regression") and one["verdict"] == verdicts.DIFFERS
    ]
    return bool(document["alarms"] or regressions)
