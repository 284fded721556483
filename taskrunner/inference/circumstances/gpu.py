"""GPUs while something is measured, as nvidia-smi tells."""

from __future__ import annotations

import subprocess
import threading

SMI = "nvidia-smi"
PATIENCE_S = 10.0
"""For one answer of it: where a GPU is lost, it may give none."""
NUMBERS = {
    "utilization": "utilization.gpu", "memory_mib": "memory.used", "sm_mhz": "clocks.sm",
    "celsius": "temperature.gpu", "watts": "power.draw",
    "ecc_uncorrected": "ecc.errors.uncorrected.volatile.total",
}  # fmt: skip
REASONS = {
    "hw_thermal": "hw_thermal_slowdown",
    "sw_thermal": "sw_thermal_slowdown",
    "power_brake": "hw_power_brake_slowdown",
}
PREFIXES = ("clocks_event_reasons.", "clocks_throttle_reasons.")
"""What drivers call the reasons for which a GPU runs slower: since R535, and before."""


def query(*fields: str) -> list[list[str]]:
    """Rows of values; none where there is no driver, or it does not know a field."""
    words = [SMI, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    return _rows(_said(words))


def devices() -> list[dict[str, str]]:
    """Index, name and driver of each GPU."""
    return [
        {"index": row[0], "name": row[1], "driver": row[2]}
        for row in query("index", "name", "driver_version") if len(row) == 3
    ]  # fmt: skip


def workers() -> dict[int, str]:
    """Processes that compute on GPUs, by pid: as this process's namespace knows them."""
    words = [SMI, "--query-compute-apps=pid,process_name", "--format=csv,noheader"]
    return {int(row[0]): row[1] for row in _rows(_said(words)) if len(row) == 2 and row[0].isdigit()}


class Watch:
    """What the GPUs do, asked for every two seconds by one nvidia-smi that stays: each start of it would
    cost half a second of a core.
    """

    def __init__(self) -> None:
        self.latest: list[dict[str, float]] = []
        self._process: subprocess.Popen[str] | None = None
        self._prefix = next((prefix for prefix in PREFIXES if query(prefix + "hw_slowdown")), "")
        if not devices():
            return
        self._names = [*NUMBERS, *(REASONS if self._prefix else ())]
        fields = [*NUMBERS.values(), *(self._prefix + of for of in REASONS.values() if self._prefix)]
        self._process = subprocess.Popen(
            [SMI, f"--query-gpu=index,{','.join(fields)}", "--format=csv,noheader,nounits", "--loop=2"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True,
        )  # fmt: skip
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


def _said(words: list[str]) -> str:
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=PATIENCE_S, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _rows(text: str) -> list[list[str]]:
    return [[field.strip() for field in line.split(",")] for line in text.splitlines() if line.strip()]
