"""One run of a task file at a time, and who that is."""

from __future__ import annotations

import fcntl
import os
import time

from . import fileio, identity, paths, unsettled
from .events import parse


def take(root: str, key: str, run: str) -> tuple[int | None, str]:
    """Take the task file's lock on this machine. Returns it, or None and the run that holds it.

    The kernel frees the lock with its holder's death, whatever its kind; it is never stale. What its file
    says is for people and for those who are refused.
    """
    path = paths.lock_path(root, key)
    fileio.private_folder(os.path.dirname(path))
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _inherit(root, key)
    except BlockingIOError:
        holder = _holder(root, fd)
        os.close(fd)
        return None, holder
    name(fd, run)
    return fd, ""


def _inherit(root: str, key: str) -> None:
    """Respect the lock of format 1, which had no machine in its name and named the runs that were not
    settled.

    Raises BlockingIOError while it is held.
    """
    path = os.path.join(root, "locks", key)
    if not os.path.exists(path):
        return
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for run in os.pread(fd, 4096, 0).decode("utf-8", "replace").split():
            if os.path.isdir(paths.run_dir(root, os.path.basename(run))):
                unsettled.note(root, key, os.path.basename(run))
        os.unlink(path)
    finally:
        os.close(fd)


def held(path: str) -> bool:
    """Whether somebody has a lock on this file: the kernel frees it with its holder."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(fd)


def name(lock: int, run: str) -> None:
    """Write who has the lock."""
    os.pwrite(lock, run.encode(), 0)
    os.ftruncate(lock, len(run))


def _holder(root: str, fd: int) -> str:
    """The run that holds the lock: who has just taken it may not have written its name yet."""
    deadline = time.monotonic() + 1.0
    while True:
        holder = os.path.basename(os.pread(fd, 4096, 0).decode("utf-8", "replace").strip("\0 \n"))
        if (holder and engine_alive(paths.run_dir(root, holder))) or time.monotonic() > deadline:
            return holder
        time.sleep(0.01)


def engine_alive(directory: str) -> bool:
    """Whether the engine of a run is at work."""
    record = parse(fileio.read_bytes(os.path.join(directory, paths.ENGINE)))
    return record is not None and identity.alive(record)
