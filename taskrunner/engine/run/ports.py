"""Which TCP ports are listened on, and by whom (proc_net_tcp(5), proc_pid_fd(5))."""

from __future__ import annotations

import contextlib
import os
import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterable

ESTABLISHED, LISTEN = "01", "0A"


def listening(pids: Iterable[int] | None) -> set[int]:
    """The ports that any of the processes listens on; of all processes when None."""
    return _ports(pids, (LISTEN,))


def served(pids: Iterable[int] | None) -> set[int]:
    """The ports that any of the processes listens on, or has a connection at; of all processes when None."""
    return _ports(pids, (LISTEN, ESTABLISHED))


def _ports(pids: Iterable[int] | None, states: tuple[str, ...]) -> set[int]:
    sockets = _sockets(states)
    if pids is None:
        return set(sockets.values())
    return {sockets[inode] for pid in pids for inode in _sockets_of(pid) if inode in sockets}


def is_local(host: str) -> bool:
    """Whether a host is this machine: only its own addresses can be bound."""
    with contextlib.suppress(OSError, UnicodeError):
        for family, _, _, _, address in socket.getaddrinfo(host or None, 0, type=socket.SOCK_DGRAM):
            with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as own:
                own.bind(address)
                return True
    return False


def owner(port: int) -> str:
    """Who listens on a port, like " by pid 1 (init)"; "" when that cannot be seen."""
    inodes = {inode for inode, number in _sockets((LISTEN,)).items() if number == port}
    for name in os.listdir("/proc"):
        if name.isdigit() and inodes & _sockets_of(int(name)):
            with contextlib.suppress(OSError), open("/proc/%s/comm" % name) as file:
                return " by pid %s (%s)" % (name, file.read().strip())
    return ""


def _sockets(states: tuple[str, ...]) -> dict[str, int]:
    """The local ports of TCP sockets in these states, by inode."""
    ports = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError), open(table) as file:
            next(file)
            for line in file:
                fields = line.split()
                if fields[3] in states:
                    ports[fields[9]] = int(fields[1].rpartition(":")[2], 16)
    return ports


def _sockets_of(pid: int) -> set[str]:
    inodes = set()
    folder = "/proc/%d/fd" % pid
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                target = os.readlink(os.path.join(folder, name))
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
    return inodes
