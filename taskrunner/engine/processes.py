"""Processes: start one in a session of its own, tell it from others, end all that came of it."""

from __future__ import annotations

import contextlib
import os
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Iterable, Mapping, Sequence

TAG = "TASKRUNNER_TAG"
"""Environment variable that every process of a step or service inherits; it finds those that have
left the session and the parent (a daemon's double fork)."""


def spawn(
    argv: list[str],
    env: Mapping[str, str],
    stdin: int,
    output: int,
    more: Sequence[tuple[int, int]] = (),
) -> int:
    """Start a program in its own session; returns its pid. Raises FileNotFoundError, OSError.

    stdout and stderr both go to `output`; every other descriptor stays behind, but for those of
    `more`: (ours, the number it has there). The signals that
    Python ignores are given their default meaning back.
    """
    return os.posix_spawn(
        _program(argv[0], env),
        argv,
        env,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, stdin, 0),
            (os.POSIX_SPAWN_DUP2, output, 1),
            (os.POSIX_SPAWN_DUP2, output, 2),
            *((os.POSIX_SPAWN_DUP2, ours, theirs) for ours, theirs in more),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGHUP],
    )


def _program(name: str, env: Mapping[str, str]) -> str:
    """The file of a program, looked up in PATH once, not by an execve for each of its folders."""
    path = env.get("PATH", os.defpath)
    found = _programs.get((name, path))
    if found is None:
        found = name
        for folder in path.split(os.pathsep) if "/" not in name else ():
            candidate = os.path.join(folder, name)
            if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
                found = candidate
                break
        _programs[name, path] = found
    return found


_programs: dict[tuple[str, str], str] = {}


def stat(pid: int) -> tuple[str, int, int, int] | None:
    """State, parent, session and start time (clock ticks since boot) of a process."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
    except OSError:
        return None
    return fields[0].decode(), int(fields[1]), int(fields[3]), int(fields[19])


def boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def identity(pid: int) -> dict[str, object]:
    """What tells this process from a later one with the same pid."""
    found = stat(pid)
    return {"pid": pid, "start": found[3] if found else None, "boot": boot_id()}


def alive(known: Mapping[str, object]) -> bool:
    """Whether the process of an `identity` is still there, and not just a zombie."""
    pid = known.get("pid")
    found = stat(pid) if isinstance(pid, int) else None
    return (
        found is not None
        and found[0] not in "ZX"
        and found[3] == known.get("start")
        and known.get("boot") == boot_id()
    )


def session(known: Mapping[str, object]) -> int | None:
    """The session that the process of an `identity` leads, or has led: as long as any of it is left, the
    kernel gives its number to nobody else.
    """
    pid = known.get("pid")
    if not isinstance(pid, int) or known.get("boot") != boot_id():
        return None
    found = stat(pid)
    return pid if found is None or found[3] == known.get("start") else None


def tagged(pid: int, tag: str) -> bool:
    """Whether the process carries the tag, in its arguments or its environment."""
    needle = tag.encode()
    for name in ("cmdline", "environ"):
        with contextlib.suppress(OSError), open("/proc/%d/%s" % (pid, name), "rb") as file:
            if any(part in (needle, TAG.encode() + b"=" + needle) for part in file.read().split(b"\0")):
                found = stat(pid)
                return found is not None and found[0] not in "ZX"
    return False


def tree(tag: str, root: int | None = None) -> set[int]:
    """The living processes of a step: those with its tag, in the root's session, or below either."""
    found: set[int] = set()
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        pid = int(name)
        known = stat(pid)
        if known is None or known[0] in "ZX":
            continue
        parents[pid] = known[1]
        if pid == root or (root is not None and known[2] == root) or tagged(pid, tag):
            found.add(pid)
    grew = True
    while grew:
        below = {pid for pid, parent in parents.items() if parent in found} - found
        found |= below
        grew = bool(below)
    return found - {os.getpid()}


def end_tree(tag: str, root: int | None, grace: float, reap: Callable[[], object]) -> set[int]:
    """TERM to every process of a step, KILL after `grace` seconds; returns those that resist."""
    for sign, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
        deadline = time.monotonic() + patience
        left = tree(tag, root)
        _signal(left, sign)
        pause = 0.005
        while left:
            reap()
            # Also what the tree has started since: a process on its way down may still fork.
            now = tree(tag, root)
            if sign == signal.SIGKILL:
                _signal(now - left, sign)
            left = now
            if not left or time.monotonic() >= deadline:
                break
            time.sleep(pause)
            pause = min(pause * 1.6, 0.2)
        if not left:
            return set()
    return left


def _signal(pids: Iterable[int], sign: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, sign)
        except ProcessLookupError:
            pass
        except PermissionError:
            # Another user's process, started through sudo: sudo may end it, too.
            _run_quietly(["sudo", "-n", "kill", "-%d" % sign, str(pid)])


def _run_quietly(argv: list[str]) -> None:
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.waitpid(spawn(argv, dict(os.environ), null, null), 0)
    except OSError:
        pass
    finally:
        os.close(null)
