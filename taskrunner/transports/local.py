"""This machine as a target: the engine is a process of its own that outlives whoever started it."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskrunner.engine.run import launch, plan_file, processes, retention
from taskrunner.engine.store import fileio, paths, runs
from taskrunner.engine.store.follow import NONE, Chunk, RunReader
from taskrunner.errors import StateError

if TYPE_CHECKING:
    from taskrunner.engine.plan import Plan

POLL = 0.05
"""Seconds between two polls of a run that has no bell, and of a step's output."""
PACE = 0.01
"""Seconds at least between two polls: what reads every event at once slows down who writes them."""


class LocalTransport:
    """Runs on this machine, with their state under `root`."""

    name = ""
    skew = 0.0

    def __init__(self, root: str | Path | None = None) -> None:
        try:
            self.root = str(root) if root else paths.default_root()
        except OSError as error:
            raise StateError(
                str(error.strerror), "set HOME or TASKRUNNER_HOME to a folder that you own"
            ) from error
        self._warm: tuple[int, int, int] | None = None
        self._bells: dict[str, int] = {}
        self._said: dict[str, bytes] = {}
        self._pids: dict[str, int] = {}
        self._joined: dict[str, int] = {}

    def start(self, run: str, plan: Plan) -> Plan:
        plan = {**plan, "cwd": os.path.expanduser(plan["cwd"])}
        try:
            directory = runs.create(self.root, run, plan)
            self.join(run)
            self._launch(run, directory)
        except OSError as error:
            raise self._state_error(error) from error
        retention.prune(self.root, run)
        return plan

    def open(self) -> None:
        """It is here."""

    def warm(self) -> None:
        """Start an engine that waits to be told its run: it comes up while the plan is made.

        It rings on its stdout; what it has to say before it dies comes there, too. It ends by
        itself when this process does before `start`.
        """
        if self._warm is not None:
            return
        bell, ring = os.pipe()
        order, give = os.pipe()
        try:
            argv, env = launch.command("run", "-", "1")
            pid = processes.spawn(argv, {**os.environ, "TASKRUNNER_HOME": self.root, **env}, order, ring)
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
            # One that could not come up has said why: who follows the run hears of it.
            with contextlib.suppress(BrokenPipeError):
                os.write(give, os.fsencode(directory) + b"\n")
        finally:
            os.close(give)

    def close(self) -> None:
        for run in list(self._joined):
            self.leave(run)
        self._reap()

    def plan(self, run: str) -> Plan | None:
        return plan_file.load_plan(paths.run_dir(self.root, run))

    def read(self, run: str, name: str, offset: int, limit: int = -1) -> bytes:
        path = os.path.join(paths.run_dir(self.root, run), name)
        try:
            return fileio.read_by_offset(path, offset, limit)
        except OSError as error:
            raise self._state_error(error) from error

    def follow(self, run: str, *, output: str, wait: bool = True) -> Iterator[Chunk | None]:
        feed = RunReader(paths.run_dir(self.root, run), output)
        while True:
            news = False
            try:
                for chunk in feed.read():
                    news = True
                    yield chunk
            except OSError as error:
                raise self._state_error(error) from error
            if feed.over or not wait:
                return
            if news:
                time.sleep(PACE)
            if feed.lost(lambda: self.alive(run), at_once=self.last_words(run) is not None):
                self._said.setdefault(run, runs.last_words(self.root, run).encode())
                return
            yield None
            self._wait(run, POLL * 4 if output == NONE else POLL)

    def _wait(self, run: str, seconds: float) -> None:
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
                    # The engine has closed its stdout: it has ended. What started it may have a step to
                    # wait for.
                    os.close(self._bells.pop(run))
                    return

    def alive(self, run: str) -> bool:
        self._reap()
        # Our child is alive from before the engine has written who it is.
        return runs.alive(self.root, run) or (run in self._pids and not runs.known(self.root, run))

    def _reap(self) -> None:
        for run, pid in list(self._pids.items()):
            try:
                ended = os.waitpid(pid, os.WNOHANG)[0] == pid
            except ChildProcessError:
                ended = True
            if ended:
                del self._pids[run]

    def last_words(self, run: str) -> str | None:
        if run in self._bells or run not in self._said:
            return None
        return self._said[run].decode("utf-8", "replace")

    def cancel(self, run: str) -> bool:
        return launch.cancel(paths.run_dir(self.root, run)) == 0

    def join(self, run: str) -> None:
        try:
            self._joined[run] = runs.join(self.root, run)
        except OSError as error:
            raise self._state_error(error) from error

    def leave(self, run: str) -> None:
        for held in (self._joined, self._bells):
            if run in held:
                os.close(held.pop(run))

    def followed(self, run: str) -> bool:
        return runs.followed(self.root, run)

    def runs(self) -> list[str]:
        return runs.runs(self.root)

    def info(self, run: str) -> dict[str, Any] | None:
        return runs.info(self.root, run)

    def infos(self, limit: int, live: bool = False) -> list[dict[str, Any]]:
        return runs.infos(self.root, limit, live)

    def discard(self, run: str) -> None:
        self.leave(run)
        runs.discard(self.root, run)

    def collect(self, plan: Plan, index: int, source: Plan) -> None:
        """The engine has put the outputs where they are wanted already."""

    def _state_error(self, error: OSError) -> StateError:
        return StateError(
            f"the state folder {self.root} cannot be used: {error.strerror}",
            "set TASKRUNNER_HOME to a writable folder with free space",
        )
