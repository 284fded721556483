"""Patterns of network and GPU tools as what a sweep runs on its nodes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from taskrunner.experiments.patterns import Measurement
from taskrunner.inference.tools.commands import TOOLS as BETWEEN_NODES
from taskrunner.inference.tools.nixlbench_sides import SHAPE

ALONE: dict[str, tuple[str, ...]] = {
    "fi_info": ("fi-info",),
    "gpudirect": ("gpudirect",),
    "nccl-tests": ("nccl", "--collectives", "all_reduce", "--min-size", "1M", "--max-size", "1G"),
    "nvidia-smi": ("gpus",),
}
"""What runs on node 1 alone, by its command there."""
STREAMS = (1, 4, 8)
UNSAFE = re.compile(r"[^A-Za-z0-9]")
"""What no part of a folder's name is made of."""
SECONDS = 30
ITERATIONS = 1000
PORT = 18600
TEST = "tag_lat"


class Run(NamedTuple):
    """One run of a tool: `part` tells it from others of its pattern, `words` are those of its command.

    Between two nodes they are followed by `server` or `client` and the peer's address.
    """

    pattern: Measurement
    part: str
    words: tuple[str, ...]
    between: bool


def runs(pattern: Measurement, token_bytes: int) -> Iterator[Run]:
    """The runs of a pattern; none where no pack has its tool, or `token_bytes` (KV cache) is 0."""
    tool = pattern.tool
    if tool in ALONE:
        words = (*ALONE[tool], "--provider", _provider(pattern)) if tool == "fi_info" else ALONE[tool]
        yield Run(pattern, "once", words, between=False)
    elif tool == "iperf3":
        for streams in STREAMS:
            words = _words(pattern, streams=streams, seconds=SECONDS)
            yield Run(pattern, f"streams-{streams}", words, between=True)
    elif tool == "kvbench" and token_bytes and pattern.kv_cache_equivalent_tokens:
        # It measures nothing itself; what it plans, nixlbench measures.
        tokens = pattern.kv_cache_equivalent_tokens
        words = _words(pattern, token_bytes=token_bytes, tokens=tokens, **_of_nixlbench(pattern))
        yield Run(pattern, f"tokens-{tokens}", (SHAPE, *words[1:]), between=True)
    elif tool == "nixlbench":
        size = pattern.message_size or "64K"
        words = _words(pattern, size=size, **_of_nixlbench(pattern))
        yield Run(pattern, "size-" + UNSAFE.sub("_", str(size)), words, between=True)
    elif tool in BETWEEN_NODES:
        for size in pattern.message_sizes or [pattern.message_size or "64K"]:
            words = _words(
                pattern,
                size=size,
                iterations=pattern.iterations or ITERATIONS,
                provider=_provider(pattern),
                test=pattern.test_type or TEST,
                memory=pattern.memory_type or "host",
            )
            yield Run(pattern, "size-" + UNSAFE.sub("_", str(size)), words, between=True)


def _words(pattern: Measurement, **options: Any) -> tuple[str, ...]:
    return (
        pattern.tool,
        *(word for name, value in options.items() for word in ("--" + name.replace("_", "-"), str(value))),
    )


def _of_nixlbench(pattern: Measurement) -> dict[str, Any]:
    many = pattern.scheme == "manytoone"
    return {
        "backend": pattern.backend or "UCX",
        "iterations": pattern.iterations or ITERATIONS,
        "provider": _provider(pattern),
        "memory": "cuda" if "VRAM" in (pattern.initiator_seg_type, pattern.target_seg_type) else "host",
        "threads": 1 if many else max(pattern.num_threads or 1, pattern.concurrency or 1),
        "initiators": (pattern.concurrency or 1) if many else 1,
    }


def _provider(pattern: Measurement) -> str:
    """The fabric that is asked for; a tool's words for EFA are `efa`, a plan's may be `srd`."""
    asked = pattern.provider or pattern.transport or "efa"
    return "efa" if asked == "srd" else str(asked)
