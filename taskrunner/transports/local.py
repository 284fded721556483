"""This machine as a target: the engine is a process of its own that outlives whoever started it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import sys
import time
from pathlib import Path
from typing import Any

from taskrunner.engine import layout, lock, main, processes, recovery
from taskrunner.errors import StateError

KEEP_RUNS = 500
KEEP_DAYS = 30
LAUNCH = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from engine.main import main; sys.exit(main(sys.argv[1:]))"
)


class LocalTransport:
    """Runs on this machine, with their state under `root`."""

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = str(root) if root else layout.default_root()
        self._warm: tuple[int, int, int] | None = None
        self._bells: dict[str, int] = {}
        self._said: dict[str, bytes] = {}
        self._pids: dict[str, int] = {}
        self._follows: dict[str, int] = {}

    def start(self, run: str, plan: dict[str, Any]) -> None:
        directory = layout.run_dir(self.root, run)
        try:
            os.makedirs(directory, mode=0o700)
            layout.write_atomic(os.path.join(directory, layout.PLAN), json.dumps(plan).encode())
            self.follow(run)
            self._launch(run, directory)
        except OSError as error:
            raise self._state_error(error) from error
        self._prune(run)

    def warm(self) -> None:
        """Start an engine that waits to be told its run: it comes up while the plan is made.

        It rings on its stdout; what it has to say before it dies comes there, too. It ends by
        itself when this process does before `start`.
        """
        if self._warm is not None:
            return
        bell, ring = os.pipe()
        order, give = os.pipe()
        # -I -S: neither the user's site-packages nor PYTHON* variables reach the engine.
        argv = [sys.executable, "-I", "-S", "-c", LAUNCH, str(Path(main.__file__).parents[1])]
        try:
            env = {**os.environ, "TASKRUNNER_HOME": self.root}
            pid = processes.spawn([*argv, "run", "-", "1"], env, order, ring)
        finally:
            os.close(ring)
            os.close(order)
        os.set_blocking(bell, False)
        self._warm = (pid, bell, give)

    def _launch(self, run: str, directory: str) -> None:
        self.warm()
        assert self._warm is not None
        self._pids[run], self._bells[run], give = self._warm
        self._warm = None
        try:
            os.write(give, os.fsencode(directory) + b"\n")
        finally:
            os.close(give)

    def plan(self, run: str) -> dict[str, Any] | None:
        return recovery.load_plan(layout.run_dir(self.root, run))

    def read(self, run: str, name: str, offset: int, limit: int = -1) -> bytes:
        path = os.path.join(layout.run_dir(self.root, run), name)
        try:
            return layout.read_by_offset(path, offset, limit)
        except OSError as error:
            raise self._state_error(error) from error

    def wait(self, run: str, seconds: float) -> None:
        bell = self._bells.get(run)
        if bell is None:
            time.sleep(seconds)
        elif select.select([bell], [], [], seconds)[0]:
            self._listen(run, bell)

    def _listen(self, run: str, bell: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                data = os.read(bell, 65536)
                self._said[run] = self._said.get(run, b"") + data.strip(b"\n")
                if not data:
                    os.close(self._bells.pop(run))
                    # The engine has closed its stdout: it ends at this moment.
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(self._pids.pop(run), 0)
                    return

    def alive(self, run: str) -> bool:
        pid = self._pids.get(run)
        if pid is not None:
            # Our child, from before it has written who it is.
            found = processes.stat(pid)
            return found is not None and found[0] not in "ZX"
        return lock.engine_alive(layout.run_dir(self.root, run))

    def last_words(self, run: str) -> str | None:
        if run in self._bells or run not in self._said:
            return None
        return self._said[run].decode("utf-8", "replace")

    def cancel(self, run: str) -> bool:
        return main.cancel(layout.run_dir(self.root, run)) == 0

    def follow(self, run: str) -> None:
        path = os.path.join(layout.run_dir(self.root, run), layout.FOLLOWERS)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._state_error(error) from error
        fcntl.flock(fd, fcntl.LOCK_SH)
        self._follows[run] = fd

    def unfollow(self, run: str) -> None:
        for held in (self._follows, self._bells):
            if run in held:
                os.close(held.pop(run))

    def followed(self, run: str) -> bool:
        path = os.path.join(layout.run_dir(self.root, run), layout.FOLLOWERS)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        finally:
            os.close(fd)

    def runs(self) -> list[str]:
        try:
            return sorted(os.listdir(os.path.join(self.root, "runs")), reverse=True)
        except OSError:
            return []

    def discard(self, run: str) -> None:
        """Remove the directory of a run that is not live."""
        import shutil

        self.unfollow(run)
        shutil.rmtree(layout.run_dir(self.root, run), ignore_errors=True)

    def _prune(self, started: str) -> None:
        """Forget runs by count and age (which their ids begin with), never one that is live."""
        oldest = time.strftime("%Y%m%d", time.gmtime(time.time() - KEEP_DAYS * 86400))
        names = self.runs()
        for number in range(len(names) - 1, -1, -1):
            if number < KEEP_RUNS and names[number] >= oldest:
                return
            name = names[number]
            live = name == started or self.followed(name)
            if not live and not lock.engine_alive(layout.run_dir(self.root, name)):
                self.discard(name)

    def _state_error(self, error: OSError) -> StateError:
        return StateError(
            f"the state folder {self.root} cannot be used: {error.strerror}",
            "set TASKRUNNER_HOME to a folder that is writable and has space",
        )
