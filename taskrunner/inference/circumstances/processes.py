"""How much processor time processes have used, and which of them are ours (proc_pid_stat(5))."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

TICKS = os.sysconf("SC_CLK_TCK")
KERNEL, KERNEL_NAME = 2, "kthreadd"
"""The parent of kernel threads, which work for everybody; in a container another process may have its pid."""


class Process(NamedTuple):
    """A process, with the processor time in seconds that it and the children it has waited for have used.

    `start` is in clock ticks since boot and, with the pid, tells it from any other.
    """

    start: int
    parent: int
    session: int
    name: str
    used: float


def snapshot() -> dict[int, Process]:
    """All processes that can be seen, by pid; without kernel threads."""
    processes = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            process = of(int(name))
            if process is not None:
                processes[int(name)] = process
    if KERNEL in processes and processes[KERNEL].name == KERNEL_NAME:
        return {pid: each for pid, each in processes.items() if KERNEL not in (pid, each.parent)}
    return processes


def of(pid: int) -> Process | None:
    """One of them; None when it is gone."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = os.read(fd, 2048)
    except OSError:
        return None
    finally:
        os.close(fd)
    head, _, rest = data.rpartition(b") ")
    fields = rest.split()
    used = sum(map(int, fields[11:15])) / TICKS
    name = head.partition(b"(")[2].decode("utf-8", "replace")
    return Process(int(fields[19]), int(fields[1]), int(fields[3]), name, used)


def spent(before: Mapping[int, Process], after: Mapping[int, Process]) -> dict[int, float]:
    """Seconds of processor time that each process of `after` has used since `before`.

    What a process has used that has ended is in its parent's time, as soon as that has waited for it: from
    there, what was counted before is taken off.
    """
    gone: dict[int, float] = {}
    for pid, old in before.items():
        if pid not in after or after[pid].start != old.start:
            gone[old.parent] = gone.get(old.parent, 0.0) + old.used
    seconds_by_pid = {}
    for pid, new in after.items():
        earlier = before.get(pid)
        base = earlier.used if earlier is not None and earlier.start == new.start else 0.0
        seconds_by_pid[pid] = max(0.0, new.used - base - gone.get(pid, 0.0))
    return seconds_by_pid


def family(processes: Mapping[int, Process], roots: Iterable[int]) -> set[int]:
    """These processes, all below them, and the sessions that they lead."""
    members = {pid for pid in roots if pid in processes}
    sessions = {pid for pid in members if processes[pid].session == pid}
    children: dict[int, list[int]] = {}
    for pid, process in processes.items():
        children.setdefault(process.parent, []).append(pid)
        if process.session in sessions:
            members.add(pid)
    below = list(members)
    while below:
        for pid in children.get(below.pop(), ()):
            if pid not in members:
                members.add(pid)
                below.append(pid)
    return members


def ancestors(processes: Mapping[int, Process], pid: int) -> set[int]:
    """What a process was started by, up to the first one."""
    pids: set[int] = set()
    while pid in processes and pid not in pids:
        pids.add(pid)
        pid = processes[pid].parent
    return pids


def listeners(ports: Collection[int]) -> dict[int, int]:
    """Who listens on these TCP ports, by port, as far as it can be seen (proc_net_tcp(5), proc_pid_fd(5))."""
    sockets = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table) as file:
                lines = file.readlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            port = int(fields[1].rpartition(":")[2], 16)
            if fields[3] == "0A" and port in ports:
                sockets[f"socket:[{fields[9]}]"] = port
    found: dict[int, int] = {}
    for name in os.listdir("/proc") if sockets else ():
        if not name.isdigit():
            continue
        try:
            for fd in os.listdir(f"/proc/{name}/fd"):
                port = sockets.get(os.readlink(f"/proc/{name}/fd/{fd}"), 0)
                if port:
                    # The first is the one that was started; those that it has forked have it open, too.
                    found[port] = min(int(name), found.get(port, int(name)))
        except OSError:
            continue
    return found
