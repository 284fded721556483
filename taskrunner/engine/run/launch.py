"""The process that runs a plan: started in the foreground or, once only, detached; and cancelled."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys

from ..store import fileio, identity, paths
from ..store.events import parse
from .descriptors import close_all_but

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .reaper import Watched

ITSELF = "/proc/self/exe"
CRASHED = 70
"""EX_SOFTWARE of sysexits(3)."""
LAUNCH = (
    'import os, sys; sys.path.insert(0, os.environ.pop("TASKRUNNER_ENGINE")); '
    "from engine.main import main; sys.exit(main(sys.argv[1:]))"
)


def command(*argv: str) -> tuple[list[str], dict[str, str]]:
    """What runs this in another process, and what it needs in its environment: an interpreter that neither
    site-packages nor PYTHON* variables reach.

    No path is in the command line: a step that looks for a process by a pattern must not find this one.
    """
    python = ITSELF if os.path.realpath(ITSELF) == os.path.realpath(sys.executable) else sys.executable
    folder = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
    return [python, "-I", "-S", "-c", LAUNCH, *argv], {"TASKRUNNER_ENGINE": folder}


def run(directory: str, bell: str = "-1") -> int:
    """Run a plan under a reaper; what the event log cannot hold is said on the bell and on stderr."""
    from . import reaper

    return reaper.under(lambda watched: work(watched, directory, bell))


def work(watched: Watched, directory: str, bell: str = "-1") -> int:
    """What `run` does, under its reaper."""
    from . import runner  # not what starts or cancels another process needs

    ring = int(bell)
    if directory == "-":
        directory = sys.stdin.readline().rstrip("\n")
        if not directory:
            return 0
    if ring >= 0:
        os.set_inheritable(ring, False)
        os.set_blocking(ring, False)
    try:
        return runner.run(directory, ring, watched)
    except runner.Fatal as error:
        message = str(error)
    except Exception:
        import traceback

        message = "the engine has crashed:\n" + traceback.format_exc()
    sys.stderr.write(message + "\n")
    sys.stderr.flush()
    if ring >= 0:
        os.write(ring, message.encode() + b"\n")
    return CRASHED


def start(directory: str) -> int:
    """Run a plan detached. Whoever calls it twice for one run directory starts one engine."""
    launch(directory)
    return 0


def launch(directory: str, bell: int = -1) -> int:
    """Run a plan in a process of its own; its pid, or 0 when the run has been started before."""
    fd = _claim(directory)
    if fd is None:
        return 0
    try:
        pid = os.fork()
        if pid == 0:
            # Whatever comes, the child never returns to its parent's work.
            try:
                os._exit(_detached(directory, fd, bell))
            finally:
                os._exit(CRASHED)
        return pid
    finally:
        os.close(fd)


def service(directory: str = "") -> int:
    """Run a plan in this process, which somebody has detached already; once, as with `start`.

    Without an argument, the directory is in the environment.
    """
    directory = directory or os.environ.pop("TASKRUNNER_DIRECTORY")
    fd = _claim(directory)
    return 0 if fd is None else _detached(directory, fd, -1)


def step(root: str, run: str) -> int:
    """Run a plan in a process of its own, once, and wait until all that it has started has ended: a batch
    system ends what a step leaves behind, servers too. SIGTERM cancels the run.
    """
    from .reaper import be_subreaper

    be_subreaper()
    pid = launch(paths.run_dir(root, run))
    if pid:
        signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    return 0


def _claim(directory: str) -> int | None:
    """The lock of the one who may start the run; None when it has been started before."""
    fd = os.open(os.path.join(directory, "start"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.exists(os.path.join(directory, paths.EVENTS)):
            return fd
    except BlockingIOError:
        pass
    os.close(fd)
    return None


def _detached(directory: str, lock_fd: int, bell: int) -> int:
    with contextlib.suppress(PermissionError):  # who leads a session already
        os.setsid()
    close_all_but(lock_fd, bell)
    path = os.path.join(directory, paths.ENGINE_LOG)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.environ["TASKRUNNER_HOME"] = paths.root_of(directory)
    return run(directory, str(bell))


def cancel(directory: str) -> int:
    """Ask a run to stop; 0 when there is an engine to hear it, else 1."""
    path, early = os.path.join(directory, paths.ENGINE), os.path.join(directory, paths.EARLY)
    if not os.path.exists(path) and os.path.isdir(directory):
        # One that is coming up looks for this when it can be asked; whoever takes it away sees to it.
        os.close(os.open(early, os.O_WRONLY | os.O_CREAT, 0o600))
        try:
            if os.path.exists(path):
                os.unlink(early)
            else:
                return 0
        except FileNotFoundError:
            return 0
    request = parse(fileio.read_bytes(path))
    if request is None or not identity.alive(request):
        return 1
    os.kill(request["pid"], signal.SIGTERM)
    return 0
