"""The engine's server as a step of a Slurm job, beside whatever else the job does."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import tempfile
from typing import IO, NamedTuple

from taskrunner.errors import StateError, UsageError, closest
from taskrunner.transports.slurm import JOB, client
from taskrunner.transports.stream.dialer import Gone, Lost, server

TARGET = re.compile(rf"slurm://(?P<job>{JOB})/(?P<node>[A-Za-z0-9][A-Za-z0-9._-]*)/?")
NOISE = re.compile(rb"srun: error: \S+: task \d+: (Exited with exit code|Terminated|Killed)")
"""What srun says of each command that has failed, behind what that has said itself."""
ENDED = frozenset(
    "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY REVOKED TIMEOUT".split()
)
ENDING = 5.0
"""Seconds in which a step ends when its input does."""


class Allocated(NamedTuple):
    """A node of a job."""

    job: str
    node: str

    def __str__(self) -> str:
        return f"{self.node} of job {self.job}"

    def step(self, *options: str) -> list[str]:
        """The command that runs what follows it there, with all that the job has there. Raises UsageError,
        StateError.
        """
        devices = client.devices(self.job)
        return [
            client.program("srun"),
            f"--jobid={self.job}",
            "--overlap",
            "--nodes=1",
            "--ntasks=1",
            f"--nodelist={self.node}",
            *([f"--gres={devices}"] if devices else []),
            *options,
        ]

    def check(self) -> None:
        """Raise Gone where the job has ended or does not have the node, Lost where it is not running,
        StateError where Slurm does not answer.
        """
        state, nodes = client.placed(self.job)
        if not state or state in ENDED:
            raise Gone(f"{self}: the job has ended, or never was", "`squeue --me` lists your jobs")
        if state != "RUNNING":
            raise Lost(f"{self}: the job is {state.lower()}", "its nodes are reached while it runs")
        if self.node not in nodes:
            raise Gone(
                f"{self}: not a node of it", closest(self.node, nodes) or "its nodes: " + ", ".join(nodes)
            )


def parse(target: str) -> Allocated:
    """The node that a target names. Raises UsageError."""
    found = TARGET.fullmatch(target)
    if found is None:
        raise UsageError(
            f"{target!r} is not a target", "expected slurm://JOB/NODE, such as slurm://1234/gpu-1"
        )
    return Allocated(found["job"], found["node"])


def environment() -> dict[str, str]:
    """That of a step: ours, as Slurm's users know it. The state is where it is on the node."""
    return {name: value for name, value in os.environ.items() if name != "TASKRUNNER_HOME"}


class SlurmDialer:
    """One node of one job; see stream/dialer.py."""

    unanswered = "check with `squeue --steps` whether the job has room for another step"

    def __init__(self, node: Allocated, python: str, state: str, timeout: float) -> None:
        self.node, self.python, self.state, self.timeout = node, python, state, timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._channel: socket.socket | None = None

    @property
    def name(self) -> str:
        return str(self.node)

    def dial(self) -> socket.socket:
        self.close()
        try:
            self.node.check()
            step = self.node.step()
        except StateError as error:
            raise Lost(f"{self.node}: {error}") from error
        ours, theirs = socket.socketpair()
        with theirs:
            errors = tempfile.TemporaryFile()  # noqa: SIM115 - it is read when the step has ended
            try:
                self._process = subprocess.Popen(
                    [*step, "sh", "-c", server(self.python)],
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=errors,
                    env=environment(),
                    start_new_session=True,  # Ctrl-C is for us
                )
            except OSError as error:
                ours.close()
                errors.close()
                raise Lost(f"{self.node}: {step[0]}: {error.strerror}") from error
        self._channel, self._errors = ours, errors
        return ours

    def connected(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def ending(self) -> tuple[int | None, bytes]:
        if self._process is None or self._errors is None:
            return None, b""
        try:
            status = self._process.wait(ENDING)
        except subprocess.TimeoutExpired:
            return None, b""
        words = last_words(self._errors)
        self.close()
        return (None if status < 0 else status), words

    def close(self) -> None:
        if self._process is None or self._channel is None or self._errors is None:
            return
        self._channel.close()
        try:
            self._process.wait(ENDING)
        except subprocess.TimeoutExpired:
            _end(self._process)
        self._errors.close()
        self._process = self._channel = self._errors = None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End srun; one that waits for a node that is down does not end by itself."""
    process.terminate()
    try:
        process.wait(ENDING)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def last_words(errors: IO[bytes]) -> bytes:
    """What a step has said on stderr, and srun of it."""
    errors.seek(0)
    return b"\n".join(line for line in errors.read().splitlines() if line.strip() and not NOISE.match(line))
