"""Remembers what was found valid, so that a file is not checked again on every run.

A mark is a small file named by the hash of what it is about: the text of a task file, or the
commands that came of it. It holds what was found out, if there is more to say than that it is valid.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from functools import cached_property
from pathlib import Path

from taskrunner._version import __version__
from taskrunner.engine.store.fileio import private_folder

KEEP_DAYS = 30


def folder() -> Path:
    """`$TASKRUNNER_HOME/cache`, else `taskrunner` under the XDG cache home."""
    home = os.environ.get("TASKRUNNER_HOME")
    if home:
        return Path(os.path.expanduser(home)) / "cache"
    base = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    # Without a home folder there is no cache: nothing can be read or made there.
    return Path(base if os.path.isabs(base) else os.devnull) / "taskrunner"


class Mark:
    """What is remembered about a text of some kind by this version; true when there is something."""

    def __init__(self, kind: str, subject: str) -> None:
        identity = f"{__version__}\0{_code_age()}\0{kind}\0{subject}"
        digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass"))
        self._path = folder() / "valid" / digest.hexdigest()

    @cached_property
    def found(self) -> str | None:
        """What was remembered; None when nothing was."""
        try:
            fresh = time.time() - self._path.stat().st_mtime < KEEP_DAYS * 86400
            return self._path.read_text(encoding="utf-8") if fresh else None
        except (OSError, UnicodeDecodeError):
            return None

    def __bool__(self) -> bool:
        return self.found is not None

    def remember(self, what: str = "") -> None:
        """Leave the mark; a cache that cannot be written is no reason to fail."""
        if self.found == what:
            return
        with contextlib.suppress(OSError):
            private_folder(str(self._path.parent))
            for old in self._path.parent.iterdir():
                if time.time() - old.stat().st_mtime > KEEP_DAYS * 86400:
                    old.unlink()
            temporary = self._path.with_suffix("." + os.urandom(8).hex())
            temporary.write_text(what, encoding="utf-8")
            temporary.replace(self._path)


def _code_age() -> int:
    """Changes with the checks themselves, also between two releases."""
    here = Path(__file__).parent
    return max(path.stat().st_mtime_ns for path in here.glob("*.py"))
