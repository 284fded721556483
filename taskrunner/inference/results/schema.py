"""The names in a result record. result.schema.json, made of model.py, describes it whole."""

from __future__ import annotations

from pathlib import Path
from typing import Final

VERSION = 2
SCHEMA = Path(__file__).with_name("result.schema.json")
DISTRIBUTIONS = {
    "ttft": "TTFT",
    "tpot": "TPOT",
    "itl": "ITL",
    "e2e_latency": "E2E",
    "proxy_prefill_time": "prefill (proxy)",
    "proxy_kv_extract_time": "",
}
"""Those of many values, in milliseconds, each with its title in a table, if it has a row there."""
STATISTICS = ("mean", "stdev", "p50", "p90", "p95", "p99")
SCALARS = (
    "throughput_rps",
    "throughput_tps",
    "throughput_total_tps",
    "goodput",
    "completed",
    "failed",
    "duration_ms",
)
TOO_SMALL: Final = "n too small"
"""Stands for the interval of a percentile of which the samples say nothing."""
