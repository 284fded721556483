"""A transport as somebody else would write it: a folder of this machine as a target, `folder:///srv/runs`.

It imports nothing of taskrunner but what is public.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

from taskrunner.transports import ALL, Chunk, LocalTransport, Plan, TargetError, Transport


class FolderTransport:
    """Keeps the state of runs in the folder, and lets a local transport do the rest."""

    def __init__(self, target: str) -> None:
        folder = unquote(urlsplit(target).path)
        if not folder:
            raise TargetError(f"{target} names no folder", "folder:///path")
        self.name = target
        self.skew = 0.0
        self.read_with: list[str] = []
        self._local = LocalTransport(folder)

    def open(self) -> None:
        self._local.open()

    def warm(self) -> None:
        self._local.warm()

    def close(self) -> None:
        self._local.close()

    def start(self, run: str, plan: Plan) -> Plan:
        return self._local.start(run, plan)

    def plan(self, run: str) -> Plan | None:
        return self._local.plan(run)

    def read(self, run: str, name: str, offset: int, limit: int = -1) -> bytes:
        return self._local.read(run, name, offset, limit)

    def follow(self, run: str, *, output: str = ALL, wait: bool = True) -> Iterator[Chunk | None]:
        self.read_with.append(output)
        return self._local.follow(run, output=output, wait=wait)

    def alive(self, run: str) -> bool:
        return self._local.alive(run)

    def last_words(self, run: str) -> str | None:
        return self._local.last_words(run)

    def cancel(self, run: str) -> bool:
        return self._local.cancel(run)

    def join(self, run: str) -> None:
        self._local.join(run)

    def leave(self, run: str) -> None:
        self._local.leave(run)

    def followed(self, run: str) -> bool:
        return self._local.followed(run)

    def runs(self) -> list[str]:
        return self._local.runs()

    def info(self, run: str) -> dict[str, Any] | None:
        return self._local.info(run)

    def infos(self, limit: int, live: bool = False) -> list[dict[str, Any]]:
        return self._local.infos(limit, live)

    def discard(self, run: str) -> None:
        self._local.discard(run)

    def collect(self, plan: Plan, index: int, source: Plan) -> None:
        self._local.collect(plan, index, source)


def connect(target: str, **options: Any) -> Transport:
    """What the entry point names; the options are those of `connect`."""
    return FolderTransport(target)
