"""How the two ends of a connection talk: messages of JSON, each with bytes of its own where it needs.

A message is a line of JSON; when it has a `size`, that many bytes follow the line.
"""

from __future__ import annotations

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterator


def pack(message: dict[str, Any], payload: bytes = b"") -> bytes:
    """A message as it goes over the wire."""
    if not payload:
        return json.dumps(message).encode() + b"\n"
    return b"%s\n%s" % (json.dumps(dict(message, size=len(payload))).encode(), payload)


class Unpacker:
    """Takes what has come, in whatever pieces, and gives the messages that are whole."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._missing = 0

    def feed(self, data: bytes) -> Iterator[tuple[dict[str, Any], bytes]]:
        """The messages that are whole with this piece; all must be taken before the next piece.

        Raises ValueError for what is no message.
        """
        self._pieces.append(data)
        self._missing -= len(data)
        if self._missing > 0:
            return
        data = b"".join(self._pieces)
        start = 0
        while True:
            end = data.find(b"\n", start) + 1
            message = json.loads(data[start:end]) if end else {}
            whole = end + message.get("size", 0)
            if not end or len(data) < whole:
                self._pieces, self._missing = [data[start:]], whole - len(data)
                return
            yield message, data[end:whole]
            start = whole
