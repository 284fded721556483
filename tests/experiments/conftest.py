from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskrunner import run
from tests.helpers import Process, command, completed
from tests.sshd import free_ports

ROOT = Path(__file__).parents[2]
PORTS = ("PREFILL_PORT", "DECODE_PORT", "PROXY_PORT", "SAMPLER_PORT")


class Bed:
    """A machine with servers that compute nothing, and what sweeps are given there."""

    def __init__(self, folder: Path) -> None:
        self.env_dir, self.faults = folder / "env", folder / "faults"
        self.faults.mkdir()
        python = self.env_dir / "venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        double = f"PYTHONPATH={shlex.quote(str(ROOT))} FAULTS={shlex.quote(str(self.faults))} exec {sys.executable} -m tests.vllm_double"
        python.write_text(
            f'#!/bin/sh\ncase "$2" in serve|bench) {double} "$@";; esac\nexec {sys.executable} "$@"\n'
        )
        python.chmod(0o755)
        (self.env_dir / "profile").write_text("cpu\n")
        (self.env_dir / "env.sh").touch()
        (self.env_dir / "logs").mkdir()
        (self.env_dir / "results").mkdir()
        self.rendezvous, *ports = free_ports(1 + len(PORTS))
        self.env: dict[str, Any] = {
            "ENV_DIR": self.env_dir,
            "MAX_LAG": 50,
            **dict(zip(PORTS, ports, strict=True)),
        }

    @property
    def words(self) -> list[str]:
        return [f"--env={name}={value}" for name, value in self.env.items()]

    def experiment(self, *words: object) -> Process:
        return completed(command("experiment", *map(str, words), *self.words), timeout=300)

    def starts(self) -> list[str]:
        """The modes of the servers that were started, in order."""
        log = self.faults / "starts"
        return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    made = Bed(tmp_path)
    yield made
    assert run("stop-serving").status == "ok"
