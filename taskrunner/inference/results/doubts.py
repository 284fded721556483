"""Why a result is not valid (its numbers are not of what it says) or doubtful (they are, but disturbed)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .sample import Sample
from .schema import TOO_SMALL

WRONG = ("failed_transfers", "failed_notifications", "kv_expired", "after_expiry")
"""Any of these makes tokens doubtful though every request was answered."""
TITLES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e_latency": "E2E"}
LEAST_MS = {"mean": 0.2, "p50": 0.2, "p90": 0.5, "p95": 0.5, "p99": 1.0}
"""The statistics that are judged, and differences of each that nobody measures for."""
MOST_CACHED = 0.01
"""The share of prompt tokens that may come from a prefix cache which nobody has asked for: the first block
of a chat template, say.
"""


def invalid(
    results: Mapping[str, Any], samples: Sequence[Sample], failures: float, disaggregated: bool
) -> list[str]:
    """Why the results are not what they seem; `failures` is the share of requests that may fail."""
    why = []
    if not results["completed"]:
        why.append("no request completed")
    elif results["failed"] > failures * len(samples):
        why.append(f"{results['failed']} of {len(samples)} requests failed")
    if disaggregated:
        prompt = sum(sample.prompt_tokens for sample in samples if not sample.error)
        why += transfer_doubts(results["kv_transfer"], prompt)
    return why


def transfer_doubts(found: Mapping[str, Any], prompt_tokens: int) -> list[str]:
    """Why the tokens of a disaggregated run of so many prompt tokens are not what they seem."""
    reasons = [f"{name}: {found[name]:g}" for name in WRONG if found.get(name)]
    moved = found.get("external_tokens", 0.0)
    # The last token of a prompt is computed by decode itself, and blocks may be rounded.
    if moved < 0.9 * prompt_tokens:
        reasons.append(f"only {moved:g} of {prompt_tokens} prompt tokens came from the prefill server")
    return reasons


def doubtful(results: Mapping[str, Any], samples: Sequence[Sample], lag: float, shared: float) -> list[str]:
    """What has disturbed the results, as far as the client and the servers' counters know. A statistic may be
    wrong by the share `lag`; the share `shared` of prompts may be in a cache.
    """
    good = [sample for sample in samples if not sample.error]
    why = late(results, good, lag)
    servers = results.get("kv_transfer", {}).get("servers", {})
    for role, deltas in servers.items():
        cached, whole = (deltas.get(name, 0.0) for name in ("tokens_local_cache_hit", "prompt_tokens"))
        whole = whole or sum(value for name, value in deltas.items() if name.startswith("tokens_"))
        if whole and cached / whole > shared + MOST_CACHED:
            why.append(f"{role}: {cached:g} of {whole:g} prompt tokens came from its prefix cache")
        if deltas.get("preemptions"):
            why.append(f"{role}: {deltas['preemptions']:g} preemptions, because its KV cache was full")
    return why


def late(results: Mapping[str, Any], good: Sequence[Sample], limit: float) -> list[str]:
    """Which statistics the client's own lateness may have changed by more than the share `limit`: each is
    made again of the earliest and of the latest times that the samples may have had.
    """
    if not any(sample.late for sample in good):
        return []
    why = []
    for name, (low, value, high) in _bounds(good).items():
        for of, least in LEAST_MS.items():
            if name == "itl" and of == "mean":
                continue  # what one gap has too much, the next has too little: TPOT tells
            if not len(value) or results[name].get(f"{of}_interval") == TOO_SMALL:
                continue
            at = _statistic(value, of)
            most = max(at - _statistic(low, of), _statistic(high, of) - at) * 1e3
            if most > max(least, limit * at * 1e3):
                what = f"{TITLES[name]} {of} ({at * 1e3:.2f} ms) may be wrong by {most:.2f} ms"
                why.append(f"the client was late: {what}")
                break
    return why


def _statistic(values: Any, of: str) -> float:
    return float(values.mean() if of == "mean" else np.percentile(values, float(of[1:])))


def _bounds(good: Sequence[Sample]) -> dict[str, tuple[Any, Any, Any]]:
    """For each metric the least, the noted and the greatest values, in seconds."""
    columns: dict[str, list[tuple[float, float, float]]] = {name: [] for name in TITLES}
    for sample in good:
        late = sample.late or [0.0] * (len(sample.itl) + 1)
        first, last = late[0], late[-1]
        columns["ttft"].append((sample.ttft - first, sample.ttft, sample.ttft))
        columns["e2e_latency"].append((sample.e2e - last, sample.e2e, sample.e2e))
        if sample.tpot is not None:
            steps = sample.output_tokens - 1
            columns["tpot"].append((sample.tpot - last / steps, sample.tpot, sample.tpot + first / steps))
        for gap, before, after in zip(sample.itl, late, late[1:], strict=False):
            columns["itl"].append((max(0.0, gap - after), gap, gap + before))
    bounds = {}
    for name, rows in columns.items():
        low, value, high = np.array(rows).reshape(-1, 3).T
        bounds[name] = (low, value, high)
    return bounds
