"""A node over SSH as a target."""

from __future__ import annotations

import contextlib
import threading

from taskrunner.transports.remote import RECONNECT_TIMEOUT
from taskrunner.transports.ssh.dialer import SshDialer
from taskrunner.transports.ssh.endpoint import resolve
from taskrunner.transports.stream.session import Session
from taskrunner.transports.stream.transport import StreamTransport

CONNECT_TIMEOUT = 10.0


def _load_library() -> None:
    with contextlib.suppress(ImportError):  # who connects says what is missing
        import paramiko  # noqa: F401


class SshTransport(StreamTransport):
    """Runs on a node that is reached by SSH.

    `target` is `ssh://[user@]host[:port]`, completed from ~/.ssh/config. `python` is the node's
    interpreter (3.8 or later), `state` the folder of its state root (default: that of the user
    there). `connect_timeout` and `reconnect_timeout`, in seconds, are for the first connection and
    for getting back one that was lost. Host keys are checked; with `accept_new_host_keys` one that
    is not known yet is taken and remembered.

    One transport is for one thread at a time, but for `cancel`.
    """

    def __init__(
        self,
        target: str,
        *,
        python: str = "python3",
        state: str = "",
        connect_timeout: float = CONNECT_TIMEOUT,
        reconnect_timeout: float = RECONNECT_TIMEOUT,
        accept_new_host_keys: bool = False,
    ) -> None:
        # Slow to import, and needed first: nothing else runs beside it but ssh, asked for its configuration.
        loading = threading.Thread(target=_load_library, daemon=True)
        loading.start()
        self.dialer = SshDialer(
            resolve(target, accept_new=accept_new_host_keys), python, state, connect_timeout
        )
        loading.join()
        name = target if "://" in target else f"ssh://{target}"
        super().__init__(name, Session(self.dialer, reconnect_timeout))

    def go_through(self, command: str) -> None:
        """Connect by the stdin and stdout of this command (ProxyCommand)."""
        self.dialer.endpoint = self.dialer.endpoint._replace(proxy_command=command, proxy_jump=())
