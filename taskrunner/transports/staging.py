"""A step's `files` and `outputs` when it runs on another machine than the one that asks for it.

Files go there before the run starts and are known by their content, so that each goes once; the
engine then copies from them as it would from here. Outputs are collected there in the run's own
folder, and brought back when their step has ended.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from taskrunner.engine.plan import FilePair, Plan, Step
from taskrunner.engine.store import file_sync
from taskrunner.errors import StateError, UsageError

BY_HAND = "`runner get NODE PATH .` fetches what you choose"
Files = list[tuple[Path, dict[str, Any]]]
"""Files here, each with what the other side is told of it: name there, size, mode, digest."""


def stage(plan: Plan, folder: str, place: Callable[[Files], str]) -> Plan:
    """The plan as a node needs it. `folder` is that of the run there; `place` brings files to the
    node and says where they are. Raises UsageError for a file that is not here.
    """
    sent: dict[str, tuple[Path, dict[str, Any]]] = {}
    steps: list[Step] = []
    for planned in plan["steps"]:
        step = planned.copy()
        if step.get("files") and not step.get("skip"):
            step["files"] = [pair for wanted in step["files"] for pair in _pairs(step["id"], wanted, sent)]
        if step.get("outputs"):
            step["outputs"] = [
                {**pair, "to": f"{folder}/outputs/{step['index']}-{number}", "bring": pair["to"]}
                for number, pair in enumerate(step["outputs"])
            ]
        steps.append(step)
    if sent and not plan.get("dry"):
        root = place(list(sent.values()))
        for step in steps:
            if not step.get("skip"):
                for pair in step.get("files") or ():
                    pair["from"] = f"{root}/{pair['from']}"
    return {**plan, "steps": steps, "origin": os.getcwd()}


def _pairs(step: str, wanted: FilePair, sent: dict[str, tuple[Path, dict[str, Any]]]) -> Iterator[FilePair]:
    source = Path(wanted["from"])
    try:
        for path, file in described(source):
            name = f"{file['digest'] or 'folder'}-{stat.S_IMODE(file['mode']):o}"
            sent[name] = (path, {**file, "name": name})
            to = os.path.join(wanted["to"], file["name"]) if file["name"] else wanted["to"]
            yield {"from": name, "to": to, "name": path.name, "content": name}
    except UsageError as error:
        raise UsageError(f"step {step}: files: {error}") from error


def described(source: Path) -> Files:
    """The files at or below a path, with their digests. Raises UsageError."""
    try:
        entries = file_sync.listing(str(source))
        for file in entries:
            folder = stat.S_ISDIR(file["mode"])
            file["digest"] = "" if folder else file_sync.digest(str(source / file["name"]))
        return [(source / file["name"], file) for file in entries]
    except OSError as error:
        raise UsageError(f"{error.filename or source}: {error.strerror}") from error


def collect(plan: Plan, index: int, source: Plan, get: Callable[[str, str, str, bool], object]) -> None:
    """Bring the outputs of a step that has ended to where they are wanted here.

    They are those of the same step in `source`, the plan of the run that has done it. Relative places
    begin where the run was started, or in the current folder where that is not here. A plan without an
    `origin` is known from the node alone, and decides nothing: its places must be below the current
    folder, and what comes there is data only. `get` is given the path there, the one here, the name to use
    where that is a folder, and whether it is to be data only. Raises StateError.
    """
    origin, node = plan.get("origin"), plan.get("node", "")
    step = plan["steps"][index]
    done = next((other.get("outputs", []) for other in source["steps"] if other["id"] == step["id"]), [])
    for pair, there in zip(step.get("outputs", []), done, strict=False):
        name = os.path.basename(pair["from"].rstrip("/"))
        if origin is None and not (_below(pair["bring"]) and _below(name)):
            raise StateError(
                f"{step['id']}: the node wants its output in {pair['bring']}, outside of this folder",
                BY_HAND,
            )
        wanted = os.path.expanduser(pair["bring"])
        if node and node not in wanted:
            # One of several nodes: a folder for each.
            wanted = os.path.join(os.path.dirname(wanted), node, os.path.basename(wanted))
        target = os.path.join(origin if origin and os.path.isdir(origin) else "", wanted)
        get(there["to"], target, name, origin is None)


def _below(place: str) -> bool:
    """Whether a place is below the current folder, and shows in a listing of it."""
    parts = Path(place).parts
    resolved = os.path.realpath(place)
    return (
        bool(parts)
        and not any(part.startswith((".", "~", "/")) or "\0" in part for part in parts)
        and os.path.commonpath([resolved, os.path.realpath(".")]) == os.path.realpath(".")
    )
