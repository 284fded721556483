"""The results of a measurement, made of its samples; with all that makes them doubtful."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .sample import Sample
from .summary import bimodal, summary

NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,2})?")
MOVED = ("bytes", "transfers", "transfer_seconds", "post_seconds", "descriptors")
WRONG = ("failed_transfers", "failed_notifications", "kv_expired", "after_expiry")
"""Any of these makes tokens doubtful though every request was answered."""


class Limits(NamedTuple):
    """Beyond these a measurement is not valid.

    `failures` is the share of requests that may fail, `lag` the share of the median TTFT that the 99th
    percentile of the client's own lateness may have. `slo` has limits in seconds for ttft, tpot and e2e; the
    goodput is the share of requests within them.
    """

    failures: float = 0.0
    lag: float = 0.01
    slo: Mapping[str, float] = {}


def result(
    samples: Sequence[Sample],
    duration: float,
    limits: Limits,
    lags: Sequence[float] = (),
    deltas: Mapping[str, Mapping[str, float]] | None = None,
    disaggregated: bool = False,
) -> dict[str, Any]:
    """The `results` of a measurement that took so long; times in seconds. `lags` is how late the client's own
    loop was, `deltas` by how much the counters of each server have grown (see bench/counters.py).
    """
    good = [sample for sample in samples if not sample.error]
    tpots = [sample.tpot for sample in good if sample.tpot is not None]
    ttfts = [sample.ttft for sample in good]
    output = sum(sample.output_tokens for sample in good)
    prompt = sum(sample.prompt_tokens for sample in good)
    delays = [sample.send_delay for sample in samples]
    found: dict[str, Any] = {
        "ttft": summary(ttfts),
        "tpot": summary(tpots),
        "itl": summary([gap for sample in good for gap in sample.itl]),
        "e2e_latency": summary([sample.e2e for sample in good]),
        "ttft_bimodal": bimodal(ttfts),
        "tpot_bimodal": bimodal(tpots),
        "proxy_prefill_time": summary(_header(good, "x-proxy-prefill-time")),
        "proxy_kv_extract_time": summary(_header(good, "x-proxy-kv-extract-time")),
        "duration": duration,
        "throughput_rps": len(good) / duration if duration else 0.0,
        "throughput_tps": output / duration if duration else 0.0,
        "throughput_total_tps": (output + prompt) / duration if duration else 0.0,
        "tokens_per_chunk": output / max(1, sum(sample.chunks for sample in good)),
        "loop_lag": summary(lags, raw=False),
        "send_delay": summary(delays, raw=False),
        "completed": len(good),
        "failed": len(samples) - len(good),
        "errors": dict(Counter(sample.error for sample in samples if sample.error)),
        "first_errors": list(
            {s.error: f"{s.error}: {s.detail}" for s in reversed(samples) if s.error}.values()
        ),
    }
    if limits.slo:
        found["goodput"] = _goodput(samples, limits.slo)
        found["slo"] = limits.slo
    if deltas:
        found["kv_transfer"] = transfer(deltas)
    why = _doubts(found, samples, limits, disaggregated)
    found["valid"], found["invalid_because"] = not why, why
    return found


def _header(samples: Sequence[Sample], name: str) -> list[float]:
    """Milliseconds in a header, as seconds."""
    found = (sample.headers.get(name, "") for sample in samples)
    return [float(text) / 1e3 for text in found if NUMBER.fullmatch(text)]


def _goodput(samples: Sequence[Sample], slo: Mapping[str, float]) -> float:
    """The share of all requests that met every limit; a failed one meets none."""

    def meets(sample: Sample) -> bool:
        values = {"ttft": sample.ttft, "tpot": sample.tpot or 0.0, "e2e": sample.e2e}
        return not sample.error and all(values[name] <= limit for name, limit in slo.items())

    return sum(map(meets, samples)) / len(samples) if samples else 0.0


def _doubts(
    found: Mapping[str, Any], samples: Sequence[Sample], limits: Limits, disaggregated: bool
) -> list[str]:
    why = []
    if not found["completed"]:
        why.append("no request completed")
    elif found["failed"] > limits.failures * len(samples):
        why.append(f"{found['failed']} of {len(samples)} requests failed")
    lag, ttft = found["loop_lag"].get("p99", 0.0), found["ttft"].get("p50", 0.0)
    if found["completed"] and lag > limits.lag * ttft:
        much = f"over {limits.lag:.0%} of the TTFT, {ttft * 1e3:.1f} ms"
        why.append(f"the client itself was late: p99 {lag * 1e3:.2f} ms, {much}")
    if disaggregated:
        prompt = sum(sample.prompt_tokens for sample in samples if not sample.error)
        why += transfer_doubts(found["kv_transfer"], prompt)
    return why


def transfer(servers: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """What was transferred: the decode servers' counters, and what any of the servers says went wrong."""
    decode: Counter[str] = Counter()
    for role, deltas in servers.items():
        if role.startswith("decode"):
            decode.update(deltas)
    found: dict[str, Any] = {name: decode[name] for name in MOVED if name in decode}
    found["external_tokens"] = float(decode["tokens_external_kv_transfer"])
    found["computed_on_decode"] = float(decode["tokens_local_compute"])
    for name in WRONG:
        found[name] = sum(deltas.get(name, 0.0) for deltas in servers.values())
    found["servers"] = {role: dict(deltas) for role, deltas in servers.items()}
    return found


def transfer_doubts(found: Mapping[str, Any], prompt_tokens: int) -> list[str]:
    """Why the tokens of a disaggregated run of so many prompt tokens are not what they seem."""
    said = [f"{name}: {found[name]:g}" for name in WRONG if found.get(name)]
    moved = found.get("external_tokens", 0.0)
    # The last token of a prompt is computed by decode itself, and blocks may be rounded.
    if moved < 0.9 * prompt_tokens:
        said.append(f"only {moved:g} of {prompt_tokens} prompt tokens came from the prefill server")
    return said
