"""Processor time of a step, with that of every process that it takes; on a quiet machine and on a busy one."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.peers import build, guarded

SHORT, LONG, ROUNDS = 100, 400, 7
ACCOUNT = """
import ctypes, json, os, resource, subprocess, sys, time
PR_SET_CHILD_SUBREAPER = 36
ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
began = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
wall = time.perf_counter() - began
try:
    while True:
        os.wait()
except ChildProcessError:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([wall, used.ru_utime + used.ru_stime]))
"""
"""Runs a command and waits for all that it has left, too: an engine outlives the command by some milliseconds."""


def processor(folder: Path, taskrunner: str, peers: Path) -> None:
    """Wall and processor milliseconds of a guarded no-op step; what the start costs is left out by the
    difference between a long file and a short one.
    """
    commands: dict[str, dict[int, list[str]]] = {"taskrunner": {}}
    for count in (SHORT, LONG):
        path = folder / f"{count}.json"
        path.write_text(json.dumps(guarded(count)))
        commands["taskrunner"][count] = [taskrunner, str(path)]
        for peer in build(folder / f"peers{count}", count, peers):
            if peer.name.startswith("bash script"):
                commands.setdefault(peer.name, {})[count] = peer.argv
    print(
        "| guarded no-op steps | ms a step: wall | processor | 100 steps with the start: wall | processor |"
    )
    print("|---|---|---|---|---|")
    for load in (0, os.cpu_count() or 1):
        with busy(load):
            for name, (short, long) in _measured(commands, folder).items():
                steps = [(b - a) / (LONG - SHORT) * 1e3 for a, b in zip(short, long, strict=True)]
                whole = [value * 1e3 for value in short]
                print(
                    f"| {name}, {load} cores busy | "
                    + " | ".join(f"{ms:.2f}" for ms in (*steps, *whole))
                    + " |"
                )
    print()


def _measured(commands: dict[str, dict[int, list[str]]], folder: Path) -> dict[str, list[tuple[float, ...]]]:
    """Medians of wall and processor seconds, by command: of the short file, of the long one."""
    taken: dict[tuple[str, int], list[list[float]]] = {}
    for _ in range(ROUNDS):
        for name, by_count in commands.items():
            for count, argv in by_count.items():
                env = {**os.environ, "TASKRUNNER_HOME": str(folder / "home")}
                done = subprocess.run(
                    [sys.executable, "-c", ACCOUNT, *argv],
                    env=env,
                    cwd=folder,
                    check=True,
                    capture_output=True,
                )
                taken.setdefault((name, count), []).append(json.loads(done.stdout))
    middle = {key: tuple(map(statistics.median, zip(*rows, strict=True))) for key, rows in taken.items()}
    return {name: [middle[name, count] for count in (SHORT, LONG)] for name in commands}


@contextlib.contextmanager
def busy(cores: int) -> Iterator[None]:
    """Keep as many cores busy with other work."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
