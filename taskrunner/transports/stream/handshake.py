"""The first words with a node: its engine is started, and shipped when it is missing there."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path
from typing import Any

from taskrunner import log
from taskrunner.engine import VERSION
from taskrunner.engine.node import bootstrap
from taskrunner.engine.store.bounded_json import loads
from taskrunner.errors import TargetError
from taskrunner.transports import replies
from taskrunner.transports.bundle import refused, shipped
from taskrunner.transports.stream.dialer import BROKEN, Channel, Dialer, Lost

BLOCK = 1 << 20
WORD = re.compile(rb"\0taskrunner-(need|failed|engine) (\{.*?\})\n")


def begin(dialer: Dialer) -> tuple[Channel, dict[str, Any]]:
    """The channel to the engine's server there, and what it says of itself.

    Raises TargetError with what is wrong on the node, Lost when the connection breaks.
    """
    channel = dialer.dial()
    try:
        return channel, _begun(channel, dialer)
    except BaseException as error:
        with contextlib.suppress(*BROKEN):
            channel.close()
        if isinstance(error, TimeoutError):
            raise TargetError(
                f"{dialer.name}: the engine does not answer within {dialer.timeout:g} s of the login",
                dialer.unanswered,
            ) from error
        if isinstance(error, BROKEN):
            raise _no_engine(dialer, b"", str(error)) from error
        raise


def _begun(channel: Channel, dialer: Dialer) -> dict[str, Any]:
    data, digest = shipped()
    channel.settimeout(dialer.timeout)
    channel.sendall(program(dialer.state))
    word, detail = _word(channel, dialer)
    if word == "need":
        log.info("engine.shipped", node=dialer.name, digest=digest, bytes=len(data))
        channel.sendall(data)
        word, detail = _word(channel, dialer)
    if word == "failed":
        raise refused(dialer.name, dialer.python, detail)
    detail = replies.known(dialer.name, detail, replies.HELLO)
    if detail["version"] != VERSION:
        raise TargetError(f"{dialer.name}: its engine is version {detail['version']}, not {VERSION}")
    return detail


def program(state: str, run: str = "") -> bytes:
    """What `server` reads: the engine's server, or the engine of a run that is prepared, is started there."""
    data, digest = shipped()
    text = Path(bootstrap.__file__).read_text(encoding="utf-8")
    text += f"\nserve({digest!r}, {len(data)}, {state!r}, {run!r})\n"
    return repr(text).encode() + b"\n"


def _word(channel: Channel, dialer: Dialer) -> tuple[str, dict[str, Any]]:
    """What the bootstrap or the engine says, found behind whatever a login shell prints."""
    data = b""
    deadline = time.monotonic() + dialer.timeout
    while True:
        match = WORD.search(data)
        if match:
            try:
                detail = loads(match[2])
            except ValueError as error:
                raise replies.strange(dialer.name, error) from error
            return match[1].decode(), detail if isinstance(detail, dict) else {}
        if time.monotonic() > deadline:
            raise TimeoutError
        piece = channel.recv(BLOCK)
        if not piece:
            raise _no_engine(dialer, data)
        data = (data + piece)[-BLOCK:]


def _no_engine(dialer: Dialer, printed: bytes, why: str = "closed by the node") -> TargetError:
    status, errors = dialer.ending()
    texts = [text.decode("utf-8", "replace").strip().splitlines() for text in (errors, printed)]
    last = next((lines[-1] for lines in texts if lines), "")
    if status in (126, 127):
        return TargetError(
            f"{dialer.name}: there is no {dialer.python} on the node ({last})",
            "install Python 3.8 or later there, or set `python` in the nodes file",
        )
    if status is None:
        return Lost(f"{dialer.name}: the connection was lost: {why}")
    return TargetError(
        f"{dialer.name}: the engine failed to start: exit status {status}" + (f": {last}" if last else ""),
        "check with `runner shell NODE` that this user can run commands there",
    )
