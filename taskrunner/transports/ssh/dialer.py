"""The engine's server over SSH: a connection that is kept, and a channel of it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from taskrunner.errors import TargetError
from taskrunner.transports.ssh.connection import connect
from taskrunner.transports.ssh.endpoint import Endpoint
from taskrunner.transports.stream.dialer import Lost, server

if TYPE_CHECKING:
    from paramiko import Channel
    from paramiko import Transport as Connection

BLOCK = 1 << 20
ENDING = 5.0
"""Seconds in which the exit status comes after the end of the output."""


class SshDialer:
    """One host; see stream/dialer.py."""

    unanswered = "check whether a startup file of the login shell there waits for something"

    def __init__(self, endpoint: Endpoint, python: str, state: str, timeout: float) -> None:
        self.endpoint, self.python, self.state, self.timeout = endpoint, python, state, timeout
        self._connection: Connection | None = None
        self._channel: Channel | None = None

    @property
    def name(self) -> str:
        return str(self.endpoint)

    def dial(self) -> Channel:
        import paramiko

        if self._connection is None or not self._connection.is_active():
            self._connection = connect(self.endpoint, self.timeout)
        try:
            self._channel = self._connection.open_session(timeout=self.timeout)
            self._channel.exec_command(server(self.python))
        except paramiko.ChannelException as error:
            raise TargetError(
                f"{self.name}: sshd refuses a session: {error.text}",
                "check MaxSessions and ForceCommand in its sshd_config",
            ) from error
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise Lost(f"{self.name}: the connection was lost: {error}") from error
        return self._channel

    def connected(self) -> bool:
        return self._channel is not None and not self._channel.closed

    def ending(self) -> tuple[int | None, bytes]:
        channel = self._channel
        if channel is None:
            return None, b""
        channel.status_event.wait(ENDING)
        status = channel.exit_status if channel.exit_status_ready() else -1
        errors = b""
        with contextlib.suppress(TimeoutError):
            while len(errors) < BLOCK and (piece := channel.recv_stderr(BLOCK)):
                errors += piece
        return (None if status == -1 else status), errors

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = self._channel = None
