"""What transports to a node have in common: the engine there is asked, and files are copied."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from taskrunner.engine.plan import Plan
from taskrunner.transports import file_copy, replies, staging

T = TypeVar("T")
RECONNECT_TIMEOUT = 300.0
"""Seconds to get back to a node that was reached before."""


class RemoteTransport(ABC):
    """The part of Transport and NodeTransport that is a question to the engine on the node, each one of
    engine/node/requests.py. How it is asked, and for how long, is the business of who derives from this.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._warming: threading.Thread | None = None
        self._said: dict[str, str | None] = {}
        self._followed: set[str] = set()
        """Runs that are followed just now."""

    @abstractmethod
    def _conversation(self) -> file_copy.Session:
        """What questions are put to. Raises TargetError."""

    @abstractmethod
    def _again(self, work: Callable[[], T]) -> T:
        """Do what may be done twice: again, when no answer came."""

    @abstractmethod
    def _send(self, root: str, files: staging.Files) -> int:
        """Bring files to below a folder; how many the node did not have."""

    def _ask(self, do: str, **about: Any) -> Any:
        return self._again(lambda: self._conversation().request(do, **about))

    def _warm(self, begin: Callable[[], None]) -> None:
        if self._warming is None:
            self._warming = threading.Thread(target=begin, daemon=True)
            self._warming.start()

    def ping(self) -> None:
        """Wait for a sign of life."""
        self._ask("ping")

    def ready(self) -> str:
        """How the node's own start went: see engine/node/requests.py."""
        return str(self._ask("ready"))

    def plan(self, run: str) -> Plan | None:
        return replies.plan(self.name, self._ask("plan", run=run))

    def read(self, run: str, name: str, offset: int, limit: int = -1) -> bytes:
        data = self._ask("read", run=run, name=name, offset=offset, limit=limit)
        if not isinstance(data, bytes):
            raise replies.strange(self.name)
        return data

    def alive(self, run: str) -> bool:
        return bool(self._ask("alive", run=run))

    def last_words(self, run: str) -> str | None:
        return self._said.get(run)

    def runs(self) -> list[str]:
        return replies.runs(self.name, self._ask("runs"))

    def info(self, run: str) -> dict[str, Any] | None:
        return replies.info(self.name, self._ask("info", run=run))

    def infos(self, limit: int, live: bool = False) -> list[dict[str, Any]]:
        items = self._ask("infos", limit=limit, live=live)
        if not isinstance(items, list):
            raise replies.strange(self.name)
        return [info for info in (replies.info(self.name, item) for item in items) if info]

    def discard(self, run: str) -> None:
        self._ask("discard", run=run)

    def put(self, source: str | Path, target: str) -> int:
        """Copy a file, or all in a folder, to the node; returns how many files had to be sent."""
        return self._again(lambda: file_copy.put(Path(source), target, self._send))

    def get(self, source: str, target: str | Path, name: str = "") -> int:
        """Copy a file, or all in a folder, from the node; returns how many had to be fetched."""
        return self._get(source, str(target), name, False)

    def _get(self, source: str, target: str, name: str, data_only: bool) -> int:
        return self._again(
            lambda: file_copy.get(self._conversation(), source, target, name, data_only=data_only)
        )

    def collect(self, plan: Plan, index: int, source: Plan) -> None:
        staging.collect(plan, index, source, self._get)
