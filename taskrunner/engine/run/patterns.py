"""Regular expressions from task files, searched for in logs: neither takes more than its share."""

from __future__ import annotations

import re
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

WITHIN = 1.0
"""Seconds for one search: `(a+)+$` takes ages for a line of forty characters."""
BLOCK = 1 << 20
LONGEST_LINE = 1 << 16
"""Bytes of a line that are searched together, where it is not whole in one block."""


class TooSlow(Exception):
    """The search was given up."""


def compiled(pattern: str) -> re.Pattern[bytes]:
    return re.compile(pattern.encode(), re.MULTILINE)


def search(pattern: re.Pattern[bytes], data: bytes) -> re.Match[bytes] | None:
    """The first place in `data`. Only for a main thread, which hears signals. Raises TooSlow."""

    def late(*_: Any) -> None:
        raise TooSlow("searching for the pattern takes more than %g s" % WITHIN)

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, WITHIN)
    try:
        return pattern.search(data)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def found_in(pattern: str, path: str) -> bool:
    """Whether a file has it, read block by block. Raises OSError, TooSlow."""
    wanted, rest = compiled(pattern), b""
    with open(path, "rb") as file:
        while True:
            data = file.read(BLOCK)
            end = data.rfind(b"\n") + 1 if data else 0
            # A line is searched when it is whole; what is no line in pieces that overlap.
            now = rest + (data[:end] if end or not data else data)
            if search(wanted, now):
                return True
            if not data:
                return False
            rest = data[end:] if end else now[-LONGEST_LINE:]
