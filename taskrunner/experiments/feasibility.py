"""Which patterns cannot run, and which will queue, before anything is paid for."""

from __future__ import annotations

from typing import NamedTuple

from taskrunner.experiments.patterns import Measurement
from taskrunner.experiments.plan import NATIVE_LEN, Plan
from taskrunner.inference.serving.lengths import cap


class Verdict(NamedTuple):
    """Whether a pattern can run, whether it will queue, and why."""

    runs: bool
    queues: bool
    why: str


def pool_tokens(plan: Plan, tensor_parallel: int) -> int:
    """Tokens that the KV cache of one server holds; 0 where it is not known."""
    if stated := plan.number("kv_pool_tokens", 0):
        return int(stated)
    return cap(
        str(plan.infrastructure("model", "")), str(plan.infrastructure("gpu_type", "")), tensor_parallel
    )


def verdict(plan: Plan, pattern: Measurement) -> Verdict:
    """Of an end-to-end pattern."""
    whole = pattern.prompt_tokens + pattern.max_tokens
    native = int(plan.number("native_len", NATIVE_LEN))
    if pattern.max_model_len and whole > pattern.max_model_len:
        return Verdict(False, False, f"{whole:,} tokens do not fit max_model_len {pattern.max_model_len:,}")
    if whole > native and not pattern.requires_yarn:
        return Verdict(False, False, f"{whole:,} tokens are more than the model's {native:,}: requires_yarn")
    pool = pool_tokens(plan, pattern.tp_size or 1)
    if not pool:
        return Verdict(True, False, "")
    if whole > pool:
        return Verdict(False, False, f"{whole:,} tokens do not fit the KV cache of {pool:,}")
    fitting = pool // whole
    if pattern.concurrency > fitting:
        return Verdict(
            True, True, f"{pattern.concurrency} at a time, and {fitting} fit the KV cache of {pool:,}"
        )
    return Verdict(True, False, "")
