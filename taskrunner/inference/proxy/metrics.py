"""What the proxy knows of the time: Prometheus metrics, and a line of JSON for each request where that is
asked for.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import IO, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The metrics of one proxy. All histograms are in seconds."""

    def __init__(self, log: str | Path | None = None) -> None:
        self.registry = CollectorRegistry()
        self.prefill = self._histogram("prefill", "From sending to prefill to its complete response")
        self.extract = self._histogram("kv_extract", "Reading kv_transfer_params from prefill's response")
        self.first = self._histogram(
            "decode_first_byte", "From sending to decode to the first byte of its body"
        )
        self.whole = self._histogram("request", "From receiving a request to passing on the last byte")
        self.requests = Counter(
            "proxy_requests", "Requests by stage and status", ["stage", "status"], registry=self.registry
        )
        self.running = Gauge("proxy_running", "Requests in progress", registry=self.registry)
        self._log: IO[str] | None = open(log, "a", buffering=1) if log else None  # noqa: SIM115 - as long as it runs

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"proxy_{name}_seconds", text, buckets=BUCKETS, registry=self.registry)

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def note(self, request: str, stage: str, status: int, times: dict[str, float]) -> None:
        """Take what became of a request; `times` are of time.perf_counter, by what happened."""
        self.requests.labels(stage, str(status)).inc()
        for histogram, begin, end in (
            (self.prefill, "prefill_sent", "prefill_done"),
            (self.extract, "prefill_done", "extracted"),
            (self.first, "decode_sent", "decode_first"),
            (self.whole, "received", "last"),
        ):
            if begin in times and end in times:
                histogram.observe(times[end] - times[begin])
        if self._log is not None:
            zero = times["received"]
            line: dict[str, Any] = {"request": request, "stage": stage, "status": status, "time": time.time()}
            line["ms"] = {name: round((at - zero) * 1e3, 3) for name, at in times.items()}
            self._log.write(json.dumps(line) + "\n")
