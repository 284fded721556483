"""Results of a plan as a sweep would have left them, with effects that are planted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from taskrunner.experiments import cells, plan, snapshot
from taskrunner.experiments.patterns import Measurement
from taskrunner.experiments.schedule import Limits, schedule

Effect = Callable[[Measurement], float]
TTFT_MS, TPOT_MS, PER_TOKEN_MS = 20.0, 30.0, 0.25
BYTES_PER_TOKEN = 262_144.0


def none(_: Measurement) -> float:
    return 1.0


def sweep(
    folder: Path,
    name: str = "phase2",
    blocks: int | None = 3,
    ttft: Effect = none,
    tpot: Effect = none,
    seed: int = 0,
    requests: int = 12,
    cv: float = 0.1,
    restart: float = 0.03,
    slow_first: float = 0.0,
) -> Path:
    """Write them; `ttft` and `tpot` are factors by pattern, `slow_first` the share of requests that are slow."""
    planned = schedule(plan.load(name), limits=Limits(blocks=blocks))
    chance = np.random.default_rng(seed)
    place = folder / planned.name
    place.mkdir(parents=True)
    shift = {start.number: chance.normal(0, restart, 2) for start in planned.starts}
    clock = 1.79e9
    last = 0
    for cell in cells.cells(planned):
        pattern = cell.pattern
        clock += 600 if cell.start.number != last else 5
        last = cell.start.number
        sigma = math.sqrt(math.log1p(cv**2))
        noise = np.exp(chance.normal(-(sigma**2) / 2, sigma, (2, requests)))
        first = (TTFT_MS + PER_TOKEN_MS * pattern.prompt_tokens) * ttft(pattern) * noise[0]
        first *= math.exp(shift[last][0])
        first[: int(slow_first * requests)] *= 2
        gaps = TPOT_MS * tpot(pattern) * math.exp(shift[last][1]) * noise[1]
        record = _record(cell, cells.fingerprint(planned, cell), first, gaps, clock)
        clock = record["metadata"]["ended"]
        path = folder / cells.place(planned, cell) / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(record))
    snapshot.save(planned, place)
    return place


def _record(cell: Any, fingerprint: str, first: Any, gaps: Any, began: float) -> dict[str, Any]:
    pattern, count = cell.pattern, len(first)
    whole = first + gaps * (pattern.max_tokens - 1)
    seconds = float(whole.sum()) / 1e3 / pattern.concurrency
    pair = pattern.mode != "unified"
    rows = [
        {
            "start": index * 10.0,
            "ttft": float(first[index]),
            "tpot": float(gaps[index]),
            "e2e": float(whole[index]),
            "itl": [float(gaps[index])] * 8,
            "prompt_tokens": pattern.prompt_tokens,
            "output_tokens": pattern.max_tokens,
            "error": "",
            **({"proxy_prefill_time": float(first[index]) * 0.7} if pair else {}),
        }
        for index in range(count)
    ]
    return {
        "version": 2,
        "metadata": {
            "model": "m",
            "mode": "disaggregated" if pair else "unified",
            "backend": pattern.backend,
            "prompt_tokens": pattern.prompt_tokens,
            "max_tokens": pattern.max_tokens,
            "concurrency": pattern.concurrency,
            "warmup": 2,
            "iterations": count,
            "hostnames": ["node1"],
            "began": began,
            "ended": began + seconds,
            "plan": "made",
            "pattern_id": pattern.id,
            "block": str(cell.block),
            "start": str(cell.start.number),
            "fingerprint": fingerprint,
            "servers": {"prefill0": {"argv": ["vllm", "serve", "m"], "versions": {"vllm": "0.32.0"}}},
        },
        "results": {
            "ttft": _statistic(first),
            "tpot": _statistic(gaps),
            "itl": _statistic(gaps),
            "e2e_latency": _statistic(whole),
            "duration_ms": seconds * 1e3,
            "throughput_rps": count / seconds,
            "throughput_tps": count * pattern.max_tokens / seconds,
            "completed": count,
            "failed": 0,
            "errors": {},
            "valid": True,
            "invalid_because": [],
            "doubtful": False,
            "doubtful_because": [],
            **(_of_a_pair(float(first.mean()), pattern.prompt_tokens * count) if pair else {}),
        },
        "requests": rows,
    }


def _statistic(values: Any) -> dict[str, Any]:
    named: Mapping[str, float] = {f"p{p}": float(np.percentile(values, p)) for p in (50, 90, 95, 99)}
    return {
        "unit": "ms",
        "n": len(values),
        "mean": float(values.mean()),
        "stdev": float(values.std(ddof=1)),
        "min": float(values.min()),
        "max": float(values.max()),
        **named,
        "raw": [float(value) for value in values],
    }


def _of_a_pair(mean: float, tokens: int) -> dict[str, Any]:
    names = ("prefill_queue", "kv_post", "kv_transfer", "decode_queue", "first_token")
    parts = {"unit": "ms", "prefill": mean * 0.7, **dict.fromkeys(names, mean * 0.05), "other": 4.0}
    return {
        "ttft_parts": parts,
        "kv_transfer": {
            "bytes": BYTES_PER_TOKEN * tokens,
            "external_tokens": float(tokens),
            "transfer_ms": tokens * 0.05,
        },
    }
