"""What is remembered of a task file between runs: the steps that succeeded, by their content."""

from __future__ import annotations

import json
import os
import time

from . import fileio
from .events import parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterable

COMPACT_AT = 1 << 20


class Journal:
    """An append-only file of `{"step", "key", "cwd", "run", "time"}` and `{"forget": [step, ...], "cwd"}`
    lines.

    `key` is the hash of the step's definition and of the variables it names; `cwd` the folder where the
    run was started, as the same step does something else in another one. A line is on disk (fsync) when
    `record` returns. A line that a crash has cut is passed over. Nothing is written until there is
    something to remember.
    """

    def __init__(self, path: str, cwd: str = "") -> None:
        self._path, self._cwd = path, cwd
        data = fileio.read_bytes(path)
        self._others: list[dict[str, Any]] = []
        self._entries: dict[str, dict[str, Any]] = {}
        for entry in map(parse, data.split(b"\n")):
            if entry is not None:
                self._apply(entry)
        self._size = len(data)
        self._cut = bool(data) and not data.endswith(b"\n")
        self._fd = -1

    def _apply(self, entry: dict[str, Any]) -> None:
        if entry.get("cwd", "") != self._cwd:
            self._others.append(entry)
            return
        forgotten = entry.get("forget")
        for step in forgotten if isinstance(forgotten, list) else ():
            self._entries.pop(str(step), None)
        if isinstance(entry.get("step"), str) and isinstance(entry.get("run"), str) and "key" in entry:
            self._entries[entry["step"]] = entry

    def find(self, step: str, key: str) -> dict[str, Any] | None:
        """The entry of a step that succeeded with exactly this content."""
        entry = self._entries.get(step)
        return entry if entry is not None and entry["key"] == key else None

    def knows(self, steps: Iterable[str]) -> bool:
        """Whether there is an entry of any of these steps."""
        return bool(self._entries) and any(step in self._entries for step in steps)

    def record(self, step: str, key: str, run: str) -> None:
        """Remember that the step succeeded. Raises OSError when that is not safely on disk."""
        self._append({"step": step, "key": key, "cwd": self._cwd, "run": run, "time": round(time.time(), 3)})

    def forget(self, steps: Iterable[str] | None) -> list[str]:
        """Forget these steps, all of them when None; returns those that were known.

        Raises OSError when that is not safely on disk.
        """
        wanted = list(self._entries) if steps is None else steps
        recorded = [step for step in wanted if step in self._entries] if self._entries else []
        if recorded:
            self._append({"forget": recorded, "cwd": self._cwd})
        return recorded

    def _open(self) -> None:
        fileio.private_folder(os.path.dirname(self._path))
        if self._size > COMPACT_AT:
            kept = [json.dumps(entry) for entry in [*self._others, *self._entries.values()]]
            fileio.write_atomic(self._path, "".join(line + "\n" for line in kept).encode(), durable=True)
            self._size, self._cut = 0, False
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, 0o600)

    def _append(self, entry: dict[str, Any]) -> None:
        if self._fd < 0:
            self._open()
        line = json.dumps(entry).encode() + b"\n"
        try:
            fileio.write_all(self._fd, b"\n" + line if self._cut else line)
        except OSError:
            self._cut = True
            raise
        self._cut = False
        os.fdatasync(self._fd)
        self._apply(entry)
