"""A real OpenSSH server on loopback, with keys, configuration and a home of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from taskrunner.engine.store import identity

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


def keygen(path: Path, kind: str = "ed25519", passphrase: str = "") -> Path:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", "test", "-f", str(path)], check=True
    )
    return path


def free_port() -> int:
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Ports that are free, and not the same: each is held until all are found."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def free_pair() -> int:
    """A port that is free, as is the next one."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            with contextlib.suppress(OSError, OverflowError):
                second.bind(("127.0.0.1", port + 1))
                return port


class Sshd:
    """The server: `home` and `state` are the node's, `user` who is logged in."""

    def __init__(self, folder: Path, *options: str, address: str = "127.0.0.1", env: str = "") -> None:
        self.folder = folder
        self.address = address
        self.home = folder / "node home"
        self.state = folder / "node-state"
        self.user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.home.mkdir(parents=True)
        self.host_key = keygen(folder / "host_key")
        self.authorized = folder / "authorized_keys"
        self.authorized.touch(mode=0o600)
        self.options = options
        self.env = env or f'HOME="{self.home}" TASKRUNNER_HOME="{self.state}"'

    @property
    def target(self) -> str:
        return f"ssh://{self.user}@127.0.0.1:{self.port}"

    def start(self) -> Sshd:
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", exist_ok=True)
        config = self.folder / "sshd_config"
        lines = [
            *self.options,
            f"Port {self.port}",
            f"ListenAddress {self.address}",
            f'HostKey "{self.host_key}"',
            f'AuthorizedKeysFile "{self.authorized}"',
            "StrictModes no",
            "UsePAM no",
            "PidFile none",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin yes",
            "Subsystem sftp internal-sftp",
            f"SetEnv {self.env}",
        ]
        config.write_text("\n".join(lines) + "\n")
        (self.folder / "sshd.log").unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [SSHD, "-D", "-f", str(config), "-E", str(self.folder / "sshd.log")],
            env={name: value for name, value in os.environ.items() if name != "TASKRUNNER_HOME"},
        )
        deadline = time.monotonic() + 10
        while True:
            log = (self.folder / "sshd.log").read_text() if (self.folder / "sshd.log").exists() else ""
            if self.process.poll() is not None and "Address already in use" in log:
                # Somebody else was given the port in between.
                self.port = free_port()
                return self.start()
            assert self.process.poll() is None, log
            if "Server listening" in log:
                return self
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def authorize(self, *keys: Path) -> None:
        text = "".join(Path(f"{key}.pub").read_text() for key in keys)
        self.authorized.write_text(text)

    def known_as(self, *names: str) -> str:
        """Lines for known_hosts."""
        kind, blob = Path(f"{self.host_key}.pub").read_text().split()[:2]
        names = names or (f"[127.0.0.1]:{self.port}",)
        return "".join(f"{name} {kind} {blob}\n" for name in names)

    def sessions(self) -> list[int]:
        """The processes that serve connections: children of the server, and theirs of the same name."""
        if self.process is None:
            return []
        found: list[int] = []
        parents = {}
        for name in os.listdir("/proc"):
            if name.isdigit() and (known := identity.stat(int(name))) and known[0] not in "ZX":
                parents[int(name)] = known[1]
        level = {self.process.pid}
        while level:
            level = {pid for pid, parent in parents.items() if parent in level and self._is_sshd(pid)}
            found += level
        return found

    def _is_sshd(self, pid: int) -> bool:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/comm").read_text().startswith("sshd")
        return False

    def cut(self) -> int:
        """Kill what serves the connections; how many processes that were."""
        found = self.sessions()
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(found)

    def stop(self) -> None:
        if self.process is not None:
            self.cut()
            self.process.kill()
            self.process.wait()
            self.process = None
