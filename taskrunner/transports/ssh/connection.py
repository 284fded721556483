"""One authenticated SSH connection: socket, proxies, handshake, host key, login."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import subprocess
import tempfile
import threading
import time
from typing import IO, TYPE_CHECKING, Any

from taskrunner import log
from taskrunner.errors import TargetError, UsageError
from taskrunner.transports.ssh import auth, hostkeys
from taskrunner.transports.ssh import endpoint as endpoints
from taskrunner.transports.ssh.endpoint import Endpoint
from taskrunner.transports.stream.dialer import WINDOW, Lost

if TYPE_CHECKING:
    from paramiko import Transport

KEEPALIVE = 15
"""Seconds between two signs of life, for what is on the way (NAT, firewalls)."""
UNANSWERED = 30_000
"""Milliseconds after which the kernel gives up what a peer does not acknowledge."""
PACKET = 1 << 18

# Without a handler, Python prints the library's warnings and tracebacks on stderr.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


OVERLOADED = "MaxStartups"


class Heard:
    """A socket that remembers what came before the other end said that it is SSH."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self._heard = b""
        self._over = False

    def recv(self, size: int) -> bytes:
        data: bytes = self._sock.recv(size)
        if not self._over:
            self._heard += data
            self._over = len(self._heard) > 1024 or b"SSH-" in self._heard
        return data

    def words(self) -> str:
        text = " ".join(self._heard.partition(b"SSH-")[0].decode("utf-8", "replace").split())
        return text[:300] if text.isprintable() else ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class LastWords(logging.Handler):
    """Hears why the other end disconnects: the library tells that to its log alone."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text.startswith("Disconnect (code"):
            self.text = text.partition("): ")[2].strip()[:300]


def connect(endpoint: Endpoint, timeout: float, behind: tuple[str, ...] = ()) -> Transport:
    """An SSH connection, logged in. `timeout`, in seconds, is for each of its phases;
    `behind` are the hosts that it is a way to.

    Raises TargetError, which says what failed and what to do; Lost when the host has hung up.
    """
    import paramiko

    began = time.monotonic()
    log.debug(
        "ssh.connect",
        host=endpoint.host,
        port=endpoint.port,
        user=endpoint.user,
        proxy=endpoint.proxy_command or ",".join(endpoint.proxy_jump),
    )
    transport: Transport | None = None
    sock: Heard | None = None
    words = LastWords()
    proxy_errors = tempfile.TemporaryFile() if endpoint.proxy_command else None  # noqa: SIM115
    try:
        sock = Heard(_socket(endpoint, timeout, proxy_errors, behind))
        as_socket: Any = sock
        transport = paramiko.Transport(as_socket, default_window_size=WINDOW, default_max_packet_size=PACKET)
        transport.daemon = True
        transport.set_log_channel(f"paramiko.{id(transport)}")
        library = logging.getLogger(transport.get_log_channel())
        library.addHandler(words)
        library.propagate = False
        # The first two are for a peer that says nothing, too: start_client is to see that first.
        transport.banner_timeout = transport.handshake_timeout = 2 * timeout
        transport.auth_timeout = timeout
        options = transport.get_security_options()
        # GCM encrypts and authenticates in one pass, several times as fast here as the others.
        options.ciphers = sorted(options.ciphers, key=lambda name: not name.startswith("aes128-gcm"))
        options.key_types = hostkeys.algorithms(endpoint, tuple(options.key_types))
        transport.start_client(timeout=timeout)
        if not transport.initial_kex_done:
            raise TimeoutError  # of which it says nothing
        hostkeys.check(endpoint, transport.get_remote_server_key())
        auth.authenticate(transport, endpoint)
        transport.set_keepalive(KEEPALIVE)
        log.info("ssh.connected", host=endpoint.host, seconds=round(time.monotonic() - began, 3))
        return transport
    except BaseException as error:
        if transport is not None:
            transport.close()
        if isinstance(error, (paramiko.SSHException, EOFError, OSError)):
            cause = _last_line(proxy_errors) or words.text or (sock.words() if sock is not None else "")
            raise _explained(endpoint, error, timeout, cause) from error
        if isinstance(error, TargetError) and words.text:
            raise type(error)(f"{error}: {words.text}", error.hint) from error
        raise
    finally:
        if proxy_errors is not None:
            proxy_errors.close()


def _socket(
    endpoint: Endpoint, timeout: float, proxy_errors: IO[bytes] | None, behind: tuple[str, ...]
) -> Any:
    if proxy_errors is not None:
        return _proxied(endpoint, proxy_errors)
    hops = endpoint.proxy_jump
    if hops and endpoints.parse(hops[-1])[0] != endpoint.alias:
        jump = _jump(hops, endpoint, timeout, (*behind, endpoint.alias))
        return jump.open_channel(
            "direct-tcpip", (endpoint.host, endpoint.port), ("127.0.0.1", 0), timeout=timeout
        )
    sock = socket.create_connection((endpoint.host, endpoint.port), timeout)
    # Small messages go at once: the wait for more costs up to 40 ms a round trip.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNANSWERED)
    return sock


def _proxied(endpoint: Endpoint, errors: IO[bytes]) -> socket.socket:
    """The end of a socket pair whose other end is the proxy command's stdin and stdout.

    The command ends when this end is closed.
    """
    ours, theirs = socket.socketpair()
    for process in list(_proxies):
        if process.poll() is not None:
            _proxies.remove(process)
    try:
        process = subprocess.Popen(
            ["/bin/sh", "-c", "exec " + endpoint.proxy_command],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=errors,
            start_new_session=True,
        )
        _proxies.append(process)
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    return ours


_proxies: list[subprocess.Popen[bytes]] = []
_jumps: dict[Endpoint, Transport] = {}
_jump_locks: dict[Endpoint, threading.Lock] = {}


def _jump(hops: tuple[str, ...], target: Endpoint, timeout: float, behind: tuple[str, ...]) -> Transport:
    """The connection to the last of these hosts; every target behind it shares it."""
    host = endpoints.resolve(hops[-1], accept_new=target.accept_asked)
    if host.alias in behind:
        raise UsageError(
            f"~/.ssh/config: ProxyJump for {host.alias} goes in a circle: "
            + " -> ".join((*behind, host.alias))
        )
    if hops[:-1]:
        host = host._replace(proxy_jump=hops[:-1], proxy_command="")
    with _jump_locks.setdefault(host, threading.Lock()):
        jump = _jumps.get(host)
        if jump is None or not jump.is_active():
            jump = _jumps[host] = connect(host, timeout, behind)
        return jump


def _last_line(errors: IO[bytes] | None) -> str:
    if errors is None:
        return ""
    with contextlib.suppress(OSError):
        errors.seek(0)
        lines = errors.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else ""
    return ""


NETWORK = {
    errno.ECONNREFUSED: (
        "connection refused: nothing listens there",
        "check that sshd runs, and check the port and the security group",
    ),
    errno.EHOSTUNREACH: ("no route to host", "check the address, and that the node is up"),
    errno.ENETUNREACH: ("the network is unreachable", "check that this machine is online"),
}


def _explained(endpoint: Endpoint, error: BaseException, timeout: float, words: str) -> TargetError:
    """What went wrong with a connection, and what to do about it."""
    import paramiko

    if endpoint.proxy_command:
        what, hint = f"its ProxyCommand failed: {words or error}", endpoint.proxy_command
    elif isinstance(error, socket.gaierror):
        what, hint = (
            f"cannot resolve the name {endpoint.host} ({error.strerror})",
            "check it in the nodes file or URL",
        )
    elif isinstance(error, TimeoutError) or "timed out" in str(error).lower():
        what = f"no answer within {timeout:g} s"
        hint = "check the address, that the node is up, and that its security group allows port 22"
    elif isinstance(error, paramiko.ChannelException):
        what, hint = (
            f"the jump host cannot reach it: {error.text}",
            f"ProxyJump {','.join(endpoint.proxy_jump)}",
        )
    elif isinstance(error, OSError) and error.errno in NETWORK:
        what, hint = NETWORK[error.errno]
    elif "banner" in str(error) or isinstance(error, (EOFError, ConnectionResetError, BrokenPipeError)):
        what = "it closed the connection before authentication, or is not an SSH server"
        what += f"; it says: {words}" if words else ""
        hint = "check the port; sshd may be overloaded (MaxStartups): see its log"
        # What it says on purpose is not asked for again and again.
        kind = TargetError if words and OVERLOADED not in words else Lost
        return kind(f"{endpoint}: {what}", hint)
    else:
        what, hint = f"no SSH connection: {error or type(error).__name__}", ""
    return TargetError(f"{endpoint}: {what}", hint)
