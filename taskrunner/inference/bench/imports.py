"""Results of other clients, read into the same record; what they mean by their words is mapped, not just
the words.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .load import Run
from .measure import VERSION, Settings, result
from .reading import Sample


class Unreadable(ValueError):
    """The file is not what one of the known clients writes, or lacks what is needed. The text says which."""


def read(path: str | Path) -> dict[str, Any]:
    """Another client's result as a record of ours (result.schema.json). Raises Unreadable, OSError."""
    try:
        found = json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise Unreadable(f"{path} is not JSON: {error}") from error
    for known, take in KNOWN:
        if isinstance(found, dict) and known <= set(found):
            return take(found, str(path))
    raise Unreadable(f"{path} is not a result of vllm bench serve")


def _vllm(found: dict[str, Any], path: str) -> dict[str, Any]:
    """`vllm bench serve --save-result --save-detailed`, as of vLLM 0.32.

    Its TTFT, ITL (by chunk) and latency are ours: from the start of a request, to the last token. Its TPOT is
    made from those by our definition.
    """
    missing = {"ttfts", "itls", "output_lens", "errors"} - set(found)
    if missing:
        raise Unreadable(f"{path} has no {', '.join(sorted(missing))}: write it with --save-detailed")
    samples = _samples(found)
    wanted = max(found["output_lens"], default=0)
    ended = time.mktime(time.strptime(found["date"], "%Y%m%d-%H%M%S"))
    about = {
        "source": "vllm bench serve",
        "model": found["model_id"],
        "mode": "unified",
        "backend": found["backend"],
        "prompt_tokens": max(found["input_lens"], default=0),
        "max_tokens": wanted,
        "concurrency": found.get("max_concurrency") or len(samples),
        "rate": found["request_rate"],
        "warmup": 0,
        "iterations": len(samples),
        "prefix_cache": False,
        "hostnames": [],
        "began": round(ended - found["duration"], 3),
        "ended": ended,
    }
    results = result(samples, [Run(0.0, found["duration"])], Settings("", lag=1.0), {})
    return {"version": VERSION, "metadata": about, "results": results}


def _samples(found: dict[str, Any]) -> list[Sample]:
    """The single requests. One of which vLLM knows no token has failed, though it may count it as
    completed. So has one with fewer chunks than tokens, where others had a chunk for each: its stream broke
    after HTTP 200, and vLLM has counted the tokens that were asked for.
    """
    wanted = max(found["output_lens"], default=0)
    single = any(len(gaps) + 1 == wanted for gaps in found["itls"])
    starts = found.get("start_times") or [0.0] * len(found["ttfts"])
    samples = []
    for number, ttft in enumerate(found["ttfts"]):
        gaps, tokens, began = found["itls"][number], found["output_lens"][number], starts[number]
        last = ttft + sum(gaps)
        sample = Sample(number, 0.0, ttft, last, gaps, began=began, ended=began + last)
        sample.prompt_tokens, sample.output_tokens = found["input_lens"][number], tokens
        sample.chunks = len(gaps) + 1
        if found["errors"][number]:
            sample.error, sample.detail = "connection", found["errors"][number].strip().splitlines()[-1]
        elif not tokens or not ttft:
            sample.error, sample.detail = "no_tokens", "counted as completed, without a token"
        elif single and sample.chunks < tokens:
            sample.error, sample.detail = "incomplete", f"{sample.chunks} chunks for {tokens} tokens"
        samples.append(sample)
    return samples


KNOWN: tuple[tuple[set[str], Callable[[dict[str, Any], str], dict[str, Any]]], ...] = (
    ({"model_id", "num_prompts", "burstiness", "request_throughput"}, _vllm),
)
"""The members by which a client's file is known, and what reads it."""
