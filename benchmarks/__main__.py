"""How fast it is, against what its users would pick instead: `python -m benchmarks`.

Every figure is a median of several runs, taken in turns within one go, and what counts is the
ratio: machines differ, and the same machine differs from minute to minute. The peers are installed
into a virtual environment under .cache/ on the first call. `python -m benchmarks NAME...` runs some
of: steps, processor, startup, output, large, ssh, fleet, transfer, ssm, client, rate, proxy,
disturbances, planted, versus, sweeps, beside-vllm, statistics, repeats.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import (
    aws,
    disturbances,
    inference,
    planted,
    processor,
    proxy,
    remote,
    repeats,
    sweeps,
    versus,
)
from benchmarks import statistics as analysis
from benchmarks.peers import build, guarded
from taskrunner import __version__

HERE = Path(__file__).parent
CACHE = HERE.parent / ".cache" / "benchmarks"
TASKRUNNER = str(Path(sys.executable).parent / "taskrunner")
STEPS = 100
LIMITS = {
    "bash script": 1.25,
    "jq": 1 / 80,
    "ansible": 1 / 100,
    "pyinfra": 1 / 8,
    "go-task, bash -c": 1.0,
}
"""At most this many times a peer's time."""


def seconds(argv: Sequence[str], env: Mapping[str, str], folder: Path, expect: int = 0) -> float:
    """The wall time of a whole process."""
    began = time.perf_counter()
    done = subprocess.run(
        argv,
        env={**os.environ, **env},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    took = time.perf_counter() - began
    if done.returncode != expect:
        raise SystemExit(f"{argv} failed: {done.stderr.decode(errors='replace')[-2000:]}")
    return took


def in_turns(
    commands: Mapping[str, tuple[Sequence[str], Mapping[str, str]]], folder: Path, rounds: int
) -> dict[str, float]:
    """Median wall times in seconds; one uncounted round first."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, (argv, env) in commands.items():
            took = seconds(argv, env, folder)
            if number:
                times[name].append(took)
    return {name: statistics.median(values) for name, values in times.items()}


def peers_venv() -> Path:
    """The bin folder of the virtual environment with the peers, made on the first call."""
    folder = CACHE / "venv"
    if not (folder / "complete").exists():
        print("installing the peers ...", file=sys.stderr)
        venv.create(folder, clear=True, with_pip=True)
        pip = [
            str(folder / "bin" / "python"),
            "-m",
            "pip",
            "install",
            "-q",
            "-r",
            str(HERE / "requirements.txt"),
        ]
        subprocess.run(pip, check=True)
        (folder / "complete").touch()
    return folder / "bin"


def steps(folder: Path) -> None:
    """100 guarded no-op steps, local, from process start to exit, with the journal on disk."""
    (folder / "steps.json").write_text(json.dumps(guarded(STEPS), indent=1))
    ours = ([TASKRUNNER, str(folder / "steps.json")], {"TASKRUNNER_HOME": str(folder / "home")})
    peers = {peer.name: peer for peer in build(folder / "peers", STEPS, peers_venv())}
    quick = {name: (peer.argv, peer.env) for name, peer in peers.items() if not _slow(name)}
    slow = {name: (peer.argv, peer.env) for name, peer in peers.items() if _slow(name)}
    found = in_turns({"taskrunner": ours, **quick}, folder, 9)
    found |= {
        name: took
        for name, took in in_turns({"taskrunner": ours, **slow}, folder, 3).items()
        if name not in found
    }
    ours_a_step = found["taskrunner"] / STEPS
    print("| 100 guarded no-op steps, local | ms a step | taskrunner / it | target |\n|---|---|---|---|")
    print(f"| taskrunner {__version__} | {ours_a_step * 1e3:.2f} | 1 | |")
    for name, took in found.items():
        if name in peers:
            a_step = took / peers[name].steps_divisor
            limit = next((limit for part, limit in LIMITS.items() if part in name), None)
            wanted = "" if limit is None else f"at most {limit:.3g}"
            print(f"| {name} | {a_step * 1e3:.2f} | {ours_a_step / a_step:.3g} | {wanted} |")
    print()


def _slow(name: str) -> bool:
    return any(part in name for part in ("ansible", "jq", "pyinfra"))


def startup(folder: Path) -> None:
    """What a command costs that does nothing."""
    python = sys.executable
    env = {"TASKRUNNER_HOME": str(folder / "home")}
    commands = {
        "taskrunner --version": ([TASKRUNNER, "--version"], env),
        "python -c 'import argparse, json, subprocess'": (
            [python, "-c", "import argparse, json, subprocess"],
            env,
        ),
        "taskrunner quickstart --list": ([TASKRUNNER, "quickstart", "--list"], env),
        "python -c 'import pydantic, jsonschema'": ([python, "-c", "import pydantic, jsonschema"], env),
    }
    found = in_turns(commands, folder, 15)
    print("| start-up | ms | ratio | target |\n|---|---|---|---|")
    names = list(found)
    for name, base in zip(names[::2], names[1::2], strict=True):
        print(f"| {name} | {found[name] * 1e3:.1f} | {found[name] / found[base]:.2f} | at most 1.5 |")
        print(f"| {base} | {found[base] * 1e3:.1f} | 1 | |")
    print()


def output(folder: Path) -> None:
    """A step that prints 1 GB: written, masked and followed; in memory, so that no disk is measured."""
    produce = "yes 'a line of output, as a server may write it, of eighty characters or so ......' | head -c 1000000000"
    data = {
        "name": "Output",
        "variables": {"TOKEN": {"secret": True, "default": "not-in-the-output"}},
        "tasks": [{"id": "a", "skip_if": "false", "commands": [produce]}],
    }
    masked, plain = folder / "masked.json", folder / "plain.json"
    masked.write_text(json.dumps(data))
    plain.write_text(json.dumps({**data, "variables": {}}))
    times: dict[str, list[float]] = {}
    most: dict[str, int] = {}
    idle = _peak([TASKRUNNER, "--version"], folder)[1]
    for _ in range(3):
        for name, argv in {
            "bash -c '...' > file": ["bash", "-c", f"{produce} > out"],
            "taskrunner": [TASKRUNNER, str(plain)],
            "taskrunner, masked": [TASKRUNNER, str(masked)],
            "taskrunner -v, masked, followed": [TASKRUNNER, str(masked), "-v"],
        }.items():
            took, peak = _peak(argv, folder)
            times.setdefault(name, []).append(took)
            most[name] = max(peak, most.get(name, 0))
            (folder / "out").unlink(missing_ok=True)
            shutil.rmtree(folder / "home" / "runs", ignore_errors=True)
    base = statistics.median(times["bash -c '...' > file"])
    print(
        "| 1 GB of output, to a file in memory | s | speed against bash | peak MB above the start | target |\n|---|---|---|---|---|"
    )
    for name, values in times.items():
        took = statistics.median(values)
        wanted = "at least 0.5, under 60 MB" if "masked" in name else ""
        print(
            f"| {name} | {took:.2f} | {base / took:.2f} | {max(0, most[name] - idle) / 1024:.0f} | {wanted} |"
        )
    print()


def _peak(argv: Sequence[str], folder: Path) -> tuple[float, int]:
    """Wall seconds, and the most resident KiB of the command and the engine that it has started."""
    env = {**os.environ, "TASKRUNNER_HOME": str(folder / "home")}
    began = time.perf_counter()
    process = subprocess.Popen(argv, env=env, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    most = 0
    while process.poll() is None:
        most = max(most, _resident(str(folder / "home")))
        time.sleep(0.02)
    return time.perf_counter() - began, most


def _resident(home: str) -> int:
    """The resident KiB of the largest Python process that belongs to a state folder."""
    most = 0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"TASKRUNNER_HOME={home}".encode() not in (path / "environ").read_bytes():
                continue
            if b"python" in (path / "cmdline").read_bytes().split(b"\0")[0]:
                status = (path / "status").read_text()
                most = max(most, int(status.split("VmRSS:")[1].split()[0]))
        except (OSError, IndexError):
            continue
    return most


def large(folder: Path) -> None:
    """A file with 5,000 steps: validated and compiled, then run; the last steps against the first."""
    path = folder / "large.json"
    path.write_text(json.dumps(guarded(5000), indent=1))
    env = {"TASKRUNNER_HOME": str(folder / "home-large")}
    first = seconds([TASKRUNNER, "compile", str(path)], env, folder)
    seconds([TASKRUNNER, str(path)], env, folder)
    (events,) = (folder / "home-large" / "runs").glob("*/events.jsonl")
    ends = [
        event
        for event in map(json.loads, events.read_text().splitlines())
        if event["type"] == "step.finished"
    ]
    halves = [statistics.median(event["duration"] for event in part) for part in (ends[:500], ends[-500:])]
    print("| 5,000 steps | | target |\n|---|---|---|")
    print(f"| validated and compiled, nothing cached | {first:.2f} s | under 2 s |")
    print(f"| a step, first 500 / last 500 | {halves[0] * 1e3:.2f} / {halves[1] * 1e3:.2f} ms | no slower |")
    print()


def machine() -> str:
    """The machine in a line."""
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        "?",
    )
    memory = int(Path("/proc/meminfo").read_text().split()[1]) // 1048576
    return f"{os.cpu_count()} x {model}, {memory} GiB, Linux {platform.release()}, Python {platform.python_version()}"


BENCHMARKS: dict[str, Callable[[Path], object]] = {
    "steps": steps,
    "processor": lambda folder: processor.processor(folder, TASKRUNNER, peers_venv()),
    "startup": startup,
    "output": output,
    "large": large,
    "ssh": lambda folder: remote.ssh(folder, peers_venv()),
    "fleet": lambda folder: remote.fleet(folder, peers_venv()),
    "transfer": lambda folder: remote.transfer(folder, peers_venv()),
    "ssm": aws.ssm,
    "client": inference.client,
    "rate": inference.rate,
    "proxy": proxy.proxy,
    "disturbances": disturbances.disturbances,
    "planted": planted.planted,
    "versus": versus.versus,
    "sweeps": sweeps.large,
    "beside-vllm": sweeps.beside_vllm,
    "statistics": analysis.statistics,
    "repeats": repeats.repeats,
}
IN_MEMORY = ("output", "processor", "transfer", "ssm", "versus")


def main() -> None:
    """Run the benchmarks that are named, or all."""
    chosen = sys.argv[1:] or list(BENCHMARKS)
    unknown = set(chosen) - set(BENCHMARKS)
    if unknown:
        raise SystemExit(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    # Compiled again in each process, the sources would take half of its time.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    print(f"{time.strftime('%Y-%m-%d')}, {machine()}\n")
    for name in chosen:
        with tempfile.TemporaryDirectory(dir="/dev/shm" if name in IN_MEMORY else None) as folder:
            BENCHMARKS[name](Path(folder))


if __name__ == "__main__":
    main()
