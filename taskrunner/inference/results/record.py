"""The results of a measurement, made of its samples: milliseconds, whatever the samples are in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from . import doubts
from .modes import bimodal
from .sample import Sample
from .summary import summary, summary_of_groups
from .ttft_parts import ttft_parts

NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,2})?")
PREFILL, EXTRACT = "x-proxy-prefill-time", "x-proxy-kv-extract-time"
"""The proxy's headers, in milliseconds."""


class Limits(NamedTuple):
    """Beyond these a measurement is not valid, or doubtful.

    `failures` is the share of requests that may fail, `lag` the share by which the client's own lateness may
    change a statistic. `slo` has limits in milliseconds for ttft, tpot and e2e; the goodput is the share of
    requests within them. `shared` is the share of each prompt that a cache may hold.
    """

    failures: float = 0.0
    lag: float = 0.01
    slo: Mapping[str, float] = {}
    shared: float = 0.0


def result(
    samples: Sequence[Sample],
    window: float,
    limits: Limits,
    lag: Mapping[str, Any] | None = None,
    deltas: Mapping[str, Mapping[str, float]] | None = None,
    disaggregated: bool = False,
) -> dict[str, Any]:
    """The `results` of a measurement of `window` seconds. `lag` is how late the client's own loop was
    (bench/lateness.py), `deltas` by how much the counters of each server have grown (bench/counters.py).
    """
    good = [sample for sample in samples if not sample.error]
    ttfts = [sample.ttft * 1e3 for sample in good]
    tpots = [sample.tpot * 1e3 for sample in good if sample.tpot is not None]
    output = sum(sample.output_tokens for sample in good)
    prompt = sum(sample.prompt_tokens for sample in good)
    results: dict[str, Any] = {
        "ttft": _ms(summary(ttfts)),
        "tpot": _ms(summary(tpots)),
        "itl": _ms(summary_of_groups([[gap * 1e3 for gap in sample.itl] for sample in good])),
        "e2e_latency": _ms(summary([sample.e2e * 1e3 for sample in good])),
        "ttft_bimodal": bimodal(ttfts),
        "tpot_bimodal": bimodal(tpots),
        "proxy_prefill_time": _ms(summary(_given(header(sample, PREFILL) for sample in good))),
        "proxy_kv_extract_time": _ms(summary(_given(header(sample, EXTRACT) for sample in good))),
        "duration_ms": window * 1e3,
        "throughput_rps": len(good) / window if window else 0.0,
        "throughput_tps": output / window if window else 0.0,
        "throughput_total_tps": (output + prompt) / window if window else 0.0,
        "tokens_per_chunk": output / max(1, sum(sample.chunks for sample in good)),
        "send_delay": _ms(summary([sample.send_delay * 1e3 for sample in samples], raw=False)),
        "completed": len(good),
        "failed": len(samples) - len(good),
        "errors": dict(Counter(sample.error for sample in samples if sample.error)),
        "first_errors": list(
            {s.error: f"{s.error}: {s.detail}" for s in reversed(samples) if s.error}.values()
        ),
    }
    if lag is not None:
        results["loop_lag"] = dict(lag)
    if limits.slo:
        results["goodput"] = _goodput(samples, limits.slo)
        results["slo_ms"] = dict(limits.slo)
    if deltas:
        results["kv_transfer"] = transfer(deltas)
        parts = ttft_parts(results["ttft"].get("mean", 0.0), deltas) if good else None
        if parts is not None:
            results["ttft_parts"] = _ms(parts)
    results["invalid_because"] = doubts.invalid(results, samples, limits.failures, disaggregated)
    results["doubtful_because"] = doubts.doubtful(results, samples, limits.lag, limits.shared)
    return judged(results)


def judged(results: dict[str, Any]) -> dict[str, Any]:
    """The same with `valid` and `doubtful`, as its reasons say."""
    results["valid"], results["doubtful"] = not results["invalid_because"], bool(results["doubtful_because"])
    return results


def rows(samples: Sequence[Sample], began: float) -> list[dict[str, Any]]:
    """The requests of a result in the order of their start; milliseconds, `start` from the beginning, which
    was at `began`.
    """
    return [
        {
            "start": _round(sample.began - began),
            "ttft": _round(sample.ttft),
            "e2e": _round(sample.e2e),
            "tpot": None if sample.tpot is None else _round(sample.tpot),
            "itl": [_round(gap) for gap in sample.itl],
            "prompt_tokens": sample.prompt_tokens,
            "output_tokens": sample.output_tokens,
            "error": sample.error,
            "proxy_prefill_time": header(sample, PREFILL),
            "proxy_kv_extract_time": header(sample, EXTRACT),
        }
        for sample in sorted(samples, key=lambda sample: sample.began)
    ]


def _round(seconds: float) -> float:
    return round(seconds * 1e3, 4)


def _ms(values: dict[str, Any]) -> dict[str, Any]:
    return {"unit": "ms", **values}


def header(sample: Sample, name: str) -> float | None:
    """The milliseconds in a header of the proxy; None where it has none."""
    text = sample.headers.get(name, "")
    return float(text) if NUMBER.fullmatch(text) else None


def _given(values: Any) -> list[float]:
    return [value for value in values if value is not None]


def _goodput(samples: Sequence[Sample], slo: Mapping[str, float]) -> float:
    """The share of all requests that met every limit; a failed one meets none."""

    def meets(sample: Sample) -> bool:
        values = {"ttft": sample.ttft, "tpot": sample.tpot or 0.0, "e2e": sample.e2e}
        return not sample.error and all(values[name] * 1e3 <= limit for name, limit in slo.items())

    return sum(map(meets, samples)) / len(samples) if samples else 0.0


MOVED = {
    "bytes": ("bytes", 1.0),
    "transfers": ("transfers", 1.0),
    "transfer_ms": ("transfer_seconds", 1e3),
    "post_ms": ("post_seconds", 1e3),
    "descriptors": ("descriptors", 1.0),
}
"""What a result calls a counter of the decode servers, that counter, and its unit in the result's."""


def transfer(servers: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """What was transferred: the decode servers' counters, and what any of the servers says went wrong."""
    decode: Counter[str] = Counter()
    for role, deltas in servers.items():
        if role.startswith("decode"):
            decode.update(deltas)
    moved: dict[str, Any] = {
        name: decode[counter] * unit for name, (counter, unit) in MOVED.items() if counter in decode
    }
    moved["external_tokens"] = float(decode["tokens_external_kv_transfer"])
    moved["computed_on_decode"] = float(decode["tokens_local_compute"])
    for name in doubts.WRONG:
        moved[name] = sum(deltas.get(name, 0.0) for deltas in servers.values())
    moved["servers"] = {role: dict(deltas) for role, deltas in servers.items()}
    return moved
