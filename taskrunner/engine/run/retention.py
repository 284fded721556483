"""Removes old runs, the secrets of interrupted runs, and shipped files that are no longer used."""

from __future__ import annotations

import contextlib
import os
import time

from ..store import lock, paths, runs, unsettled
from . import plan_file

KEEP_RUNS = 500
KEEP_DAYS = 30
BEGUN_WITHIN = 60.0
"""Seconds that an engine may take from its plan to its first sign of life."""
KEEP_ALWAYS = 20
"""Runs that are kept however old they seem: a clock may be wrong."""


def prune(root: str, started: str) -> None:
    """Forget runs by count and age, never one that is live, followed or not settled.

    Age is by this machine's clock throughout: the ids of runs come from the clocks of those who started them.
    The run `started` is under way, and may have filled the disk: what cannot be done now is done by the next.
    """
    with contextlib.suppress(OSError):
        _prune(root, started)


def _prune(root: str, started: str) -> None:
    _forget_secrets(root)
    unsettled_runs = unsettled.all_runs(root)
    oldest = time.time() - KEEP_DAYS * 86400
    names = runs.runs(root)
    for number in range(len(names) - 1, min(KEEP_ALWAYS, KEEP_RUNS) - 1, -1):
        name = names[number]
        if number < KEEP_RUNS and runs.changed_at(paths.run_dir(root, name)) >= oldest:
            break
        if (
            name not in unsettled_runs
            and name != started
            and not runs.followed(root, name)
            and not runs.alive(root, name)
        ):
            runs.discard(root, name)
    if not unsettled.all_runs(root, since=oldest) - {started}:
        # A run that is under way here or on another machine may have yet to read what it was shipped.
        for kept in ("engine", "files", "never", "parts", "claims"):
            if os.path.isdir(os.path.join(root, kept)):
                _forget_unused(os.path.join(root, kept))


def _forget_secrets(root: str) -> None:
    """Those of runs that were cut off before they could do it."""
    folder = os.path.join(root, "secrets")
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        directory = os.path.join(root, "runs", name)
        if not runs.is_ours(root, name.partition("@")[0]):
            continue  # only its own machine knows whether it goes on
        noted = runs.changed_at(os.path.join(folder, name))
        if noted < time.time() - BEGUN_WITHIN and not lock.engine_alive(directory):
            plan_file.forget_secrets(directory)


def _forget_unused(folder: str) -> None:
    """Remove what was shipped here and has not been used for long; who uses it touches it."""
    import shutil

    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            if os.lstat(path).st_mtime < time.time() - KEEP_DAYS * 86400:
                if os.path.isdir(path) and not os.path.islink(path):
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    os.unlink(path)
