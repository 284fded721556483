"""The proxy between a client and servers that fix, stamp and log when each token is sent.

Side by side, in one run, with what these name: VLLM_ROUTER, vllm-router's program; TOY_PROXY, the command of vLLM's
example proxy ("python toy_proxy_server.py").
"""

from __future__ import annotations

import math
import os
import shlex
import socket
import subprocess
import time
from pathlib import Path

from benchmarks.inference import TASKRUNNER, TOKENS, bench, log, percentile, times, truth
from taskrunner.inference.circumstances import processes
from tests.sshd import free_port


def _proxies() -> dict[str, list[str]]:
    """The command of each proxy; P, D, PORT and OTHER stand for addresses."""
    ours = [TASKRUNNER, "proxy", "--port", "PORT", "--prefill", "http://P", "--decode", "http://D"]
    commands = {"taskrunner proxy": ours, "taskrunner proxy --workers 1": [*ours, "--workers", "1"]}
    if "VLLM_ROUTER" in os.environ:
        commands["vllm-router"] = shlex.split(
            f"{os.environ['VLLM_ROUTER']} --host 127.0.0.1 --port PORT --vllm-pd-disaggregation --kv-connector nixl"
            " --prefill http://P --decode http://D --policy round_robin --prometheus-port OTHER"
            " --worker-startup-check-interval 1"
        )
    if "TOY_PROXY" in os.environ:
        commands["vLLM's example proxy"] = shlex.split(
            f"{os.environ['TOY_PROXY']} --host 127.0.0.1 --port PORT --prefiller-hosts 127.0.0.1"
            " --prefiller-ports P.port --decoder-hosts 127.0.0.1 --decoder-ports D.port"
        )
    return commands


def proxy(folder: Path) -> None:
    """TTFT through proxies, prefill 5 ms and decode 20 ms. What a proxy adds is measured against the sum of
    two such servers, each called directly.
    """
    print(
        "| proxy | streams | TTFT p50 | p90 | p99, ms | p50 without the servers' own | it adds | processor time a chunk, µs |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    with (
        truth("--role", "prefill", "--ttft", 5) as p,
        truth("--role", "decode", "--ttft", 20, "--gap", 10) as d,
        truth("--ttft", 5, "--gap", 10) as first,
        truth("--ttft", 20, "--gap", 10) as second,
    ):
        p, d = (url.removeprefix("http://") for url in (p, d))
        for streams in (1, 16, 64):
            late = sum(
                _row_of_proxy(f"no proxy: a server of {ms} ms", url, 0, [url], streams, "", folder)
                for ms, url in ((5, first), (20, second))
            )
            for name, words in _proxies().items():
                stands = {
                    "http://P": f"http://{p}",
                    "http://D": f"http://{d}",
                    "PORT": str(free_port()),
                    "OTHER": str(free_port()),
                    "P.port": p.rpartition(":")[2],
                    "D.port": d.rpartition(":")[2],
                }
                process = subprocess.Popen(
                    [stands.get(word, word) for word in words],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                try:
                    port = int(stands["PORT"])
                    _await(port)
                    url = f"http://127.0.0.1:{port}"
                    _row_of_proxy(
                        name,
                        url,
                        process.pid,
                        [stands["http://P"], stands["http://D"]],
                        streams,
                        f"--prefill http://{p}",
                        folder,
                        late,
                    )
                finally:
                    process.terminate()
                    process.wait()
    print()


def _await(port: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    time.sleep(1)


def _row_of_proxy(
    name: str,
    url: str,
    pid: int,
    servers: list[str],
    streams: int,
    options: str,
    folder: Path,
    late: float | None = None,
) -> float:
    """Print a row, and return the seconds of the TTFT's p50 that are not the servers' own. `late` are those of
    servers without a proxy.
    """
    options += f" --model truth --prompt-tokens 20 --output-tokens {TOKENS} --concurrency {streams}"
    bench(url, folder, f"{options} --requests {streams} --warmup 0")
    for server in servers:
        log(server)
    before = _spent(pid) if pid else 0.0
    requests = max(30, streams * 6)
    result = bench(url, folder, f"{options} --requests {requests} --warmup 0 --timeout 30")
    chunk = f"{(_spent(pid) - before) / (requests * TOKENS) * 1e6:.0f}" if pid else ""
    if not result["results"]["completed"]:
        print(f"| {name} | {streams} | none of the requests succeeded | | | | | |")
        return math.nan
    ttft = times(result)["ttft"]
    own = [[entry["sent"][0] - entry["first"] for entry in log(server)[-requests:]] for server in servers]
    left = percentile(ttft, 0.5) - sum(percentile(each, 0.5) for each in own)
    cells = [percentile(ttft, at) for at in (0.5, 0.9, 0.99)]
    figures = " | ".join(f"{cell * 1e3:.1f}" for cell in [*cells, left])
    added = "" if late is None else f"{(left - late) * 1e3:.1f}"
    print(f"| {name} | {streams} | {figures} | {added} | {chunk} |")
    return left


def _spent(pid: int) -> float:
    """Seconds of processor time that a process and its children have used."""
    seen = processes.snapshot()
    return sum(seen[member].used for member in processes.family(seen, [pid]))
