"""Processes: start one in a session of its own, tell it from others, end all that came of it."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from ..store import identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Iterable, Mapping, Sequence

TAG = "TASKRUNNER_TAG"
"""Environment variable that every process of a step or service inherits; it finds those that have
left the session and the parent (a daemon's double fork)."""

_KTHREADD = 2
"""The parent of the kernel's threads, which have neither arguments nor an environment."""
_EXEC_LOOKS = 10


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
    program = _programs.get((name, path))
    if program is None:
        program = name
        for folder in path.split(os.pathsep) if "/" not in name else ():
            candidate = os.path.join(folder, name)
            if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
                program = candidate
                break
        _programs[name, path] = program
    return program


_programs: dict[tuple[str, str], str] = {}


def tagged(pid: int, tag: str) -> bool:
    """Whether the process carries the tag, in its arguments or its environment."""
    for look in range(_EXEC_LOOKS):
        environ, words = _words(pid, "environ"), _words(pid, "cmdline")
        if any(words) and not any(environ):
            environ = _words(pid, "environ")  # execve may have ended in between
        if (TAG + "=" + tag).encode() in environ or tag.encode() in words:
            return _lives(pid)
        # While execve replaces the program, first both are empty, then there are arguments alone.
        if any(environ) or (any(words) and look > 0):
            return False
        fields = identity.stat(pid)
        if fields is None or fields[0] in "ZX" or _KTHREADD in (pid, fields[1]):
            return False
        if not any(words):
            time.sleep(0.001)
    return False


def _lives(pid: int) -> bool:
    fields = identity.stat(pid)
    return fields is not None and fields[0] not in "ZX"


def _words(pid: int, name: str) -> list[bytes]:
    with contextlib.suppress(OSError), open("/proc/%d/%s" % (pid, name), "rb") as file:
        return file.read().split(b"\0")
    return []


def pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def root_of(tag: str) -> int | None:
    """The process that was started under this tag, found by its arguments: no child inherits them."""
    return next((pid for pid in pids() if tag.encode() in _words(pid, "cmdline") and tagged(pid, tag)), None)


def tree(tag: str, root: int | None = None, seen: int = 0) -> set[int]:
    """The living processes of a step or service: those with its tag, in its root's session, or below either.

    Once the root is gone, its number may come to mean another session. It is still the same one where a
    member has the tag; and any member is one of ours that was there before `seen` (clock ticks since
    boot), when the root was.
    """
    known = _look_at_all()
    living = {pid: found for pid, found in known.items() if found[0] not in "ZX"}
    found = {pid for pid in living if tagged(pid, tag)}
    if root is not None:
        ours = root in known or any(living[pid][2] == root for pid in found)
        found |= {
            pid
            for pid, (_, _, session, start) in living.items()
            if session == root and (ours or start <= seen)
        }
    grew = True
    while grew:
        below = {pid for pid, (_, parent, _, _) in living.items() if parent in found} - found
        found |= below
        grew = bool(below)
    return found - {os.getpid()}


def _look_at_all() -> dict[int, tuple[str, int, int, int]]:
    """What `identity.stat` tells of every process; also of one whose parent has just ended."""
    known: dict[int, tuple[str, int, int, int]] = {}
    seen: set[int] = set()
    for _ in range(2):
        new = set(pids()) - seen
        seen |= new
        for pid in new:
            found = identity.stat(pid)
            if found is not None:
                known[pid] = found
    return known


def ticks() -> int:
    """Clock ticks since boot, as a process's start time counts them."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def end_tree(
    tag: str, root: int | None, grace: float, reap: Callable[[], object] = lambda: None, seen: int = 0
) -> set[int]:
    """TERM to every process of a step, KILL after `grace` seconds; returns those that resist.

    `reap` is called while they end.
    """
    for sign, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
        deadline = time.monotonic() + patience
        left = tree(tag, root, seen)
        _signal(left, sign)
        pause = 0.005
        while left:
            reap()
            # Also what the tree has started since: a process on its way down may still fork.
            now = tree(tag, root, seen)
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
    # Parents first: a shell whose command has ended would begin the next one.
    for pid in sorted(pids, key=_age):
        try:
            os.kill(pid, sign)
        except ProcessLookupError:
            pass
        except PermissionError:
            # Another user's process, started through sudo: sudo may end it, too.
            _run_quietly(["sudo", "-n", "kill", "-%d" % sign, str(pid)])


def _age(pid: int) -> tuple[int, int]:
    """What sorts a process behind its parent: when it started, and its number where both did so at once."""
    fields = identity.stat(pid)
    return (fields[3] if fields else 0, pid)


def _run_quietly(argv: list[str]) -> None:
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.waitpid(spawn(argv, dict(os.environ), null, null), 0)
    except OSError:
        pass
    finally:
        os.close(null)
