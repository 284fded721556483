"""Disturbances planted in measurements: in how many runs they are reported, and in how many undisturbed runs
something is.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.inference import TASKRUNNER, truth

RUNS = 20
TTFT, GAP = 30, 10
Disturb = Callable[["subprocess.Popen[bytes]"], None]


def disturbances(folder: Path) -> None:
    """The client against a server that is steady: stopped now and then, and beside other work."""
    print(f"| planted, {RUNS} runs each | told | by a late client | by foreign load | by a hypervisor |")
    print("|---|---|---|---|---|")
    with truth("--ttft", TTFT, "--gap", GAP) as url:
        for name, disturb in PLANTED.items():
            results = [_measured(url, folder, disturb) for _ in range(RUNS)]
            why = [" ".join(each["doubtful_because"]) for each in results]
            parts = [
                sum(word in text for text in why) for word in ("was late", "other processes", "hypervisor")
            ]
            print(f"| {name} | {sum(map(bool, why))} of {RUNS} | {' | '.join(map(str, parts))} |", flush=True)
    print()


def _measured(url: str, folder: Path, disturb: Disturb | None) -> dict[str, Any]:
    out = folder / "result.json"
    options = "--prompt-tokens 20 --output-tokens 40 --requests 48 --concurrency 8 --warmup 8"
    process = subprocess.Popen(
        [TASKRUNNER, "bench", url, "--unified", url, *options.split(), "-o", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    thread = threading.Thread(target=disturb, args=(process,)) if disturb else None
    if thread is not None:
        thread.start()
    process.wait()
    if thread is not None:
        thread.join()
    result: dict[str, Any] = json.loads(out.read_text())["results"]
    return result


def _stopped(process: subprocess.Popen[bytes]) -> None:
    chance = random.Random(process.pid)
    while process.poll() is None:
        time.sleep(chance.uniform(0.4, 1.0))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGSTOP)
            time.sleep(chance.uniform(0.04, 0.1))
            os.kill(process.pid, signal.SIGCONT)


def _burnt(*cores: int) -> Disturb:
    def disturb(process: subprocess.Popen[bytes]) -> None:
        burn = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"
        burners = [subprocess.Popen([sys.executable, "-c", burn, str(core)]) for core in cores]
        process.wait()
        for burner in burners:
            burner.kill()
            burner.wait()

    return disturb


PLANTED: dict[str, Disturb | None] = {
    "nothing": None,
    "the client stopped for 40 to 100 ms, every 0.4 to 1 s": _stopped,
    "one core burnt": _burnt(0),
    "all cores burnt": _burnt(*range(os.cpu_count() or 1)),
}
