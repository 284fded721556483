"""What a way to a node has to offer, so that a conversation can be held over it."""

from __future__ import annotations

import shlex
from typing import Protocol

from taskrunner.errors import TargetError

BROKEN = (OSError, EOFError)
"""What a channel raises when it is gone."""


WINDOW = 1 << 22
"""Bytes that may be on the way: more than bandwidth times delay of a link across an ocean."""


class Lost(TargetError):
    """The connection broke, or was not made for a reason that may pass."""


class Gone(TargetError):
    """The node is not what was asked for, and will not be."""


class Channel(Protocol):
    """The stdin and stdout of the engine's server, as a socket has them; BROKEN when it is gone."""

    def settimeout(self, seconds: float | None, /) -> None: ...

    def recv(self, size: int, /) -> bytes:
        """What has come, at least a byte; nothing at its end. Raises TimeoutError."""

    def sendall(self, data: bytes, /) -> object:
        """Raises TimeoutError when the other end takes no more."""

    def close(self) -> None: ...


class Dialer(Protocol):
    """Starts the engine's server on one node, and knows how that has ended."""

    @property
    def name(self) -> str:
        """The node, for messages."""

    python: str
    state: str
    timeout: float
    """Seconds for the first words."""
    unanswered: str
    """What to check where the server says nothing."""

    def dial(self) -> Channel:
        """Start it. Raises TargetError, which says what is wrong; Lost when it is worth another try."""

    def connected(self) -> bool:
        """Whether what was dialled last is still there, as far as is known without asking."""

    def ending(self) -> tuple[int | None, bytes]:
        """How a server that has closed its end has ended: exit status (None: unknown), and its stderr."""

    def close(self) -> None:
        """Leave the node. Its runs go on."""


def server(python: str) -> str:
    """The command that reads its program from stdin, in words that mean the same in every login shell: sh,
    bash, zsh, fish, csh.
    """
    return (
        f"exec {shlex.quote(python)} -I -S -c"
        " 'import sys; exec(eval(sys.stdin.buffer.readline()))' taskrunner-engine"
    )
