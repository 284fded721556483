"""An instance and the agent on it, as amazon-ssm-agent behaves: it executes for real.

What it does is that of the agent's own code (executers.go, runscript, pluginutil): scripts run through
`sh -c`, in their own process group, without HOME, until both pipes are closed; a timeout or a cancel is an
immediate SIGKILL of the group; exit codes 137, 168, 169 and 194 have meanings of their own.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taskrunner.engine.store import identity

WORKERS = 5
STDOUT, STDERR = 24_000, 8_000
TRUNCATED = b"--output truncated--"
REBOOTS = 15
STARTING = threading.Lock()


@dataclass
class Invocation:
    """A command on one instance."""

    command: str
    instance: str
    script: list[str]
    timeout: float
    directory: str
    sent: float
    status: str = "Pending"
    details: str = "Pending"
    code: int = -1
    stdout: bytes = b""
    stderr: bytes = b""
    started: float = 0.0
    ended: float = 0.0
    seen: float = 0.0
    """When the service shows what has become of it."""
    cancelled: bool = False
    group: int = 0
    runs: int = 0

    @property
    def over(self) -> bool:
        return self.status in ("Success", "Failed", "TimedOut", "Cancelled")


@dataclass
class Instance:
    """A machine with an agent. `state` is its state folder; what runs there is known by it."""

    id: str
    state: Path
    env: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    ping: str = "Online"
    registered: bool = True
    platform: str = "Linux"
    prefix: tuple[str, ...] = ()
    down_until: float = 0.0
    """Until then the agent neither takes commands nor tells what has become of them."""
    commands: queue.Queue[Invocation | None] = field(default_factory=queue.Queue)
    most: int = 0
    """Most commands that ran at one time."""
    running: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)
    workers: list[threading.Thread] = field(default_factory=list)

    @property
    def reached(self) -> bool:
        return self.ping == "Online"

    def processes(self) -> list[int]:
        """The living processes of this machine, whoever's children they are."""
        needle = f"TASKRUNNER_HOME={self.state}".encode()
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != os.getpid():
                with contextlib.suppress(OSError):
                    known = identity.stat(int(name))
                    environ = Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
                    if known and known[0] not in "ZX" and needle in environ:
                        found.append(int(name))
        return found

    def power_off(self) -> None:
        """Kill all that runs there."""
        while left := self.processes():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)


class Agent:
    """Runs the commands of one instance: five at a time, the others wait."""

    def __init__(self, instance: Instance, folder: Path, now: Callable[[], float], region: str) -> None:
        self.instance, self.folder, self.now, self.region = instance, folder, now, region
        self.delivery = 0.0
        self.result = 0.0
        for _ in range(WORKERS):
            worker = threading.Thread(target=self._work, daemon=True)
            worker.start()
            instance.workers.append(worker)

    def _work(self) -> None:
        while True:
            found = self.instance.commands.get()
            if found is None:
                return
            if not found.over:
                self._one(found)

    def _one(self, found: Invocation) -> None:
        wait = found.sent + self.delivery - self.now()
        if wait > 0:
            time.sleep(wait)
        while self.now() < self.instance.down_until:
            time.sleep(0.02)
        with self.instance.lock:
            if found.over or found.cancelled:
                found.status = found.details = "Cancelled"
                return
            found.status, found.details = "InProgress", "In Progress"
            found.started = self.now()
            self.instance.running.add(found.command)
            self.instance.most = max(self.instance.most, len(self.instance.running))
        try:
            while self._run(found):
                pass
        finally:
            with self.instance.lock:
                self.instance.running.discard(found.command)
        while self.now() < self.instance.down_until:
            time.sleep(0.02)
        found.seen = self.now() + self.result

    def _run(self, found: Invocation) -> bool:
        """Execute once; whether it is to be executed again, because it has asked for a reboot."""
        found.runs += 1
        folder = self.folder / found.command / "awsrunShellScript" / "0.awsrunShellScript"
        folder.mkdir(parents=True, exist_ok=True)
        script = folder / "_script.sh"
        env = {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "INVOCATION_ID": "0" * 32,
            "AWS_SSM_INSTANCE_ID": self.instance.id,
            "AWS_SSM_REGION_NAME": self.region,
            "AWS_SSM_PLATFORM_NAME": "Ubuntu",
            "SSM_COMMAND_ID": found.command,
            "TASKRUNNER_HOME": str(self.instance.state),
            **self.instance.env,
        }
        # A process that is forked while the script is being written would keep it from being executed.
        with STARTING:
            script.write_text("\n".join(found.script) + "\n")
            script.chmod(0o700)
            process = subprocess.Popen(
                [*self.instance.prefix, "sh", "-c", f"'{script}'"],
                cwd=found.directory or "/usr/bin",
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        found.group = process.pid
        kept = {"stdout": bytearray(), "stderr": bytearray()}

        def drain(name: str, pipe: Any) -> None:
            while data := os.read(pipe.fileno(), 65536):
                kept[name] += data[: 2 * STDOUT - len(kept[name])]

        drains = [
            threading.Thread(target=drain, args=(name, getattr(process, name)), daemon=True) for name in kept
        ]
        for thread in drains:
            thread.start()
        timed_out = killed = False
        # Until both pipes are closed: whoever has inherited one keeps the command running.
        while any(thread.is_alive() for thread in drains) or process.poll() is None:
            if not killed and (found.cancelled or self.now() - found.started > found.timeout):
                timed_out, killed = not found.cancelled, True
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                for thread in drains:
                    thread.join(0.5)
                break
            drains[0].join(0.01)
        code = process.wait()
        if not any(thread.is_alive() for thread in drains):
            for name in kept:
                getattr(process, name).close()
        code = 137 if code == -9 else 128 - code if code < 0 else code
        if killed:
            code = 137
        errors = bytes(kept["stderr"])
        status, details = _status(code, found.cancelled)
        if timed_out:
            status, details = "TimedOut", "Execution Timed Out"
        if status == "Reboot":
            if found.runs <= REBOOTS:
                return True
            status, details = "Failed", "Failed"
        if code and status != "Success":
            errors += b"failed to run commands: exit status %d" % code
        if code == 168:
            errors = b""
        found.stdout, found.stderr = cut(bytes(kept["stdout"]), STDOUT), cut(errors, STDERR)
        found.code, found.ended = (0 if code == 168 else code), self.now()
        found.status, found.details = status, details
        return False


def _status(code: int, cancelled: bool) -> tuple[str, str]:
    if cancelled:
        return "Cancelled", "Cancelled"
    if code == 194:
        return "Reboot", ""
    if code in (0, 168):
        return "Success", "Success"
    if code == 137:
        return "TimedOut", "Execution Timed Out"
    return "Failed", "Failed"


def cut(data: bytes, limit: int, mark: bytes = TRUNCATED) -> bytes:
    """The head, by bytes, with the mark inside the limit."""
    return data if len(data) <= limit else data[: limit - len(mark)] + mark
