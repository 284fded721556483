"""Faults planted in measurements of real servers, vLLM with the tiny model on this machine's CPU: in how many runs the
result is not valid or doubtful, and for the fault's own reason; and how often without one.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.inference import TASKRUNNER, bench, truth
from benchmarks.sweeps import ENV_DIR
from tests.helpers import wait_for
from tests.sshd import free_ports

RUNS = 20
PORTS = ("PREFILL_PORT", "DECODE_PORT", "PROXY_PORT", "SAMPLER_PORT")
OPTIONS = "--prompt-tokens 240 --output-tokens 8 --requests 20 --warmup 2 --max-lag 0.5"
NOTHING = "nothing"
FAULTS = {
    NOTHING: "^$",
    "another fabric is named": "fabric|crossed TCP",
    "decode computes the KV cache itself": "came from the prefill server",
    "half of the requests fail": "requests failed",
    "one core burnt": "other processes",
    "prompts in the prefix cache": "prefix cache",
}
"""And what a result says of each."""


def planted(folder: Path) -> None:
    """Print a row for each fault."""
    print(
        f"| planted, {RUNS} runs each, real servers | not valid or doubtful | for this reason |\n|---|---|---|"
    )
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    prefill, decode, proxy, _ = (f"http://127.0.0.1:{port}" for port in ports.values())
    pair = [proxy, "--prefill", prefill, "--decode", decode]
    cpu = ["--fabric", "cpu"]
    with _serving(folder, "measure-local", ports):
        _row(folder, NOTHING, [*pair, *cpu])
        _row(folder, "another fabric is named", [*pair, "--fabric", "cuda_ipc"])
        _row(folder, "decode computes the KV cache itself", [decode, *pair[1:], *cpu])
        with (
            truth("--role", "prefill", "--fault", "http_500") as broken,
            _proxy([prefill, broken], decode) as url,
        ):
            _row(folder, "half of the requests fail", [url, *pair[1:], *cpu])
        with _burner():
            _row(folder, "one core burnt", [*pair, *cpu])
    with _serving(folder, "measure-unified", {"PREFILL_PORT": ports["PREFILL_PORT"]}, PREFIX_CACHING="true"):
        unified = [prefill, "--unified", prefill, "--seed", "7"]
        _bench(folder, unified)
        _row(folder, "prompts in the prefix cache", unified)
    print()


def _row(folder: Path, fault: str, words: Sequence[str]) -> None:
    reasons = [_bench(folder, words) for _ in range(RUNS)]
    others = [why for why in reasons if not re.search(FAULTS[fault], why)]
    fits = f"{RUNS - len(others)} of {RUNS}" if fault != NOTHING else ""
    print(f"| {fault} | {sum(map(bool, reasons))} of {RUNS} | {fits} |", flush=True)
    for why in sorted(set(others)):
        print(f"  {fault}: {why or NOTHING}", file=sys.stderr)


def _bench(folder: Path, words: Sequence[str]) -> str:
    """Why a result is not valid or doubtful."""
    url, *options = words
    results = bench(url, folder, " ".join([*options, OPTIONS]))["results"]
    return "; ".join([*results["invalid_because"], *results["doubtful_because"]])


@contextlib.contextmanager
def _serving(folder: Path, pack: str, ports: dict[str, int], **more: str) -> Iterator[None]:
    """The servers of a pack, after a first measurement."""
    env = {**os.environ, "TASKRUNNER_HOME": str(folder / "state")}
    variables = {
        "ENV_DIR": ENV_DIR,
        "PROMPT_TOKENS": 240,
        "REQUESTS": 1,
        "WARMUP": 1,
        "MAX_LAG": 50,
        **ports,
        **more,
    }
    words = [f"--env={name}={value}" for name, value in variables.items()]
    try:
        subprocess.run([TASKRUNNER, pack, *words], cwd=folder, env=env, stdout=subprocess.DEVNULL, check=True)
        yield
    finally:
        subprocess.run(
            [TASKRUNNER, "stop-serving"], cwd=folder, env=env, stdout=subprocess.DEVNULL, check=False
        )


@contextlib.contextmanager
def _proxy(prefill: Sequence[str], decode: str) -> Iterator[str]:
    (port,) = free_ports(1)
    words = ["--port", str(port), "--decode", decode, *(f"--prefill={url}" for url in prefill)]
    process = subprocess.Popen([TASKRUNNER, "proxy", *words], stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"

    def healthy() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
            return True
        return False

    try:
        wait_for(healthy, what="a healthy proxy")
        yield url
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def _burner() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()
