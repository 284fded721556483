"""What is said beside the events of a run: a note after those that there is something to say of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

R = TypeVar("R")
Remark = Callable[[Any], str]
"""Given an event, what to say when it has been shown; "" for nothing."""


class _Remarking:
    def __init__(self, show: Any, remark: Remark) -> None:
        self._show, self._remark = show, remark

    def __getattr__(self, name: str) -> Any:
        return getattr(self._show, name)

    def __enter__(self) -> object:
        return self._show.__enter__()

    def __exit__(self, *about: object) -> None:
        self._show.__exit__(*about)

    def event(self, *about: Any) -> None:
        """Show it; the event is the last argument, behind the name of a node where there are several."""
        self._show.event(*about)
        if text := self._remark(about[-1]):
            self._show.note(text)


def remarking(show: R, args: object) -> R:
    """A renderer that makes the remarks of `args.remark`, where there is one and people read them."""
    remark = getattr(args, "remark", None)
    silent = remark is None or getattr(args, "json", False) or getattr(args, "quiet", False)
    return show if silent else cast("R", _Remarking(show, cast("Remark", remark)))
