"""Programs: found also where EFA's installer puts them, run with an end, and everything they have printed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence

PLACES = ("~/low-level-tools/bin", "/opt/amazon/efa/bin", "/usr/local/bin")
"""Where setup-low-level puts tools, and where a login shell finds them, and this may not."""


def find(name: str, *places: str) -> str | None:
    """The path of a program in PATH, in `places`, or where installers put it."""
    folders = map(os.path.expanduser, (*places, *PLACES))
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *folders])
    return shutil.which(name, path=path)


def output_of(
    argv: Sequence[str],
    timeout: float,
    env: Mapping[str, str] | None = None,
    started: Callable[[int], object] | None = None,
) -> tuple[int | None, str, str]:
    """Exit status (None: it was ended), stdout and stderr: figures are in the one, causes in the other.

    127 for a program that is not there. `started` is called with the pid.
    """
    words = {**os.environ, **(env or {}), "LC_ALL": "C"}
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            argv, stdout=pipe, stderr=pipe, stdin=subprocess.DEVNULL, start_new_session=True, env=words
        )
    except OSError as error:
        return 127, "", f"{argv[0]}: {error.strerror}"
    with process:
        try:
            if started is not None:
                started(process.pid)
            output, errors = process.communicate(timeout=timeout)
            return process.returncode, _text(output), _text(errors)
        except subprocess.TimeoutExpired as error:
            return None, _text(error.stdout), _text(error.stderr)
        finally:
            # Whatever it has started; and when this is interrupted.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)


def _text(data: bytes | None) -> str:
    return (data or b"").decode("utf-8", "replace")
