"""How a target is reached: start a plan there, read its log by offset, signal it.

Transports differ in nothing else; what a run means is the engine's business alone.
"""

from __future__ import annotations

from typing import Any, Protocol


class Transport(Protocol):
    """What the rest of taskrunner needs of a target.

    Every method raises TargetError when the target cannot be reached, StateError when its state
    cannot be read or written.
    """

    def start(self, run: str, plan: dict[str, Any]) -> None:
        """Put the plan into a new run directory and start the engine on it, detached."""

    def plan(self, run: str) -> dict[str, Any] | None:
        """The plan of a run; None when there is none."""

    def read(self, run: str, name: str, offset: int, limit: int = -1) -> bytes:
        """A file of the run directory from a byte offset on; nothing when it is not there."""

    def wait(self, run: str, seconds: float) -> None:
        """Wait, at most this long, until there may be something new to read."""

    def alive(self, run: str) -> bool:
        """Whether the engine of the run is at work."""

    def last_words(self, run: str) -> str | None:
        """What the engine said at its end that is not in its log; None when no end was heard of."""

    def cancel(self, run: str) -> bool:
        """Ask a run to stop; False when there is no engine to hear it."""

    def follow(self, run: str) -> None:
        """Note, until this process ends or calls `unfollow`, that somebody follows the run."""

    def unfollow(self, run: str) -> None:
        """End what `follow` began."""

    def followed(self, run: str) -> bool:
        """Whether somebody else follows the run."""

    def runs(self) -> list[str]:
        """The ids of the runs whose directories are there, the newest first."""
