"""Results of other clients, read into the same record; what they mean by their words is mapped, not just
the words.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from .record import Limits, result, rows
from .sample import Sample, failed
from .schema import VERSION

Record = dict[str, Any]
STATUS = re.compile(r"\b([45]\d\d)\b")
HURRIED = 0.8
"""The share of the chunks, and of the median time per token, under which a stream has not brought all that it
is counted with.
"""
LLMPERF = ("_individual_responses.json", "_summary.json")


class Unreadable(ValueError):
    """The file is not what one of the known clients writes, or lacks what is needed. The text says which."""


def read(path: str | Path) -> Record:
    """Another client's result as a record of ours (result.schema.json). Raises Unreadable, OSError."""
    document = _json(path)
    for keys, take in KNOWN:
        if keys <= _members(document):
            try:
                return take(document, str(path))
            except (KeyError, IndexError, TypeError, AttributeError) as error:
                what = f"{type(error).__name__}: {error}"
                raise Unreadable(f"{path} is not in the known format of this client: {what}") from error
    raise Unreadable(f"{path} is not a result of vllm bench serve, GuideLLM or LLMPerf")


def _json(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise Unreadable(f"{path} is not JSON: {error}") from error


def _members(document: Any) -> set[str]:
    """What a file's object has, or the first of a list of them."""
    first = document[0] if isinstance(document, list) and document else document
    return set(first) if isinstance(first, dict) else set()


def _record(source: str, samples: list[Sample], duration: float, ended: float, **about: Any) -> Record:
    """The record of samples; `about` are the members of its metadata that the client's file knows."""
    metadata = {
        "source": source,
        "mode": "unified",
        "prompt_tokens": max((sample.prompt_tokens for sample in samples), default=0),
        "max_tokens": max((sample.output_tokens for sample in samples), default=0),
        "warmup": 0,
        "iterations": len(samples),
        "hostnames": [],
        "began": round(ended - duration, 3),
        "ended": ended,
        **about,
    }
    first = min((sample.began for sample in samples), default=0.0)
    return {
        "version": VERSION,
        "metadata": metadata,
        "results": result(samples, duration, Limits()),
        "requests": rows(samples, first),
    }


def _broken_off(samples: Sequence[Sample]) -> None:
    """Fail what broke off after HTTP 200, and was counted with the tokens that were asked for: it has fewer
    chunks than tokens, where others had a chunk for each, and took too little time for so many.

    Fewer chunks alone say nothing: a busy server puts several tokens into one. Nor does little time: a token
    or two that are missing would not show in it.
    """
    good = [sample for sample in samples if not sample.error]
    whole = [tpot for sample in good if sample.chunks == sample.output_tokens and (tpot := sample.tpot)]
    if not whole:
        return
    least = HURRIED * median(whole)
    for sample in good:
        if sample.chunks < HURRIED * sample.output_tokens and (sample.tpot or 0.0) < least:
            failed(
                sample,
                "incomplete",
                f"{sample.chunks} chunks for {sample.output_tokens} tokens, and ended too soon",
            )


def _vllm(document: Any, path: str) -> Record:
    """`vllm bench serve --save-result --save-detailed`, as of vLLM 0.32.

    Its TTFT, ITL (by chunk) and latency are ours: from the start of a request, to the last token. Its TPOT is
    made from those by our definition. A request of which it knows no token has failed, though it may count
    it as completed.
    """
    missing = {"ttfts", "itls", "output_lens", "errors"} - set(document)
    if missing:
        raise Unreadable(f"{path} has no {', '.join(sorted(missing))}: write it with --save-detailed")
    starts = document.get("start_times") or [0.0] * len(document["ttfts"])
    samples = []
    for number, ttft in enumerate(document["ttfts"]):
        gaps, began = document["itls"][number], starts[number]
        last = ttft + sum(gaps)
        sample = Sample(number, 0.0, ttft, last, gaps, began=began, ended=began + last, chunks=len(gaps) + 1)
        sample.prompt_tokens, sample.output_tokens = (
            document["input_lens"][number],
            document["output_lens"][number],
        )
        if document["errors"][number]:
            failed(sample, "connection", document["errors"][number].strip().splitlines()[-1])
        elif not sample.output_tokens or not ttft:
            failed(sample, "no_tokens", "counted as completed, but has no tokens")
        samples.append(sample)
    _broken_off(samples)
    ended = time.mktime(time.strptime(document["date"], "%Y%m%d-%H%M%S"))
    return _record(
        "vllm bench serve",
        samples,
        document["duration"],
        ended,
        model=document["model_id"],
        backend=document["backend"],
        rate=document["request_rate"],
        concurrency=document.get("max_concurrency") or len(samples),
    )


def _guidellm(document: Any, path: str) -> Record:
    """`guidellm run --output kind=json`, as of GuideLLM 0.8.1.

    A request begins there when its headers are written: the wait for a connection is not in its TTFT.
    Its "time per output token" has the TTFT in it, its "request latency" ends after [DONE]; ours are made
    from the single times it keeps. It keeps no gaps between chunks. What a time limit cut off is left out.
    """
    if len(document["benchmarks"]) != 1:
        raise Unreadable(
            f"{path} has {len(document['benchmarks'])} benchmarks, expected one: give --profile one rate"
        )
    (benchmark,) = document["benchmarks"]
    requests, strategy = benchmark["requests"], benchmark["config"]["strategy"]
    samples = [
        _of_guidellm(number, fields)
        for number, fields in enumerate([*requests["successful"], *requests["errored"]])
    ]
    _broken_off(samples)
    samples.sort(key=lambda sample: sample.began)
    return _record(
        "guidellm",
        samples,
        benchmark["duration"],
        benchmark["end_time"],
        model=str(benchmark["config"]["backend"].get("model") or ""),
        backend="guidellm",
        concurrency=int(strategy.get("streams") or strategy.get("max_concurrency") or 0),
        rate=strategy.get("rate") or 0.0,
        cut_off=len(requests["incomplete"]),
        notes=["the TTFT does not include connecting", "gaps between chunks are not recorded: no ITL"],
    )


def _of_guidellm(number: int, fields: Record) -> Sample:
    times = fields["info"]["timings"]
    start, first, last = (
        times.get(name) for name in ("request_start", "first_token_iteration", "last_token_iteration")
    )
    sample = Sample(number, 0.0, began=start or times["queued"], ended=times.get("request_end") or 0.0)
    sample.prompt_tokens = fields.get("prompt_tokens") or 0
    sample.output_tokens = fields.get("output_tokens") or 0
    sample.chunks = times.get("token_iterations") or 0
    problem = str(fields["info"].get("error") or "")
    if problem:
        return failed(sample, _kind_of(problem), problem)
    if not (start and first and last):
        return failed(sample, "no_tokens", "counted as successful, but has no tokens")
    sample.ttft, sample.e2e = first - start, last - start
    return sample


def _kind_of(problem: str) -> str:
    """Which of our kinds an error of GuideLLM is."""
    if "Streaming response" in problem:
        return "error_event"
    status = STATUS.search(problem)
    return f"http_{status[1]}" if status else "connection"


def _llmperf(found: Any, path: str) -> Record:
    """token_benchmark_ray.py's NAME_individual_responses.json with NAME_summary.json, December 2024.

    Its "inter token latency" is the whole time by the number of chunks, with the TTFT in it, so chunks are
    known from it. Its tokens are those of Llama's tokenizer, whatever the model; chunks are taken for tokens.
    Its end is that of the body.
    """
    if isinstance(found, dict):
        path = path.replace(LLMPERF[1], LLMPERF[0])
        found = _json(path)
    if not path.endswith(LLMPERF[0]):
        raise Unreadable(f"{path}: expected LLMPerf's NAME{LLMPERF[0]}, beside NAME{LLMPERF[1]}")
    summary = _json(path.replace(*LLMPERF))
    samples = []
    for number, fields in enumerate(found):
        sample = Sample(number, 0.0, fields["ttft_s"], fields["end_to_end_latency_s"])
        sample.prompt_tokens = fields["number_input_tokens"]
        each = fields["inter_token_latency_s"]
        sample.output_tokens = sample.chunks = round(sample.e2e / each) if each else 0
        if fields["error_code"] is not None:
            code, message = fields["error_code"], str(fields["error_msg"])
            failed(sample, f"http_{code}" if code > 0 else "connection", message)
        elif not sample.chunks:
            failed(sample, "no_tokens", "no tokens")
        samples.append(sample)
    completed, rate = (summary[f"results_num_completed_requests{of}"] for of in ("", "_per_min"))
    return _record(
        "llmperf",
        samples,
        completed / rate * 60 if rate else 0.0,
        float(summary["timestamp"]),
        model=summary["model"],
        backend="llmperf",
        concurrency=summary["num_concurrent_requests"],
        rate=0.0,
        notes=[
            "failed requests may be missing from the file",
            "chunks are counted as tokens",
            "prompt lengths are the requested ones",
            "the throughput includes the start of Ray",
            "gaps between chunks are not recorded: no ITL",
        ],
    )


KNOWN: tuple[tuple[set[str], Callable[[Any, str], Record]], ...] = (
    ({"model_id", "num_prompts", "burstiness", "request_throughput"}, _vllm),
    ({"benchmarks", "metadata", "conclusions"}, _guidellm),
    ({"inter_token_latency_s", "ttft_s", "end_to_end_latency_s"}, _llmperf),
    ({"results_ttft_s_mean", "num_concurrent_requests"}, _llmperf),
)
"""The members by which a client's file is known, and what reads it."""
