"""A node of a Slurm job as a target."""

from __future__ import annotations

import os
import signal
import tempfile
import time

from taskrunner.engine.plan import Plan
from taskrunner.engine.run import processes
from taskrunner.errors import TargetError
from taskrunner.transports.remote import RECONNECT_TIMEOUT
from taskrunner.transports.slurm.dialer import SlurmDialer, environment, last_words, parse
from taskrunner.transports.stream.dialer import server
from taskrunner.transports.stream.handshake import program
from taskrunner.transports.stream.session import Session
from taskrunner.transports.stream.transport import StreamTransport

CONNECT_TIMEOUT = 30.0
POLL_S = 0.05


_steps: set[int] = set()
"""The processes that hold the steps of runs: not ours to end, but to be waited for."""


class SlurmTransport(StreamTransport):
    """Runs on a node of a Slurm job, from where Slurm's commands work.

    `target` is `slurm://JOB/NODE`. `python` is the node's interpreter (3.8 or later), `state` the folder of
    its state root (default: that of the user there). `connect_timeout` and `reconnect_timeout`, in seconds,
    are for the first step and for getting back one that was lost. Each run is a step of its own, which lasts
    until all that the run has started has ended, the job ends, or its srun process is killed on its own.

    One transport is for one thread at a time, but for `cancel`.
    """

    def __init__(
        self,
        target: str,
        *,
        python: str = "python3",
        state: str = "",
        connect_timeout: float = CONNECT_TIMEOUT,
        reconnect_timeout: float = RECONNECT_TIMEOUT,
        accept_new_host_keys: bool = False,
    ) -> None:
        del accept_new_host_keys  # there are none
        self.dialer = SlurmDialer(parse(target), python, state, connect_timeout)
        super().__init__(target, Session(self.dialer, reconnect_timeout))

    def _launch(self, run: str, plan: Plan) -> None:
        """Start the engine in a step of its own: what a step has started ends with it, and the one with which
        we talk ends with the conversation.
        """
        _reap()
        step = self.dialer.node.step("--output=/dev/null", "--error=/dev/null")
        step += ["sh", "-c", server(self.dialer.python)]
        self._ask("prepare", run=run, plan=plan)
        with tempfile.TemporaryFile() as words, tempfile.TemporaryFile() as errors:
            words.write(program(self.dialer.state, run))
            words.seek(0)
            try:
                pid = processes.spawn(step, environment(), words.fileno(), errors.fileno())
            except OSError as error:
                self.discard(run)
                raise TargetError(f"{self.dialer.name}: {step[0]}: {error.strerror}") from error
            deadline = time.monotonic() + self.dialer.timeout
            while self.info(run) is None:
                status = _ended(pid)
                if status == 0:
                    return  # its log says why it could not begin: who follows the run hears of it
                if status is not None or time.monotonic() > deadline:
                    what = "no answer" if status is None else f"exit status {status}"
                    said = last_words(errors).decode("utf-8", "replace").splitlines()[-1:]
                    if status is None:
                        os.kill(pid, signal.SIGTERM)
                        _steps.add(pid)
                    self.discard(run)
                    raise TargetError(
                        f"{self.dialer.name}: the engine failed to start: {': '.join([what, *said])}",
                        self.dialer.unanswered,
                    )
                time.sleep(POLL_S)
            _steps.add(pid)


def _ended(pid: int) -> int | None:
    """The exit status of a child; None while it runs, 0 where somebody else has asked for it."""
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return 0
    return os.waitstatus_to_exitcode(status) if found else None


def _reap() -> None:
    """Forget the steps that have ended."""
    for pid in list(_steps):
        if _ended(pid) is not None:
            _steps.discard(pid)
