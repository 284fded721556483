"""What outlives the engine, to see how the process of its step ends.

Only the parent of a process learns how it has ended. The engine is that parent; the reaper is the
engine's, and asks the kernel to be given what the engine leaves behind (PR_SET_CHILD_SUBREAPER,
prctl(2)). While the engine lives it has nothing to do but to collect daemons that have lost their
parents. When the engine is killed, it waits for the step's process, and writes the end into the step's
file (see step_script.py), where the next engine finds it. Until it has, it holds a lock there.

It comes first in every run, so it imports late what only a killed engine needs.
"""

from __future__ import annotations

import os

from .descriptors import close_all_but

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    Watched = Callable[[str], Callable[[], None]]

PR_SET_CHILD_SUBREAPER = 36
LOCK = "reaper"
AGAIN = 0.5
"""Seconds between two tries to write on a full disk."""


def under(work: Callable[[Watched], int]) -> int:
    """Do the work in a child process, with this process as its reaper; returns its exit status.

    The work is given a function to call with the run's directory. What that returns is to be called before
    the first step: from then on nothing is lost when the work's process is killed.
    """
    directory, tell = os.pipe()
    ready, say = os.pipe()
    engine = os.fork()
    if engine == 0:
        os.close(directory)
        os.close(say)

        def watched(path: str) -> Callable[[], None]:
            _quietly(os.write, tell, os.fsencode(path))
            os.close(tell)
            return begun

        def begun() -> None:
            _quietly(os.read, ready, 1)
            os.close(ready)

        # Whatever comes, the child never returns to its parent's work.
        status = 70
        try:
            status = work(watched)
        finally:
            os._exit(status)
    return _reap(engine, directory, say)


def _quietly(call: Callable[..., object], *args: object) -> None:
    try:
        call(*args)
    except OSError:
        pass  # the reaper was killed; the work goes on without


def _reap(engine: int, told: int, say: int) -> int:
    """Wait for the end of the engine, and of what it leaves of its steps."""
    # What `signal` stands on: that builds enumerations at first, as the engine does at the same time.
    import _signal as signal  # type: ignore[import-not-found]

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: _quietly(os.kill, engine, number))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    close_all_but(told, say)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    be_subreaper()
    watch = -1
    directory = os.fsdecode(os.read(told, 4096))
    if directory:
        watch = _locked(directory)
        _quietly(os.write, say, b"!")
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == engine:
            break
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    code = _exit_code(status)
    if directory:
        if code < 0:
            from . import plan_file

            plan_file.forget_secrets(directory)
        _outlive(directory)
    if watch >= 0:
        os.close(watch)
    return code if code >= 0 else 128 - code


def _exit_code(status: int) -> int:
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def be_subreaper() -> None:
    """Become the parent of what this process's descendants leave behind."""
    # What ctypes stands on: loading the rest of it takes ten times as long.
    try:
        from _ctypes import call_function, dlopen, dlsym

        prctl = dlsym(dlopen(None, 0), "prctl")  # type: ignore[arg-type]
        call_function(prctl, (PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
    except (ImportError, OSError, AttributeError):
        pass  # then only what a step's program says itself is known of an end that nobody has seen


def _locked(directory: str) -> int:
    import fcntl

    try:
        fd = os.open(os.path.join(directory, LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return -1
    return fd


def _outlive(directory: str) -> None:
    """Note the ends of the steps' processes that an engine has left; those of one that has ended are gone."""
    folder, run = os.path.join(directory, "steps"), os.path.basename(directory).partition("@")[0]
    if not os.path.isdir(folder):
        return
    from ..store import fileio
    from . import processes, step_script

    left: dict[int, str] = {}
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        process = step_script.read_marks(fileio.read_bytes(path)).process
        pid = process.get("pid") if process else processes.root_of("%s/%s" % (run, name))
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
    import time

    from . import step_script

    while os.path.exists(path):
        try:
            step_script.write_end(path, status)
            step_script.forget(path)
            return
        except OSError:
            time.sleep(AGAIN)


def at_work(directory: str) -> bool:
    """Whether the reaper of a run has still to note how a step has ended."""
    from ..store import lock

    return lock.held(os.path.join(directory, LOCK))
