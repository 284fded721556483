"""Runs that have begun and are not settled: the next run of their task file has to look what they have left.

Each has an empty file whose name says all, so that nothing in it can be lost: the run, the task file's
key, and the machine. It is there before the run's first step and goes when the run has ended or is
recovered.
"""

from __future__ import annotations

import contextlib
import os

from . import fileio, paths

FOLDER = "unsettled"


def note(root: str, key: str, run: str) -> None:
    """Say that the run begins. Raises OSError."""
    path = _path(root, key, run)
    fileio.private_folder(os.path.dirname(path))
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def settled(root: str, key: str, run: str) -> None:
    """Say that there is nothing left of it to look after."""
    with contextlib.suppress(OSError):
        os.unlink(_path(root, key, run))


def of(root: str, key: str) -> list[str]:
    """The unsettled runs of a task file on this machine, the oldest first."""
    end = "@" + paths.own(key)
    return sorted(name[: -len(end)] for name in _names(root) if name.endswith(end))


def all_runs(root: str, since: float = 0.0) -> set[str]:
    """All unsettled runs that began after this time, also those of other machines."""
    names = set()
    for name in _names(root):
        with contextlib.suppress(FileNotFoundError):
            if os.stat(os.path.join(root, FOLDER, name)).st_mtime >= since:
                names.add(name.partition("@")[0])
    return names


def _names(root: str) -> list[str]:
    try:
        return os.listdir(os.path.join(root, FOLDER))
    except OSError:
        return []


def _path(root: str, key: str, run: str) -> str:
    return os.path.join(root, FOLDER, "%s@%s" % (run, paths.own(key)))
