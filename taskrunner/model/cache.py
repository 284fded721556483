"""Remembers which texts were found valid, so that a file is not checked again on every run.

What depends on the file alone is remembered; variables and the shell's syntax, which depend on the
values given, are checked each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from pathlib import Path

from taskrunner import __version__

KEEP_DAYS = 30


def folder() -> Path:
    """`$TASKRUNNER_HOME/cache`, else `taskrunner` under the XDG cache home."""
    home = os.environ.get("TASKRUNNER_HOME")
    if home:
        return Path(home).expanduser() / "cache"
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "taskrunner"


class Valid:
    """Whether a text was found valid by this version; true or false, like a bool."""

    def __init__(self, text: str) -> None:
        digest = hashlib.sha256(f"{__version__}\0{_code_age()}\0{text}".encode()).hexdigest()
        self._mark = folder() / "valid" / digest
        try:
            self._found = time.time() - self._mark.stat().st_mtime < KEEP_DAYS * 86400
        except OSError:
            self._found = False

    def __bool__(self) -> bool:
        return self._found

    def remember(self) -> None:
        """Leave a mark; a cache that cannot be written is no reason to fail."""
        if self._found:
            return
        with contextlib.suppress(OSError):
            self._mark.parent.mkdir(parents=True, exist_ok=True)
            for old in self._mark.parent.iterdir():
                if time.time() - old.stat().st_mtime > KEEP_DAYS * 86400:
                    old.unlink()
            self._mark.touch()


def _code_age() -> int:
    """Changes with the checks themselves, also between two releases."""
    here = Path(__file__).parent
    return max(path.stat().st_mtime_ns for path in here.glob("*.py"))
