"""A schedule as JSON: for machines, and beside the results, so that they can be analysed without the plan."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taskrunner.analysis.load import SCHEDULE
from taskrunner.experiments import comparisons
from taskrunner.experiments.schedule import Schedule
from taskrunner.inference.output import write
from taskrunner.inference.sweep.measured import read


def as_dict(planned: Schedule) -> dict[str, Any]:
    """Everything of a schedule that others may want to know."""
    return {
        "plan": planned.plan.name,
        "title": planned.plan.title,
        "blocks": planned.blocks,
        "starts": [
            {
                "number": start.number,
                "block": start.block,
                "minutes": start.minutes,
                "why": start.why,
                "configuration": start.configuration.key,
                "title": start.configuration.title,
                "mode": start.configuration.mode,
                "variables": dict(start.configuration.variables),
                "patterns": list(start.patterns),
            }
            for start in planned.starts
        ],
        "setup_minutes": planned.setup_minutes,
        "lower_bound_minutes": planned.bound,
        "measuring_minutes": planned.measuring_minutes,
        "cost": planned.cost,
        "efa_bandwidth_gbps": planned.plan.infrastructure("efa_bandwidth_gbps"),
        "gpu_count": planned.plan.infrastructure("gpu_count_per_node")
        or planned.plan.infrastructure("tp_size"),
        "mlflow_experiment": (planned.plan.file.mlflow_config or {}).get("experiment_name"),
        "tools": {pattern.id: pattern.tool for pattern in planned.plan.patterns if pattern.tool},
        "cannot_run": {name: one.why for name, one in planned.verdicts.items() if not one.runs},
        "queue": {name: one.why for name, one in planned.verdicts.items() if one.queues},
        "comparisons": [
            {**one._asdict(), "pairs": [[a.id, b.id] for a, b in one.pairs]} for one in planned.comparisons
        ],
        "detectable": comparisons.detectable(planned.blocks, planned.replicated),
    }


def save(planned: Schedule, folder: Path, command: Sequence[str] = (), options: Sequence[str] = ()) -> None:
    """Write it beside the results; `folder` is theirs. `command` measures: the names of patterns stand
    between it and its `options`. Without one, the last that did is kept.
    """
    place = folder / SCHEDULE
    before = read(place) or {}
    words = {"command": shlex.join(command), "options": shlex.join(options)}
    if not command:
        words = {name: value for name, value in before.items() if name in words}
    now = {**as_dict(planned), **words}
    if now != before:
        write(str(place), json.dumps(now, indent=1))
