"""The samplers of a measurement: the client's own, and those of other nodes; asked before and after."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..endpoint import Endpoint, parse
from ..http_client import NotServed, get
from . import judge, machine
from .judge import CLIENT

PATIENCE, START_S = 20.0, 60.0
COMING_UP_S = 15.0
"""For a sampler elsewhere that is being started at this moment."""
CLOCK_QUESTIONS = 5


class Node(NamedTuple):
    """A sampler, and how much its clock is ahead of ours, in seconds, with the largest error of that."""

    name: str
    server: Endpoint
    begin: float = 0.0
    ahead: float = 0.0
    error: float = 0.0


def _clock(server: Endpoint) -> tuple[float, float]:
    """How wrong it may be by how much a clock is ahead of ours, and by how much it is, in seconds: the answer
    was given between question and arrival, most likely in the middle (Cristian's algorithm).
    """
    before = time.time()
    now = float(json.loads(get(server, "/health", PATIENCE))["now"])
    after = time.time()
    return (after - before) / 2, now - (before + after) / 2


class Samplers:
    """Samplers on the nodes of a measurement. `ports` are those of the servers here, None for no sampler;
    `urls` are samplers elsewhere: one of this machine is not asked. One that does not answer is a reason for
    doubt, not an error.
    """

    def __init__(self, ports: Sequence[int] | None, urls: Sequence[str], api_key: str = "") -> None:
        self.missing: dict[str, str] = {}
        self._process: subprocess.Popen[str] | None = None
        self._nodes: list[Node] = []
        own = "" if ports is None else self._start(ports, api_key)
        here = machine.about()
        given = ([(CLIENT, own)] if own else []) + [
            (parse(url).authority, url) for url in urls if not judge.has(CLIENT, here, parse(url).host)
        ]
        for name, url in given:
            self._nodes.append(Node(name, parse(url, api_key)))

    def _start(self, ports: Sequence[int], api_key: str) -> str:
        """Start the one of this machine; its URL, "" where that fails."""
        folder = Path(__file__).resolve().parents[1]
        words = [sys.executable, str(folder), "sample", "--port", "0", "--own", str(os.getpid())]
        for port in ports:
            words += ["--server", str(port)]
        env = {**os.environ, "VLLM_API_KEY": api_key}
        try:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=env,
            )
        except OSError as error:
            self.missing[CLIENT] = str(error)
            return ""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_S)
        line = self._process.stdout.readline() if ready else ""
        if "ready on" not in line:
            self.missing[CLIENT] = "its sampler did not start"
            return ""
        return "http://" + line.rpartition("ready on ")[2].strip()

    def begin(self) -> None:
        """Mark the beginning on every node."""
        until = time.monotonic() + COMING_UP_S
        marked = []
        for node in self._nodes:
            mark = self._marked(node)
            while mark is None and node.name != CLIENT and time.monotonic() < until:
                time.sleep(0.5)
                mark = self._marked(node)
            if mark is not None:
                self.missing.pop(node.name, None)
                marked.append(mark)
        self._nodes = marked

    def _marked(self, node: Node) -> Node | None:
        try:
            answer = json.loads(get(node.server, "/mark", PATIENCE))
            error, ahead = min(_clock(node.server) for _ in range(CLOCK_QUESTIONS))
            return node._replace(begin=float(answer["t"]), ahead=ahead, error=error)
        except (OSError, NotServed, ValueError, KeyError, TypeError) as error_:
            self.missing[node.name] = str(error_)
            return None

    def end(self) -> dict[str, Any]:
        """What was sampled since the beginning, by node; the servers of each under `servers`, by port."""
        answers: dict[str, Any] = {}
        for node in self._nodes:
            ended = self._marked(node)
            if ended is None:
                continue
            try:
                path = f"/window?begin={node.begin - 0.001:.6f}&end={ended.begin + 0.001:.6f}"
                answer = json.loads(get(node.server, path, PATIENCE))
                answer["servers"] = {}
                answer["clock"] = {
                    "unit": "ms",
                    "ahead": [node.ahead * 1e3, ended.ahead * 1e3],
                    "error": max(node.error, ended.error) * 1e3,
                }
                answers[node.name] = answer
                answer["servers"] = json.loads(get(node.server, "/servers", PATIENCE))
            except (OSError, NotServed, ValueError, TypeError) as error:
                self.missing[node.name] = str(error)
        return answers

    def close(self) -> None:
        """End the sampler of this machine."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def __enter__(self) -> Samplers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
