"""The benchmark client against the truth: a server that fixes, stamps and logs when each token is sent.

Side by side, in one run, with vLLM's `bench serve` and a minimal aiohttp loop (of an ENV_DIR that setup-environment has
made), and with what AIPERF and GUIDELLM name, programs.
"""

from __future__ import annotations

import json
import os
import shlex
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
        [sys.executable, "-m", "tests.scripted_server", *map(str, options)],
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


def bench(url: str, folder: Path, options: str, processor: list[float] | None = None) -> dict[str, Any]:
    """Our client as a process of its own."""
    out = folder / "r.json"
    out.unlink(missing_ok=True)
    before = os.times()
    subprocess.run(
        [TASKRUNNER, "bench", url, "--max-lag", "9", "-o", str(out), *options.split()],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    after = os.times()
    if processor is not None:
        processor.append(
            after.children_user + after.children_system - before.children_user - before.children_system
        )
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def vllm_bench(url: str, folder: Path, requests: int) -> dict[str, Any] | None:
    """VLLM's client: its raw times."""
    python = VLLM / "venv" / "bin" / "python"
    if not python.exists():
        return None
    env = {**os.environ, "PYTHONPATH": str(VLLM / "shim"), "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run(
        shlex.split(
            f"{python} -m vllm.entrypoints.cli.main bench serve --base-url {url} --model {VLLM}/models/tiny"
            f" --dataset-name random --random-input-len 20 --random-output-len {TOKENS} --num-prompts {requests}"
            f" --max-concurrency {STREAMS} --ignore-eos --save-result --save-detailed --result-dir {folder}"
            f" --result-filename vllm.json --num-warmups {STREAMS}"
        ),
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    path = folder / "vllm.json"
    if not path.exists():
        print(done.stderr[-500:], file=sys.stderr)
        return None
    result = json.loads(path.read_text())
    return {"ttft": result["ttfts"], "itl": [gap for gaps in result["itls"] for gap in gaps]}


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
    done = subprocess.run(
        [python, "-c", AIOHTTP, url, str(STREAMS), str(STREAMS * 4), str(TOKENS)],
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout))


def aiperf(url: str, folder: Path) -> dict[str, Any] | None:
    if "AIPERF" not in os.environ:
        return None
    subprocess.run(
        shlex.split(
            f"{os.environ['AIPERF']} profile --model truth --url {url} --endpoint-type completions --streaming"
            f" --tokenizer {VLLM}/models/tiny --concurrency {STREAMS} --request-count {STREAMS * 4} --isl 32"
            f" --osl {TOKENS} --use-legacy-max-tokens --use-server-token-count --random-seed 1"
            f" --artifact-dir {folder}/aiperf --ui none"
        ),
        capture_output=True,
        check=False,
    )
    rows = [json.loads(line)["metrics"] for line in (folder / "aiperf/profile_export.jsonl").open()]
    return {
        "ttft": [row["time_to_first_token"]["value"] / 1e3 for row in rows if "time_to_first_token" in row],
        "itl": [
            gap / 1e3
            for row in rows
            if "inter_chunk_latency" in row
            for gap in row["inter_chunk_latency"]["value"]
        ],
    }


def guidellm(url: str, folder: Path) -> dict[str, Any] | None:
    """What it calls ITL is a mean of each request; it keeps no gaps."""
    if "GUIDELLM" not in os.environ:
        return None
    subprocess.run(
        shlex.split(
            f"{os.environ['GUIDELLM']} run"
            f" --backend kind=openai_http,target={url},model=truth,request_format=/v1/completions"
            f" --profile kind=concurrent,streams={STREAMS} --constraint kind=max_requests,count={STREAMS * 4}"
            f" --data kind=synthetic_text,prompt_tokens=32,output_tokens={TOKENS}"
            f" --tokenizer kind=hf_auto,model={VLLM}/models/tiny --output kind=json,path=guidellm.json"
        ),
        capture_output=True,
        check=False,
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
    )
    done = json.loads((folder / "guidellm.json").read_text())["benchmarks"][0]["requests"]["successful"]
    return {
        "ttft": [told["time_to_first_token_ms"] / 1e3 for told in done],
        "itl": [told["inter_token_latency_ms"] / 1e3 for told in done],
    }


def client(folder: Path) -> None:
    """TTFT and ITL at 128 streams, against what was sent when."""
    print(
        f"| {STREAMS} streams, {TOKENS} tokens, ITL {GAP} ms | TTFT p50 | p90 | p99 | ITL mean | p99 | true TTFT p50 | p99 | true ITL p99 |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    with truth("--ttft", TTFT, "--gap", GAP) as url:
        for name, measure in (
            ("taskrunner bench", _ours),
            ("aiohttp, a minimal loop", lambda url, folder: aiohttp_loop(url)),
            ("vllm bench serve", lambda url, folder: vllm_bench(url, folder, STREAMS * 4)),
            ("aiperf", aiperf),
            ("GuideLLM", guidellm),
        ):
            log(url)
            result = measure(url, folder)
            if result is None:
                print(f"| {name} | not installed | | | | | | | |")
                continue
            sent = log(url)[-STREAMS * 4 :]
            _row(name, result, sent)
        log(url)
        result = bench(
            url,
            folder,
            "--prompt-tokens 20 --output-tokens 400 --requests 64 --concurrency 64 --warmup 64",
        )
        _row("taskrunner bench, 64 streams, 400 tokens", times(result), log(url)[-64:])
    print()
    print(
        f"| open loop, Poisson, {TOKENS} tokens | TTFT p50 | p90 | p99 | ITL mean | p99 | true TTFT p50 | p99 | true ITL p99 |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    with truth("--ttft", TTFT, "--gap", GAP) as url:
        for rate in (60, 150):
            log(url)
            result = bench(
                url,
                folder,
                f"--prompt-tokens 20 --output-tokens {TOKENS} --requests {rate * 5} --request-rate "
                f"{rate} --warmup 64",
            )
            _row(f"taskrunner bench, {rate} requests/s", times(result), log(url)[-rate * 5 :])
    print()


def _row(name: str, result: dict[str, Any], sent: list[dict[str, Any]]) -> None:
    true = [entry["sent"][0] - entry["first"] for entry in sent]
    gaps = [b - a for entry in sent for a, b in zip(entry["sent"], entry["sent"][1:], strict=False)]
    cells = [percentile(result["ttft"], p) for p in (0.5, 0.9, 0.99)]
    cells += [
        std.mean(result["itl"]),
        percentile(result["itl"], 0.99),
        percentile(true, 0.5),
        percentile(true, 0.99),
        percentile(gaps, 0.99),
    ]
    print(f"| {name} | {' | '.join(f'{cell * 1e3:.1f}' for cell in cells)} |")


def _ours(url: str, folder: Path) -> dict[str, Any]:
    result = bench(
        url,
        folder,
        f"--prompt-tokens 20 --output-tokens {TOKENS} --requests {STREAMS * 4} --concurrency "
        f"{STREAMS} --warmup {STREAMS}",
    )
    return times(result)


def times(result: dict[str, Any]) -> dict[str, Any]:
    """The times of the requests of a record, in seconds."""
    rows = [row for row in result["requests"] if not row["error"]]
    return {
        "ttft": [row["ttft"] / 1e3 for row in rows],
        "itl": [gap / 1e3 for row in rows for gap in row["itl"]],
    }


def rate(folder: Path) -> None:
    """Chunks a second that the client takes before it is late."""
    print(
        "| chunks a second offered | received lag p50 | p99, ms | client's processor time a chunk, µs |\n|---|---|---|---|"
    )
    for gap in (20, 10, 7, 5):
        with truth("--ttft", 50, "--gap", gap) as url:
            spent: list[float] = []
            result = bench(
                url,
                folder,
                f"--prompt-tokens 20 --output-tokens 400 --requests {RATE_STREAMS} --concurrency "
                f"{RATE_STREAMS} --warmup 0",
                processor=spent,
            )
            chunks = RATE_STREAMS * 400
            results = result["results"]
            lag = results["loop_lag"]
            print(
                f"| {chunks / results['duration_ms'] * 1e3:.0f} | {lag['p50']:.2f} | {lag['p99']:.2f} | {spent[0] / chunks * 1e6:.1f} (start and reading included) |"
            )
    print()
