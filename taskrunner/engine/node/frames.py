"""How the two ends of a connection talk: messages of JSON, each with bytes of its own where it needs.

A message is a line of JSON; when it has a `size`, that many bytes follow the line. The other end is not
trusted: what it can make this one keep in memory is bounded.
"""

from __future__ import annotations

import json
import sys
import zlib

from ..store.bounded_json import LONGEST_LINE, TooLarge, loads

LARGEST_PAYLOAD = 32 << 20
PIECE = 4 << 20
"""Bytes of a file that are asked for at once."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterator


def pack(message: dict[str, Any], payload: bytes = b"") -> bytes:
    """A message as it goes over the wire."""
    if not payload:
        return json.dumps(message).encode() + b"\n"
    return b"%s\n%s" % (json.dumps(dict(message, size=len(payload))).encode(), payload)


def inflated(data: bytes, most: int = LARGEST_PAYLOAD) -> bytes:
    """What was compressed with zlib, if it is not larger. Raises ValueError."""
    try:
        decompressor = zlib.decompressobj()
        content = decompressor.decompress(data, most)
    except zlib.error as error:
        raise ValueError("cannot be decompressed: %s" % error) from error
    if not decompressor.eof:
        raise ValueError("truncated or too large")
    return content


class Unpacker:
    """Takes what has come, in whatever pieces, and gives the messages that are whole.

    `trusted`: the other end may send what it likes, as a controller may to its node.
    """

    def __init__(self, trusted: bool = False) -> None:
        self._loads = json.loads if trusted else loads
        self._longest = sys.maxsize if trusted else LONGEST_LINE
        self._largest = sys.maxsize if trusted else LARGEST_PAYLOAD
        self._pieces: list[bytes] = []
        self._missing = 0
        self._line = 0
        """Bytes of a line that has not ended yet."""

    def feed(self, data: bytes) -> Iterator[tuple[dict[str, Any], bytes]]:
        """The messages that are whole with this piece; all must be taken before the next piece.

        Raises ValueError for what is no message.
        """
        self._pieces.append(data)
        self._missing -= len(data)
        if self._missing > 0:
            return
        if self._line and b"\n" not in data:
            self._line += len(data)
            if self._line > self._longest:
                raise TooLarge
            return
        data = b"".join(self._pieces)
        start = self._line = 0
        while True:
            end = data.find(b"\n", start) + 1
            message = self._loads(data[start:end]) if end else {}
            size = message.get("size", 0) if isinstance(message, dict) else None
            if not isinstance(size, int) or not 0 <= size <= self._largest:
                raise ValueError("not a message")
            whole = end + size
            if not end or len(data) < whole:
                self._pieces, self._missing = [data[start:]], whole - len(data)
                self._line = 0 if end else len(data) - start
                if self._line > self._longest:
                    raise TooLarge
                return
            yield message, data[end:whole]
            start = whole
