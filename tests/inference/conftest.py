"""Servers that know the truth, and proxies in front of them."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.helpers import wait_for

START = [sys.executable, "-m", "taskrunner"]


class Told(NamedTuple):
    """A server, and what it did."""

    url: str
    process: subprocess.Popen[str]
    workers: int = 1

    def processes(self) -> list[int]:
        """It, and its workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [self.process.pid, *map(int, children.split())]

    def log(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(get(f"{self.url}/log"))
        return found


def get(url: str, body: bytes | None = None, **headers: str) -> str:
    request = urllib.request.Request(
        url,
        body,
        {"Content-Type": "application/json"}
        | {name.replace("_", "-"): value for name, value in headers.items()},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return str(response.read().decode())


def address(said: Path) -> str:
    """The URL of a proxy, from the file with what it says, when it is ready."""
    line = wait_for(lambda: next((n for n in said.read_text().splitlines() if "ready on" in n), ""), 20)
    return "http://" + str(line).rpartition("ready on ")[2]


@pytest.fixture
def truth() -> Iterator[Callable[..., Told]]:
    """Start a server (see tests/scripted_server.py); its options as words."""
    started: list[subprocess.Popen[str]] = []

    def start(*options: object) -> Told:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.scripted_server", *map(str, options)],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        started.append(process)
        assert process.stdout is not None
        return Told(f"http://127.0.0.1:{process.stdout.readline().strip()}", process)

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(params=[1, 3], ids=["one process", "three workers"])
def proxy(tmp_path: Any, request: pytest.FixtureRequest) -> Iterator[Callable[..., Told]]:
    """Start a proxy; its options as words."""
    started: list[subprocess.Popen[str]] = []

    def start(*options: object) -> Told:
        said = tmp_path / f"proxy{len(started)}"
        with said.open("w") as errors:
            process = subprocess.Popen(
                [*START, "proxy", "--port", "0", "--workers", str(request.param), *map(str, options)],
                text=True,
                stderr=errors,
            )
        started.append(process)
        return Told(address(said), process, request.param)

    yield start
    for process in started:
        process.terminate()
        assert process.wait(40) == 0


@pytest.fixture
def behind(truth: Callable[..., Told], proxy: Callable[..., Told]) -> tuple[Told, Told, Told]:
    p, d = truth("--role", "prefill", "--ttft", 1), truth("--role", "decode", "--ttft", 1, "--gap", 1)
    return p, d, proxy("--prefill", p.url, "--decode", d.url)
