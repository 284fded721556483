"""Where the time to first token goes, behind a proxy: means of all requests, by the servers' own histograms.

Of the metrics that vLLM documents ("Production Metrics"): a request's queue time ends when it is scheduled,
on decode that is when its KV cache has come; its prefill time is from there to its first token. The copies
between a GPU and a host buffer are in prefill's prefill time and in decode's queue or prefill time: vLLM does
not count them by themselves. NIXL counts a transfer from its post on, once for each rank of a server.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

QUEUE, PREFILL, REQUESTS = "queue_seconds", "prefill_seconds", "queued_requests"
POST, TRANSFER, TRANSFERS = "post_seconds", "transfer_seconds", "transfers"
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
    prefill, decode = (_grown(servers, role) for role in ("prefill", "decode"))
    at_prefill, at_decode = (_means(each, REQUESTS, QUEUE, PREFILL) for each in (prefill, decode))
    moved = _means(decode, TRANSFERS, POST, TRANSFER)
    if at_prefill is None or at_decode is None or moved is None:
        return None
    (waited, computed), (queued, first), (post, transfer) = at_prefill, at_decode, moved
    parts = {
        "prefill_queue": waited,
        "prefill": computed,
        "kv_post": post,
        "kv_transfer": transfer - post,
        "decode_queue": queued - transfer,
        "first_token": first,
    }
    return {**parts, "other": ttft - sum(parts.values())}


def _grown(servers: Mapping[str, Mapping[str, float]], role: str) -> Counter[str]:
    counted: Counter[str] = Counter()
    for name, deltas in servers.items():
        if name.startswith(role):
            counted.update(deltas)
    return counted


def _means(counted: Mapping[str, float], count: str, first: str, second: str) -> tuple[float, float] | None:
    """Two histograms' means in milliseconds; None where they are not counted."""
    if not counted.get(count) or first not in counted or second not in counted:
        return None
    return counted[first] / counted[count] * 1e3, counted[second] / counted[count] * 1e3
