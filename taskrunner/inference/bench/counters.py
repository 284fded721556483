"""The servers' own Prometheus counters, before and after a run: what was transferred, what went wrong
unseen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..endpoint import Endpoint
from ..http_client import get

LINE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{.*\})?\s+(\S+)")
NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,2})?")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
SOURCES = "vllm:prompt_tokens_by_source_total"
SUMS = {
    "bytes": "vllm:nixl_bytes_transferred_sum",
    "transfers": "vllm:nixl_xfer_time_seconds_count",
    "transfer_seconds": "vllm:nixl_xfer_time_seconds_sum",
    "post_seconds": "vllm:nixl_post_time_seconds_sum",
    "descriptors": "vllm:nixl_num_descriptors_sum",
    "failed_transfers": "vllm:nixl_num_failed_transfers_total",
    "failed_notifications": "vllm:nixl_num_failed_notifications_total",
    "kv_expired": "vllm:nixl_num_kv_expired_reqs_total",
    "after_expiry": "vllm:nixl_num_notifications_after_expiry_total",
    "preemptions": "vllm:num_preemptions_total",
    "queued_requests": "vllm:request_queue_time_seconds_count",
    "queue_seconds": "vllm:request_queue_time_seconds_sum",
    "prefill_seconds": "vllm:request_prefill_time_seconds_sum",
}
"""What a result calls it, and the counter; summed over engines."""


def scrape(server: Endpoint) -> dict[str, float]:
    """The counters of a server, by the names above and `tokens_SOURCE`. Raises OSError, NotServed."""
    return read(get(server, "/metrics"))


def read(text: str) -> dict[str, float]:
    """The same of a text in Prometheus' exposition format (version 0.0.4)."""
    by_counter = {counter: name for name, counter in SUMS.items()}
    values: dict[str, float] = {}
    for line in text.splitlines():
        match = LINE.match(line)
        if match is None:
            continue
        counter, labels, value = match.groups()
        name = by_counter.get(counter)
        if counter == SOURCES:
            name = "tokens_" + dict(LABEL.findall(labels or "")).get("source", "unknown")
        if name is not None and NUMBER.fullmatch(value):
            values[name] = values.get(name, 0.0) + float(value)
    return values


def prefix_caching(text: str) -> bool | None:
    """Whether a server says in its metrics that it has a prefix cache; None where it says neither."""
    for line in text.splitlines():
        if line.startswith("vllm:cache_config_info{"):
            labels = dict(LABEL.findall(line)).get("enable_prefix_caching")
            return None if labels is None else labels == "True"
    return None


def grown(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """By how much each has grown; a server that was started anew meanwhile has counted from zero."""
    return {
        name: value - before.get(name, 0.0) if value >= before.get(name, 0.0) else value
        for name, value in sorted(after.items())
    }
