"""The first words with a node: its engine is started, and shipped when it is missing there."""

from __future__ import annotations

import contextlib
import re
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from taskrunner import log
from taskrunner.engine import VERSION
from taskrunner.engine.node import bootstrap
from taskrunner.engine.store.bounded_json import loads
from taskrunner.errors import TargetError
from taskrunner.transports import replies
from taskrunner.transports.bundle import refused, shipped
from taskrunner.transports.ssh.connection import Lost
from taskrunner.transports.ssh.endpoint import Endpoint

if TYPE_CHECKING:
    from paramiko import Channel
    from paramiko import Transport as Connection

BLOCK = 1 << 20
WORD = re.compile(rb"\0taskrunner-(need|failed|engine) (\{.*?\})\n")


class Node(NamedTuple):
    """What is to be started: on which host, with which Python, with its state in which folder."""

    endpoint: Endpoint
    python: str
    state: str
    timeout: float


def begin(connection: Connection, node: Node) -> tuple[Channel, dict[str, Any]]:
    """The channel to the engine's server there, and what it says of itself.

    Raises TargetError with what is wrong on the node, Lost when the connection breaks.
    """
    import paramiko

    channel: Channel | None = None
    try:
        channel = connection.open_session(timeout=node.timeout)
        return channel, _begun(channel, node)
    except BaseException as error:
        if channel is not None:
            with contextlib.suppress(EOFError, OSError):
                channel.close()
        if isinstance(error, paramiko.ChannelException):
            raise TargetError(
                f"{node.endpoint}: sshd refuses a session: {error.text}",
                "check MaxSessions and ForceCommand in its sshd_config",
            ) from error
        if isinstance(error, TimeoutError):
            raise TargetError(
                f"{node.endpoint}: the engine does not answer within {node.timeout:g} s of the login",
                "check whether a startup file of the login shell there waits for something",
            ) from error
        if isinstance(error, (paramiko.SSHException, EOFError, OSError)):
            raise Lost(f"{node.endpoint}: the connection was lost: {error}") from error
        raise


def _begun(channel: Channel, node: Node) -> dict[str, Any]:
    data, digest = shipped()
    program = Path(bootstrap.__file__).read_text(encoding="utf-8")
    program += f"\nserve({digest!r}, {len(data)}, {node.state!r})\n"
    # Words that mean the same in every login shell: sh, bash, zsh, fish, csh.
    channel.exec_command(
        f"exec {shlex.quote(node.python)} -I -S -c"
        " 'import sys; exec(eval(sys.stdin.buffer.readline()))' taskrunner-engine"
    )
    channel.settimeout(node.timeout)
    channel.sendall(repr(program).encode() + b"\n")
    word, detail = _word(channel, node)
    if word == "need":
        log.info("engine.shipped", node=str(node.endpoint), digest=digest, bytes=len(data))
        channel.sendall(data)
        word, detail = _word(channel, node)
    if word == "failed":
        raise refused(str(node.endpoint), node.python, detail)
    detail = replies.known(str(node.endpoint), detail, replies.HELLO)
    if detail["version"] != VERSION:
        raise TargetError(f"{node.endpoint}: its engine is version {detail['version']}, not {VERSION}")
    return detail


def _word(channel: Channel, node: Node) -> tuple[str, dict[str, Any]]:
    """What the bootstrap or the engine says, found behind whatever a login shell prints."""
    data = b""
    deadline = time.monotonic() + node.timeout
    while True:
        match = WORD.search(data)
        if match:
            try:
                detail = loads(match[2])
            except ValueError as error:
                raise replies.strange(str(node.endpoint), error) from error
            return match[1].decode(), detail if isinstance(detail, dict) else {}
        if time.monotonic() > deadline:
            raise TimeoutError
        piece = channel.recv(BLOCK)
        if not piece:
            raise _no_engine(channel, node, data)
        data = (data + piece)[-BLOCK:]


def _no_engine(channel: Channel, node: Node, printed: bytes) -> TargetError:
    channel.status_event.wait(5)
    status = channel.exit_status if channel.exit_status_ready() else -1
    errors = b""
    with contextlib.suppress(TimeoutError):
        while len(errors) < BLOCK and (piece := channel.recv_stderr(BLOCK)):
            errors += piece
    texts = [text.decode("utf-8", "replace").strip().splitlines() for text in (errors, printed)]
    last = next((lines[-1] for lines in texts if lines), "")
    if status in (126, 127):
        return TargetError(
            f"{node.endpoint}: there is no {node.python} on the node ({last})",
            "install Python 3.8 or later there, or set `python` in the nodes file",
        )
    if status == -1:
        return Lost(f"{node.endpoint}: the connection was lost: closed by the node")
    return TargetError(
        f"{node.endpoint}: the engine failed to start: exit status {status}" + (f": {last}" if last else ""),
        "check with `runner shell NODE` that this user can run commands there",
    )
