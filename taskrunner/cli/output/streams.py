"""Where everything that is printed goes through: no secret, and nothing that a terminal would obey.

Names, messages and output come from task files, from nodes and from the programs that they run. On a
terminal, a control sequence in them could hide lines, rename the window or write to the clipboard.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from taskrunner.engine.run.masking import Masker

ESCAPES = (
    # OSC, DCS, SOS, PM and APC with what they hold; CSI; other escapes; C0 and C1; what turns text round.
    r"(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])(?:[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c))?"
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b[ -/]*[0-~]?"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
COLOUR = r"(?P<kept>\x1b\[[0-9;:]*m|\r)|"
IDENTIFIERS = ("type", "step", "run", "id", "node", "status", "reason")
"""Members of JSON that others know a thing by: what is a secret by chance must not change them."""
_masker: Masker | None = None


def harmless(text: str) -> str:
    """A text without what would move the cursor, name the window, or ring."""
    return text if text.isascii() and text.isprintable() else re.sub(ESCAPES, "", text)


def protect(plans: Iterable[Mapping[str, Any]]) -> Masker:
    """Hide the secrets of these plans in all that is printed from now on."""
    from taskrunner.engine.run.masking import Masker, secrets_of

    global _masker
    _masker = Masker({secret for plan in plans for secret in secrets_of(plan, os.environ)})
    return _masker


def shown(text: str) -> str:
    """What may be shown of a message; of JSON, for machines, of the texts in it."""
    if _masker and text[:1] in ("{", "["):
        try:
            return json.dumps(_told("", json.loads(text)), indent=2 if "\n" in text else None)
        except ValueError:
            pass
    return _message(text)


def _told(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return value if name in IDENTIFIERS else _message(value)
    if isinstance(value, list):
        return [_told(name, item) for item in value]
    if isinstance(value, dict):
        return {name: _told(name, item) for name, item in value.items()}
    return value


def _message(text: str) -> str:
    text = _masker.text(text) if _masker else text
    if "://" in text:
        from taskrunner.engine.run.masking import without_passwords

        text = without_passwords(text)
    return harmless(text)


class Messages(io.TextIOBase):
    """A standard stream for messages."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(shown(text))
        return len(text)

    def flush(self) -> None:
        self.stream.flush()

    def fileno(self) -> int:
        return self.stream.fileno()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.stream.encoding


def open_streams() -> None:
    """Have the three standard streams, also where the caller has closed them: what is opened later must
    not be taken for one of them.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name) or os.fdopen(number, "w", closefd=False)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without ✓ is no reason to fail
        setattr(sys, name, Messages(stream))


def write_output(text: str) -> None:
    """What a program has printed, on stdout: as it is for a file or a pipe; colours alone on a terminal."""
    stream = raw(sys.stdout)
    if stream.isatty():
        text = re.sub(COLOUR + ESCAPES, lambda found: found["kept"] or "", text)
    stream.write(text)
    stream.flush()


def raw(stream: Any) -> TextIO:
    """The stream behind one for messages."""
    raw_stream: TextIO = stream.stream if isinstance(stream, Messages) else stream
    return raw_stream
