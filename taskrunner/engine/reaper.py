"""What outlives the engine, to see how the process of its step ends.

Only the parent of a process learns how it has ended. The engine is that parent; the reaper is the
engine's, and asks the kernel to be given what the engine leaves behind (PR_SET_CHILD_SUBREAPER,
prctl(2)). While the engine lives it has nothing to do but to collect daemons that have lost their
parents. When the engine is killed, it waits for the step's process, and writes the end into the step's
file (see script.py), where the next engine finds it. Until it has, it holds a lock there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import time

from . import layout, lock, processes, script
from .masking import close_all_but

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

PR_SET_CHILD_SUBREAPER = 36
AGAIN = 0.5
"""Seconds between two tries to write on a full disk."""


def under(work: Callable[[Callable[[str], None]], int]) -> int:
    """Do the work in a child process, with this process as its reaper; returns its exit status.

    The work is given a function to call, with the run's directory, before its first step: from then on
    nothing is lost when it is killed.
    """
    ours, theirs = socket.socketpair()
    engine = os.fork()
    if engine == 0:
        ours.close()

        def watched(directory: str) -> None:
            with theirs, contextlib.suppress(OSError):
                theirs.sendall(os.fsencode(directory))
                theirs.recv(1)

        # Whatever comes, the child never returns to its parent's work.
        status = 70
        try:
            status = work(watched)
        finally:
            os._exit(status)
    theirs.close()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: _pass_on(engine, number))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return _reap(engine, ours)


def _pass_on(engine: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(engine, number)


def _reap(engine: int, told: socket.socket) -> int:
    """Wait for the end of the engine, and of what it leaves of its steps."""
    close_all_but(told.fileno())
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    _be_subreaper()
    watch = -1
    with told:
        directory = os.fsdecode(told.recv(4096))
        if directory:
            watch = _locked(directory)
            with contextlib.suppress(OSError):
                told.sendall(b"!")
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == engine:
            break
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    if directory:
        _outlive(directory)
    if watch >= 0:
        os.close(watch)
    code = _exit_code(status)
    return code if code >= 0 else 128 - code


def _exit_code(status: int) -> int:
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _be_subreaper() -> None:
    # What ctypes stands on: loading the rest of it takes ten times as long.
    with contextlib.suppress(ImportError, OSError, AttributeError):
        from _ctypes import call_function, dlopen, dlsym

        prctl = dlsym(dlopen(None, 0), "prctl")  # type: ignore[arg-type]
        call_function(prctl, (PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def _locked(directory: str) -> int:
    with contextlib.suppress(OSError):
        fd = os.open(os.path.join(directory, layout.REAPER), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return fd
    return -1


def _outlive(directory: str) -> None:
    """Note the ends of the steps' processes that an engine has left; those of one that has ended are gone."""
    folder, run = os.path.join(directory, "steps"), os.path.basename(directory).partition("@")[0]
    left: dict[int, str] = {}
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        path = os.path.join(folder, name)
        known = script.read_marks(layout.read_bytes(path)).process
        pid = known.get("pid") if known else processes.root_of("%s/%s" % (run, name))
        if isinstance(pid, int):
            left[pid] = path
    while left:
        try:
            pid, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return
        if pid in left:
            _note(left.pop(pid), _exit_code(status))


def _note(path: str, status: int) -> None:
    while os.path.exists(path):
        try:
            script.write_end(path, status)
            return
        except OSError:
            time.sleep(AGAIN)


def at_work(directory: str) -> bool:
    """Whether the reaper of a run has still to note how a step has ended."""
    return lock.held(os.path.join(directory, layout.REAPER))
