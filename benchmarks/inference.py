"""The benchmark client and the proxy against the truth: servers that fix, stamp and log when each token is sent.

Side by side with vLLM's `bench serve` and a minimal aiohttp loop, and with a proxy of aiohttp, in one run.
"""

from __future__ import annotations

import json
import os
import statistics as std
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TASKRUNNER = str(Path(sys.executable).parent / "taskrunner")
VLLM = Path(os.environ.get("ENV_DIR", "~/vllm-env")).expanduser()
STREAMS, TOKENS, TTFT, GAP = 128, 64, 50, 10
RATE_STREAMS = 256


@contextmanager
def truth(*options: object) -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.truth", *map(str, options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.communicate()


def log(url: str) -> list[dict[str, Any]]:
    """What the server did since it was asked last, without its warm-up."""
    with urllib.request.urlopen(f"{url}/log") as answer:
        return [entry for entry in json.load(answer)["log"] if entry["sent"]]


def percentile(values: list[float], p: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(p * len(ordered)))]


def bench(url: str, folder: Path, *options: object, processor: list[float] | None = None) -> dict[str, Any]:
    """Our client as a process of its own."""
    out = folder / "r.json"
    before = os.times()
    subprocess.run([TASKRUNNER, "bench", url, "--max-lag", "9", "-o", str(out), *map(str, options)],
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)  # fmt: skip
    after = os.times()
    if processor is not None:
        processor.append(
            after.children_user + after.children_system - before.children_user - before.children_system
        )
    found: dict[str, Any] = json.loads(out.read_text())["results"]
    return found


def vllm_bench(url: str, folder: Path, requests: int) -> dict[str, Any] | None:
    """VLLM's client: its raw times."""
    python = VLLM / "venv" / "bin" / "python"
    if not python.exists():
        return None
    env = {**os.environ, "PYTHONPATH": str(VLLM / "shim"), "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run(
        [python, "-m", "vllm.entrypoints.cli.main", "bench", "serve", "--base-url", url, "--model", str(VLLM / "models/tiny"),
         "--dataset-name", "random", "--random-input-len", "20", "--random-output-len", str(TOKENS), "--num-prompts",
         str(requests), "--max-concurrency", str(STREAMS), "--ignore-eos", "--save-result", "--save-detailed",
         "--result-dir", str(folder), "--result-filename", "vllm.json", "--num-warmups", str(STREAMS)],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    path = folder / "vllm.json"
    if not path.exists():
        print(done.stderr[-500:], file=sys.stderr)
        return None
    found = json.loads(path.read_text())
    return {"ttft": found["ttfts"], "itl": [gap for gaps in found["itls"] for gap in gaps]}


AIOHTTP = """
import aiohttp, asyncio, json, sys, time, uvloop
url, streams, requests, tokens = sys.argv[1], *map(int, sys.argv[2:5])
async def main():
    ttft, itl, ahead = [], [], iter(range(requests))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(600)) as session:
        async def worker():
            for _ in ahead:
                began, last = time.perf_counter(), None
                body = {"prompt": list(range(20)), "max_tokens": tokens, "stream": True}
                async with session.post(url + "/v1/completions", json=body) as answer:
                    async for line in answer.content:
                        if line.startswith(b"data: {"):
                            now = time.perf_counter(); json.loads(line[6:])
                            (ttft.append(now - began) if last is None else itl.append(now - last)); last = now
        await asyncio.gather(*(worker() for _ in range(streams)))
    json.dump({"ttft": ttft, "itl": itl}, sys.stdout)
uvloop.run(main())
"""


def aiohttp_loop(url: str) -> dict[str, Any] | None:
    python = VLLM / "venv" / "bin" / "python"
    if not python.exists():
        return None
    done = subprocess.run([python, "-c", AIOHTTP, url, str(STREAMS), str(STREAMS * 4), str(TOKENS)],
                          capture_output=True, text=True, check=True)  # fmt: skip
    return dict(json.loads(done.stdout))


def client(folder: Path) -> None:
    """TTFT and ITL at 128 streams, against what was sent when."""
    print(
        f"| {STREAMS} streams, {TOKENS} tokens, ITL {GAP} ms | TTFT p50 | p90 | p99 | ITL mean | p99 | true TTFT p50 | p99 |"
    )
    print("|---|---|---|---|---|---|---|---|")
    with truth("--ttft", TTFT, "--gap", GAP) as url:
        for name, measure in (
            ("taskrunner bench", lambda: _ours(url, folder)), ("aiohttp, a minimal loop", lambda: aiohttp_loop(url)),
            ("vllm bench serve", lambda: vllm_bench(url, folder, STREAMS * 4)),
        ):  # fmt: skip
            log(url)
            found = measure()
            if found is None:
                print(f"| {name} | not installed | | | | | | |")
                continue
            sent = log(url)[-STREAMS * 4 :]
            true = [entry["sent"][0] - entry["first"] for entry in sent]
            cells = [percentile(found["ttft"], p) for p in (0.5, 0.9, 0.99)]
            cells += [
                std.mean(found["itl"]),
                percentile(found["itl"], 0.99),
                percentile(true, 0.5),
                percentile(true, 0.99),
            ]
            print(f"| {name} | {' | '.join(f'{cell * 1e3:.1f}' for cell in cells)} |")
    print()


def _ours(url: str, folder: Path) -> dict[str, Any]:
    found = bench(url, folder, "--prompt-tokens", 20, "--output-tokens", TOKENS, "--requests", STREAMS * 4,
                  "--concurrency", STREAMS, "--warmup", STREAMS)  # fmt: skip
    return {"ttft": found["ttft"]["raw"], "itl": found["itl"]["raw"]}


def rate(folder: Path) -> None:
    """Chunks a second that the client takes before it is late."""
    print(
        "| chunks a second offered | received lag p50 | p99, ms | client's processor time a chunk, µs |\n|---|---|---|---|"
    )
    for gap in (20, 10, 7):
        with truth("--ttft", 50, "--gap", gap) as url:
            spent: list[float] = []
            found = bench(url, folder, "--prompt-tokens", 20, "--output-tokens", 400, "--requests", RATE_STREAMS,
                          "--concurrency", RATE_STREAMS, "--warmup", 0, processor=spent)  # fmt: skip
            chunks = RATE_STREAMS * 400
            lag = found["loop_lag"]
            print(
                f"| {chunks / found['duration']:.0f} | {lag['p50'] * 1e3:.2f} | {lag['p99'] * 1e3:.2f} | {spent[0] / chunks * 1e6:.1f} (start and reading included) |"
            )
    print()


def proxy(folder: Path) -> None:
    """TTFT through the proxy, prefill 5 ms and decode 20 ms: ideal 25 ms."""
    print(
        "| proxy | streams | TTFT p50 | p90 | p99, ms | processor time a chunk, µs |\n|---|---|---|---|---|---|"
    )
    with (
        truth("--role", "prefill", "--ttft", 5) as p,
        truth("--role", "decode", "--ttft", 20, "--gap", 10) as d,
    ):
        for streams in (1, 32, 64):
            process = subprocess.Popen([TASKRUNNER, "proxy", "--port", "0", "--prefill", p, "--decode", d],
                                       stderr=subprocess.PIPE, text=True)  # fmt: skip
            assert process.stderr is not None
            url = "http://" + process.stderr.readline().strip().rpartition("ready on ")[2]
            found = bench(url, folder, "--prompt-tokens", 20, "--output-tokens", TOKENS, "--requests", max(30, streams * 6),
                          "--concurrency", streams, "--warmup", streams)  # fmt: skip
            process.terminate()
            before = os.times()
            process.wait()
            after = os.times()
            spent = (
                after.children_user + after.children_system - before.children_user - before.children_system
            )
            chunks = (max(30, streams * 6) + streams) * TOKENS
            cells = [percentile(found["ttft"]["raw"], at) * 1e3 for at in (0.5, 0.9, 0.99)]
            print(
                f"| taskrunner proxy | {streams} | {' | '.join(f'{cell:.1f}' for cell in cells)} | {spent / chunks * 1e6:.0f} (start included) |"
            )
    print()
