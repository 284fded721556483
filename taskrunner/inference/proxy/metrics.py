"""What the proxy knows of the time: Prometheus metrics, and a line of JSON for each request where that is
asked for.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import IO, Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
    values,
)

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable with the directory in which workers keep their values."""
KINDS, FILE_SIZE = ("counter", "gauge_livesum", "histogram"), 1 << 20


class Metrics:
    """The metrics of one proxy. All histograms are in seconds. `worker` is the place of one among several:
    each answers with the values of all.
    """

    def __init__(self, log: str | Path | None = None, worker: int | None = None) -> None:
        """Raises OSError."""
        self._several = worker is not None
        if worker is not None:
            _reserve(worker)
            values.ValueClass = values.MultiProcessValue(lambda: worker)  # type: ignore[no-untyped-call]
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
        self.running = Gauge(
            "proxy_running", "Requests in progress", registry=self.registry, multiprocess_mode="livesum"
        )
        self.running.set(0)  # a worker that died has left its own
        self._log: IO[str] | None = open(log, "a", buffering=1) if log else None  # noqa: SIM115 - as long as it runs

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"proxy_{name}_seconds", text, buckets=BUCKETS, registry=self.registry)

    def text(self) -> bytes:
        registry = self.registry
        if self._several:
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)

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


def _reserve(worker: int) -> None:
    """Take the space of a worker's files, which it maps: on a full disk, writing there would kill it. Raises
    OSError.
    """
    for kind in KINDS:
        path = Path(os.environ[DIRECTORY]) / f"{kind}_{worker}.db"
        with path.open("ab") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, FILE_SIZE)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from error
