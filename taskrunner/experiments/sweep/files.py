"""The task files of a sweep, one for each node."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from typing import Any

from taskrunner import packs
from taskrunner.errors import NotFoundError, UsageError, closest
from taskrunner.experiments.configurations import BY_PLAN
from taskrunner.experiments.schedule import Schedule
from taskrunner.experiments.sweep import first, second
from taskrunner.experiments.sweep.steps import LIB, TOKEN, Step, Sweep

NODE1, NODE2 = "node1", "node2"
RENDEZVOUS_PORT = 8380


@functools.cache
def serving() -> dict[str, Any]:
    """The variables of the serving packs, by name."""
    found: dict[str, Any] = {}
    for name in ("environment", "serving"):
        found |= json.loads((packs.folder() / "include" / f"{name}.json").read_text())["variables"]
    return found


def title(schedule: Schedule) -> str:
    """What the runs of a sweep are called, before their node."""
    return f"Sweep of {schedule.name}"


def task_files(
    schedule: Schedule, nodes: int = 1, values: Mapping[str, str] | None = None, since: float = 0.0
) -> dict[str, dict[str, Any]]:
    """The task file of each node; `values` are those of variables; what was
    measured before `since` does not count (seconds since the epoch).

    Raises NotFoundError for a variable that the serving packs do not have, UsageError for one of the plan's.
    """
    known = {*serving(), "RENDEZVOUS_PORT"}
    for name in values or {}:
        if name in BY_PLAN:
            raise UsageError(f"--env {name}: the plan decides it, for each pattern")
        if name not in known:
            raise NotFoundError(f"--env {name}: no such variable of the serving packs", closest(name, known))
    sweep = Sweep(schedule, nodes > 1, since)
    files = {NODE1: _file(schedule, NODE1, first.steps(sweep), values or {})}
    if sweep.two:
        files[NODE2] = _file(schedule, NODE2, second.steps(sweep), values or {})
    return files


def _file(schedule: Schedule, node: str, tasks: Iterable[Step], values: Mapping[str, str]) -> dict[str, Any]:
    return {
        "metadata": {
            "name": f"{title(schedule)}: {node}",
            "description": f"The sweep of {schedule.name} on {node}",
        },
        "include": [str(packs.folder() / "include" / f"{name}.json") for name in ("serving", "low-level")],
        "variables": {
            "SWEEP": {
                "default": "1",
                "description": "What tells this sweep's words from those of others",
            },
            "RENDEZVOUS_PORT": {"default": RENDEZVOUS_PORT, "description": "Port on node 1"},
            "RENDEZVOUS_TOKEN": {"default": "", "secret": True, "description": "What admits to it"},
            **values,
        },
        "services": {
            "rendezvous": {
                "name": f"rendezvous-{schedule.name}",
                "cwd": "<<ENV_DIR>>",
                "env": TOKEN,
                "command": f"exec {LIB} rendezvous serve --host <<NODE1_PRIVATE>> --port <<RENDEZVOUS_PORT>>"
                f" --state results/{schedule.name}/rendezvous-<<SWEEP>>.json",
                "ready": {"log": "rendezvous on", "timeout": "1m"},
            }
        },
        "tasks": list(tasks),
    }
