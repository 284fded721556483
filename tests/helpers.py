"""What the tests have in common besides fixtures: commands as processes, and which of them are left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from taskrunner.engine.store.identity import stat

Process = subprocess.CompletedProcess[str]
WHOLE = os.environ.get("TASKRUNNER_SURVIVAL") == "whole"
"""Whether randomized faults are tried hundreds of times, not dozens."""
CACHE = Path(__file__).parent.parent / ".cache"


def wait_until_gone(folder: str) -> dict[int, str]:
    """What is left of that which was started with this state folder, after some seconds."""
    deadline = time.monotonic() + 5
    while True:
        left = started_with(folder)
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)


def end_what_is_left(folder: str) -> dict[int, str]:
    """End what was started with this state folder and does not end by itself, by its pid; what that was."""
    left = wait_until_gone(folder)
    if left:
        kill_all(folder)
    return left


def kill_all(folder: str, but: int = 0) -> None:
    """End what was started with this state folder, as a power cut does; `but` is the pid of one that stays."""

    def gone() -> bool:
        living = [pid for pid in sorted(started_with(folder)) if pid != but]  # a shell before its command
        for pid in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not living

    wait_for(gone)  # what is forked while it looks is found the next time


def started_with(folder: str) -> dict[int, str]:
    """The living processes whose environment names this state folder."""
    return started(f"TASKRUNNER_HOME={folder}")


def started(variable: str) -> dict[int, str]:
    """The living processes with this variable in their environment."""
    needle = variable.encode()
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            known = stat(int(name))
            environ = Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
            if known and known[0] not in "ZX" and needle in environ:
                line = Path(f"/proc/{name}/cmdline").read_text()
                if line:  # Else it has ended just now.
                    found[int(name)] = line
    return found


def left_of(folder: Path) -> dict[int, str]:
    """What steps and services have left running: without the engine, which may be on its way out."""
    return {pid: line for pid, line in started_with(str(folder)).items() if "engine.main" not in line}


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "taskrunner", *map(str, args)]


def runner_command(*args: object) -> list[str]:
    return [sys.executable, "-c", "from taskrunner.cli.main import runner; runner()", *map(str, args)]


def completed(argv: Sequence[object], *, timeout: float = 120, **options: Any) -> Process:
    """Run a command to its end, and return its status and what it has printed, whatever the status is."""
    words = list(map(str, argv))
    return subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False, **options)


def wait_for(condition: Callable[[], Any], seconds: float = 10.0, what: str = "it") -> Any:
    """Wait until the condition is true, and return what it says."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.01)
