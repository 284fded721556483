"""What a node's answer to a question means: its value, or the error that its system has raised."""

from __future__ import annotations

import errno
from typing import Any

from taskrunner.errors import StateError


class Busy(StateError):
    """Somebody else is at what was asked for; it is worth asking again."""


def value(name: str, message: dict[str, Any], payload: bytes) -> Any:
    """The value in an answer of the node `name`; bytes where it is bytes. Raises StateError."""
    if "error" not in message:
        return message.get("ok", payload)
    where = f"{message['path']}: " if message.get("path") else ""
    kind = Busy if message.get("errno") == errno.EAGAIN else StateError
    full = message.get("errno") in (errno.ENOSPC, errno.EDQUOT)
    raise kind(f"{name}: {where}{message['error']}", "make room there" if full else "")
