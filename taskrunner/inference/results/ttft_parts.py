"""Where the time to first token goes, behind a proxy: means of all requests, by the servers' own histograms.

Of the metrics that vLLM documents ("Production Metrics"): a request's queue time ends when it is scheduled,
on decode that is when its KV cache has come; its prefill time is from there to its first token. The copies
between a GPU and a host buffer are in prefill's prefill time and in decode's queue or prefill time: vLLM does
not count them by themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

QUEUE, PREFILL, POST, TRANSFER = "queue_seconds", "prefill_seconds", "post_seconds", "transfer_seconds"
REQUESTS = "queued_requests"
TITLES = {
    "prefill_queue": "prefill queue",
    "prefill": "prefill",
    "kv_post": "KV post",
    "kv_transfer": "KV transfer",
    "decode_queue": "rest of the decode queue",
    "first_token": "first token on decode",
    "other": "proxy, network and HTTP",
}
"""The parts in their order; they add up to the mean TTFT."""


def ttft_parts(ttft: float, servers: Mapping[str, Mapping[str, float]]) -> dict[str, float] | None:
    """The parts of a mean TTFT, all in milliseconds; None where the servers do not count them.

    `servers` has by how much the counters of prefill0, ..., decode0, ... have grown.
    """
    prefill, decode = (_means(servers, role) for role in ("prefill", "decode"))
    if prefill is None or decode is None:
        return None
    parts = {
        "prefill_queue": prefill[QUEUE],
        "prefill": prefill[PREFILL],
        "kv_post": decode[POST],
        "kv_transfer": decode[TRANSFER],
        "decode_queue": decode[QUEUE] - decode[POST] - decode[TRANSFER],
        "first_token": decode[PREFILL],
    }
    return {**parts, "other": ttft - sum(parts.values())}


def _means(servers: Mapping[str, Mapping[str, float]], role: str) -> dict[str, float] | None:
    counted: Counter[str] = Counter()
    for name, deltas in servers.items():
        if name.startswith(role):
            counted.update(deltas)
    requests = counted[REQUESTS]
    if not requests or QUEUE not in counted or PREFILL not in counted:
        return None
    return {name: counted[name] / requests * 1e3 for name in (QUEUE, PREFILL, POST, TRANSFER)}
