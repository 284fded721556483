"""Samples of a node, once a second, and what they say of a window of time."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Collection
from typing import Any

from . import gpu, machine, processes

EVERY_S = 1.0
KEPT = 6 * 3600
"""Samples: so many hours of them."""
SCAN_SHARE = 0.002
"""At most this share of a core goes into looking at all processes."""
NAMED = 0.002
"""Processes with less of a core between two samples are not kept by name."""

Sample = dict[str, Any]


class Sampler:
    """Samples this machine. `ports` are those of the servers that are measured, `own` processes that belong
    to the measurement, too. Samples are marked, taken at once, where a measurement begins and ends.
    """

    def __init__(self, ports: Collection[int], own: Collection[int] = ()) -> None:
        self._ports, self._own = ports, own
        self._lock = threading.Lock()
        self._rows: deque[Sample] = deque(maxlen=KEPT)
        self.about = {**machine.about(), "gpus": gpu.devices()}
        self._gpu = gpu.Watch(bool(self.about["gpus"]))
        self._seen = processes.snapshot()
        self._scanned = time.monotonic()
        self._pause = EVERY_S
        self._roots: dict[int, tuple[int, int]] = {}

    def run(self, over: threading.Event) -> None:
        """Sample until it is `over`."""
        while not over.wait(EVERY_S):
            self.take()
        self._gpu.close()

    def take(self, mark: bool = False) -> float:
        """Take a sample; returns its time, in seconds since the epoch. One that is a `mark` is complete."""
        workers = gpu.workers() if mark and self.about["gpus"] else {}
        with self._lock:
            row: Sample = {
                "t": time.time(),
                **machine.processors(),
                **machine.pressure(),
                "tcp": machine.tcp(),
            }
            row["net"], row["gpu"] = machine.interfaces(), self._gpu.latest
            if mark:
                row["rdma"], row["xid"] = machine.rdma(), machine.xid_errors()
                row["gpu_workers"] = workers
            if mark or time.monotonic() - self._scanned >= self._pause:
                self._scan(row)
            self._rows.append(row)
            return float(row["t"])

    def _scan(self, row: Sample) -> None:
        began = time.thread_time()
        now = processes.snapshot()
        ours = self._ours(now)
        took = processes.spent(self._seen, now)
        seconds = max(1e-6, time.monotonic() - self._scanned)
        foreign = {pid: used for pid, used in took.items() if pid not in ours}
        row["foreign"] = sum(foreign.values())
        row["ours"] = sum(took.values()) - row["foreign"]
        row["ours_pids"] = sorted(ours)
        row["by"] = {
            f"{now[pid].name} (pid {pid})": used for pid, used in foreign.items() if used > NAMED * seconds
        }
        self._seen, self._scanned = now, time.monotonic()
        self._pause = max(EVERY_S, (time.thread_time() - began) / SCAN_SHARE)

    def _ours(self, now: dict[int, processes.Process]) -> set[int]:
        served = {
            port for port, (pid, start) in self._roots.items() if pid in now and now[pid].start == start
        }
        missing = set(self._ports) - served
        if missing:
            for port, pid in processes.listeners(missing).items():
                if pid in now:
                    self._roots[port] = (pid, now[pid].start)
        above = set().union(
            *(processes.ancestors(now, pid) for pid in self._own), processes.ancestors(now, os.getpid())
        )
        return (
            processes.family(now, [*(pid for pid, _ in self._roots.values()), *self._own, os.getpid()])
            | above
        )

    @property
    def servers(self) -> dict[int, int]:
        """Who listens on the ports of the servers, by port."""
        return {port: pid for port, (pid, _) in self._roots.items()}

    def window(self, begin: float, end: float) -> dict[str, Any]:
        """What the samples from `begin` to `end` say; seconds since the epoch, of two marks."""
        with self._lock:
            rows = [row for row in self._rows if begin <= row["t"] <= end]
        unseen = sorted(set(self._ports) - self.servers.keys())
        return {"node": self.about, "unseen_ports": unseen, **summed(rows)}


def summed(rows: list[Sample]) -> dict[str, Any]:
    """The sums of samples: seconds, bytes and events from the first to the last of them."""
    if len(rows) < 2:
        return {"samples": len(rows)}
    first, last = rows[0], rows[-1]
    seconds = max(1e-6, last["t"] - first["t"])
    totals: dict[str, Any] = {"samples": len(rows), "seconds": seconds, "begin": first["t"], "end": last["t"]}
    for name in ("busy", "steal", "wait_cpu", "wait_memory"):
        if name in first and name in last:
            totals[f"{name}_cores"] = max(0.0, last[name] - first[name]) / seconds
    scans = [row for row in rows[1:] if "foreign" in row]
    totals["foreign_cores"] = sum(row["foreign"] for row in scans) / seconds
    totals["ours_cores"] = sum(row["ours"] for row in scans) / seconds
    by: dict[str, float] = {}
    for row in scans:
        for name, used in row["by"].items():
            by[name] = by.get(name, 0.0) + used / seconds
    totals["foreign_by"] = dict(sorted(by.items(), key=lambda item: -item[1])[:5])
    totals["tcp"] = {name: last["tcp"][name] - first["tcp"].get(name, 0) for name in last["tcp"]}
    totals["net"] = grown([row["net"] for row in rows])
    totals["rdma"] = grown([row["rdma"] for row in rows if "rdma" in row])
    if first.get("xid") is not None and last.get("xid") is not None:
        totals["xid_errors"] = max(0, last["xid"] - first["xid"])
    totals["gpu"] = _gpus([row["gpu"] for row in rows if row["gpu"]])
    ours = set(last.get("ours_pids", ()))
    totals["gpu_foreign"] = {
        str(pid): name
        for row in (first, last)
        for pid, name in row.get("gpu_workers", {}).items()
        if pid not in ours
    }
    totals["series"] = {
        "t": [round(row["t"] - first["t"], 2) for row in rows],
        "busy": [round(row["busy"] - first["busy"], 2) for row in rows] if "busy" in first else [],
        "sm_mhz": [[each.get("sm_mhz") for each in row["gpu"]] for row in rows] if totals["gpu"] else [],
    }
    return totals


def grown(rows: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """By how much the counters of devices grew from row to row; `reset` where one was set back, or its device
    was missing meanwhile: then what it says is too little.
    """
    differences: dict[str, dict[str, Any]] = {}
    for before, after in zip(rows, rows[1:]):
        for key in before.keys() | after.keys():
            entry = differences.setdefault(key, {"name": key})
            if key not in before or key not in after:
                entry["reset"] = True
                continue
            for name, value in after[key].items():
                if isinstance(value, str):
                    entry[name] = value
                elif value < before[key].get(name, 0):
                    entry["reset"] = True
                    entry.setdefault(name, 0)
                else:
                    entry[name] = entry.get(name, 0) + value - before[key].get(name, value)
    return differences


def _gpus(rows: list[list[dict[str, float]]]) -> list[dict[str, Any]]:
    """For each GPU the least, mean and most of its numbers, and the share of samples with each reason."""
    gpus = []
    for index in range(max(map(len, rows), default=0)):
        values: dict[str, list[float]] = {}
        for row in rows:
            for name, value in row[index].items() if index < len(row) else ():
                values.setdefault(name, []).append(value)
        about: dict[str, Any] = {}
        for name, each in values.items():
            if name in gpu.REASONS:
                about[name] = sum(each) / len(each)
            elif name == "ecc_uncorrected":
                about[name] = each[-1] - each[0]
            else:
                about[name] = [min(each), round(sum(each) / len(each), 1), max(each)]
        gpus.append(about)
    return gpus
