"""GPUs while something is measured, as nvidia-smi tells."""

from __future__ import annotations

import subprocess
import threading

from .. import nvidia_smi

PATIENCE_S = 10.0
"""For one answer of it: where a GPU is lost, it may give none."""
NUMBERS = {
    "utilization": "utilization.gpu",
    "memory_mib": "memory.used",
    "sm_mhz": "clocks.sm",
    "celsius": "temperature.gpu",
    "watts": "power.draw",
    "ecc_uncorrected": "ecc.errors.uncorrected.volatile.total",
}
REASONS = {
    "hw_thermal": "hw_thermal_slowdown",
    "sw_thermal": "sw_thermal_slowdown",
    "power_brake": "hw_power_brake_slowdown",
}
PREFIXES = ("clocks_event_reasons.", "clocks_throttle_reasons.")
"""What drivers call the reasons for which a GPU runs slower: since R535, and before."""


def devices() -> list[dict[str, str]]:
    """Index, name and driver of each GPU."""
    return [
        {"index": row[0], "name": row[1], "driver": row[2]}
        for row in nvidia_smi.gpus("index", "name", "driver_version", patience=PATIENCE_S)
        if len(row) == 3
    ]


def workers() -> dict[int, str]:
    """Processes that compute on GPUs, by pid: as this process's namespace knows them."""
    rows = nvidia_smi.rows("--query-compute-apps=pid,process_name", patience=PATIENCE_S)
    return {int(row[0]): row[1] for row in rows if len(row) == 2 and row[0].isdigit()}


class Watch:
    """What GPUs do, where there are some, asked for every two seconds by one nvidia-smi that stays: each
    start of it would cost half a second of a core.
    """

    def __init__(self, there: bool) -> None:
        self.latest: list[dict[str, float]] = []
        self._process: subprocess.Popen[str] | None = None
        if not there:
            return
        accepted = (
            prefix for prefix in PREFIXES if nvidia_smi.gpus(prefix + "hw_slowdown", patience=PATIENCE_S)
        )
        prefix = next(accepted, "")
        self._names = [*NUMBERS, *(REASONS if prefix else ())]
        fields = [*NUMBERS.values(), *(prefix + of for of in REASONS.values() if prefix)]
        self._process = subprocess.Popen(
            [nvidia_smi.SMI, f"--query-gpu=index,{','.join(fields)}", nvidia_smi.FORMAT, "--loop=2"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        rows: dict[int, dict[str, float]] = {}
        for line in self._process.stdout:
            row = [field.strip() for field in line.split(",")]
            if len(row) != len(self._names) + 1 or not row[0].isdigit():
                continue
            values = {name: value(text) for name, text in zip(self._names, row[1:], strict=True)}
            rows[int(row[0])] = {name: each for name, each in values.items() if each is not None}
            self.latest = [rows[index] for index in sorted(rows)]

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def value(text: str) -> float | None:
    """A number, or whether something is active; None for "[N/A]" and the like."""
    if text in ("Active", "Not Active"):
        return float(text == "Active")
    try:
        return float(text)
    except ValueError:
        return None
