"""Processor time of a step, with that of every process that it takes; on a quiet machine and on a busy one."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.peers import build, guarded

SHORT, LONG, ROUNDS = 100, 1000, 9
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
    """Wall and processor time of guarded no-op steps, of taskrunner and of the bash script in turns. What the
    start costs is left out of the time of a step by the difference between a long file and a short one.
    """
    commands: dict[int, tuple[list[str], list[str]]] = {}
    for count in (SHORT, LONG):
        path = folder / f"{count}.json"
        path.write_text(json.dumps(guarded(count)))
        (script,) = (
            peer.argv
            for peer in build(folder / f"peers{count}", count, peers)
            if peer.name.startswith("bash script")
        )
        commands[count] = ([taskrunner, str(path)], script)
    print(
        "| guarded no-op steps, taskrunner / bash script (bash -c x2) | processor ms a step | ratio"
        f" | {SHORT} steps with the start: processor ms | wall ms | ratio | {LONG:,} steps: wall s | ratio |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for load in (0, os.cpu_count() or 1):
        with busy(load):
            rounds = [{count: _both(commands[count], folder) for count in commands} for _ in range(ROUNDS)]
        wall, spent = (
            {count: [[of[count][side][each] for of in rounds] for side in (0, 1)] for count in commands}
            for each in (0, 1)
        )
        a_step = [
            [
                (long - short) / (LONG - SHORT)
                for short, long in zip(spent[SHORT][side], spent[LONG][side], strict=True)
            ]
            for side in (0, 1)
        ]
        print(
            f"| {load} cores busy | {_pair(a_step, 2, 1e3)} | {_ratio(a_step)} | {_pair(spent[SHORT], 0, 1e3)}"
            f" | {_pair(wall[SHORT], 0, 1e3)} | {_ratio(wall[SHORT])}"
            f" | {_pair(wall[LONG], 2)} | {_ratio(wall[LONG])} |"
        )
    print()


def _both(commands: Sequence[Sequence[str]], folder: Path) -> list[tuple[float, float]]:
    """Wall and processor seconds of each command, with every process that it takes."""
    taken = []
    for argv in commands:
        env = {**os.environ, "TASKRUNNER_HOME": str(folder / "home")}
        line = [sys.executable, "-c", ACCOUNT, *argv]
        done = subprocess.run(line, env=env, cwd=folder, check=True, capture_output=True)
        wall, spent = json.loads(done.stdout)
        taken.append((wall, spent))
    return taken


def _pair(sides: Sequence[Sequence[float]], digits: int, units: float = 1.0) -> str:
    """The medians of both sides, in seconds or so many units a second."""
    return " / ".join(f"{statistics.median(side) * units:.{digits}f}" for side in sides)


def _ratio(sides: Sequence[Sequence[float]]) -> str:
    """The median of the ratios of what was measured in the same round."""
    return f"{statistics.median(ours / theirs for ours, theirs in zip(*sides, strict=True)):.2f}"


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
