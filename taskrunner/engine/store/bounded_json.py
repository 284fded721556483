"""JSON from somebody who is not trusted: what it takes in memory is bounded."""

from __future__ import annotations

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LONGEST_LINE = 8 << 20
MOST_PARTS = 500_000
"""Members and elements of one JSON text, each of which may take a hundred bytes of memory and more."""


class TooLarge(ValueError):
    """An answer that does not fit into the memory that there is for one."""

    def __init__(self) -> None:
        super().__init__("more than %d MiB or %d values at once" % (LONGEST_LINE >> 20, MOST_PARTS))


def loads(data: bytes) -> Any:
    """The value of a JSON text from the other end, which takes bounded memory. Raises ValueError."""
    if len(data) > LONGEST_LINE or sum(map(data.count, (b",", b"[", b"{"))) > MOST_PARTS:
        raise TooLarge
    try:
        return _DECODER.decode(data.decode("utf-8", "replace"))
    except RecursionError:
        raise ValueError("a message is nested too deeply") from None


def _no_number(name: str) -> Any:
    raise ValueError("%s is not a number" % name)


def _integer(text: str) -> int:
    if len(text) > 20:
        raise ValueError("a number is too large")
    return int(text)


_DECODER = json.JSONDecoder(parse_constant=_no_number, parse_int=_integer)
