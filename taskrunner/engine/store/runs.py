"""The runs of a state root: make the directory of one, follow it, look at it, forget it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time

from . import fileio, identity, lock, paths
from .events import parse, parse_event

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any, Iterator, Mapping


BLOCK = 1 << 16
COMES_UP_S = 30.0
"""In which an engine that was started has written who it is, also on a busy machine."""
HEARD_WITHIN = 8.0
"""Seconds in which a controller from elsewhere is heard of: it says something every five."""


def create(root: str, run: str, plan: Mapping[str, Any]) -> str:
    """Write a plan into its new run directory; returns the directory."""
    directory = paths.run_dir(root, run)
    fileio.private_folder(directory)
    if plan.get("secrets"):
        note = paths.secrets_path(directory)
        fileio.private_folder(os.path.dirname(note))
        os.close(os.open(note, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    fileio.write_atomic(os.path.join(directory, paths.PLAN), json.dumps(plan).encode())
    return directory


def join(root: str, run: str, name: str = paths.FOLLOWERS) -> int:
    """Note that somebody follows the run, for as long as the returned descriptor is open."""
    path = os.path.join(paths.run_dir(root, run), name)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_SH)
    return fd


def followed(root: str, run: str) -> bool:
    """Whether somebody follows the run. The connection of who does so from elsewhere may be lost without a
    sign of it, so this waits until he is heard of, or has not been for a while.
    """
    directory = paths.run_dir(root, run)
    if lock.held(os.path.join(directory, paths.FOLLOWERS)):
        return True
    away = os.path.join(directory, paths.FOLLOWERS_AWAY)
    before = changed_at(away)
    while lock.held(away) and abs(time.time() - before) < HEARD_WITHIN:
        time.sleep(0.1)
        if changed_at(away) != before:
            return True
    return False


def heard(root: str, run: str) -> None:
    """Note that who follows the run from elsewhere has just been heard of."""
    with contextlib.suppress(OSError):
        os.utime(os.path.join(paths.run_dir(root, run), paths.FOLLOWERS_AWAY))


def alive(root: str, run: str) -> bool:
    """Whether the engine of the run is at work."""
    return lock.engine_alive(paths.run_dir(root, run))


def known(root: str, run: str) -> bool:
    """Whether the engine of the run has written who it is."""
    return os.path.exists(os.path.join(paths.run_dir(root, run), paths.ENGINE))


def coming_up(root: str, run: str) -> bool:
    """Whether the engine of a run that was just started may still have to write who it is."""
    try:
        age = time.time() - os.stat(paths.run_dir(root, run)).st_mtime
    except OSError:
        return False
    return not known(root, run) and 0 <= age < COMES_UP_S


def last_words(root: str, run: str) -> str:
    """What is known of the end of an engine that was lost."""
    directory = paths.run_dir(root, run)
    record = parse(fileio.read_bytes(os.path.join(directory, paths.ENGINE)))
    if record is not None and record.get("boot") != identity.boot_id():
        return "the machine was restarted"
    return "\n".join(fileio.tail(os.path.join(directory, paths.ENGINE_LOG)))


def runs(root: str) -> list[str]:
    """The ids of the runs that are there, the newest first."""
    try:
        names = os.listdir(os.path.join(root, "runs"))
    except OSError:
        return []
    return sorted({name.partition("@")[0] for name in names}, reverse=True)


def info(root: str, run: str, is_alive: bool | None = None) -> dict[str, Any] | None:
    """What is known of a run: run, name, file, started, status, duration, failures, and for one
    that is under way `step` (id, index, started) and `steps` (how many).

    The status is running, interrupted, or how it ended. None for what never began.
    """
    path = os.path.join(paths.run_dir(root, run), paths.EVENTS)
    try:
        with open(path, "rb") as file:
            return _told(root, run, file, is_alive)
    except OSError:
        return None


def _told(root: str, run: str, file: IO[bytes], is_alive: bool | None) -> dict[str, Any] | None:
    first = parse_event(file.readline())
    if first is None or first["type"] != "run.started" or not is_ours(root, run):
        return None
    last = next(_backwards(file), first)
    state = {
        "run": run,
        "name": first["name"],
        "file": first["file"],
        "started": first["time"],
        "status": "running",
        "duration": None,
        "failures": [],
        "steps": len(first["steps"]),
        "step": None,
    }
    if last["type"] == "run.finished":
        state.update(status=last["status"], duration=last["duration"], failures=last["failures"])
    else:
        state["status"] = "running" if (alive(root, run) if is_alive is None else is_alive) else "interrupted"
        begun = next((event for event in _backwards(file) if event["type"] == "step.started"), None)
        if begun is not None:
            state["step"] = {
                "id": begun["step"],
                "index": begun["index"],
                "started": begun["time"],
            }
    return state


def _backwards(file: IO[bytes]) -> Iterator[dict[str, Any]]:
    """The events of a log, the last one first: a run of many steps has a long one."""
    at = file.seek(0, os.SEEK_END)
    rest = b""
    while at > 0:
        size = min(at, BLOCK)
        at -= size
        file.seek(at)
        first, *lines = (file.read(size) + rest).split(b"\n")
        rest = first
        for event in filter(None, map(parse_event, reversed(lines if at else [first, *lines]))):
            yield event


def is_ours(root: str, run: str) -> bool:
    """Whether the run is this machine's: others may share the state root."""
    record = parse(fileio.read_bytes(os.path.join(paths.run_dir(root, run), paths.ENGINE))) or {}
    return bool(record.get("machine", identity.machine()) == identity.machine())


def infos(root: str, limit: int, live: bool = False) -> list[dict[str, Any]]:
    """What is known of the last runs, the newest first; with `live` of those under way."""
    listed: list[dict[str, Any]] = []
    for run in runs(root):
        if len(listed) == limit:
            break
        if live and not alive(root, run):
            continue
        one = info(root, run)
        if one is not None:
            listed.append(one)
    return listed


def discard(root: str, run: str) -> None:
    """Remove the directory of a run that is not live."""
    import shutil  # slow to import, and seldom needed

    shutil.rmtree(paths.run_dir(root, run), ignore_errors=True)


def changed_at(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0
