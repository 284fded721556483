"""Whether the node's clock is synchronised, and whether any GPU is throttled."""

from __future__ import annotations

import argparse
import ctypes
from collections.abc import Iterator

from .. import nvidia_smi

UNSYNCHRONIZED = 5
"""TIME_ERROR of adjtimex(2)."""
TIMEX_BYTES = 256
"""At least sizeof(struct timex)."""
PATIENCE_S = 30.0
REASONS = ("hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown", "sw_thermal_slowdown")
PREFIXES = ("clocks_event_reasons", "clocks_throttle_reasons")
"""The names of newer drivers and of older ones."""


def arguments(_: argparse.ArgumentParser) -> None:
    """Nothing can be said to it."""


def main(_: argparse.Namespace) -> int:
    """Say what is wrong with the clocks, and what to do; 1 when anything is."""
    problems = list(_problems())
    for problem, hint in problems:
        print(f"{problem}\nto do: {hint}")
    if not problems:
        print("the clock is synchronised; no GPU is throttled")
    return 1 if problems else 0


def _problems() -> Iterator[tuple[str, str]]:
    if not synchronized():
        yield (
            "the node's clock is not synchronised",
            "sudo apt-get install chrony (on EC2 it finds the time service)",
        )
    for prefix in PREFIXES:
        gpus = nvidia_smi.gpus(
            "index",
            "clocks.sm",
            "clocks.max.sm",
            *(f"{prefix}.{name}" for name in REASONS),
            patience=PATIENCE_S,
        )
        for index, clock, most, *reasons in gpus:
            print(f"GPU {index}: {clock} of {most} MHz")
            active = [name for name, state in zip(REASONS, reasons) if state == "Active"]
            if active:
                yield (
                    f"GPU {index} is throttled: {', '.join(active)}",
                    "nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER",
                )
        if gpus:
            break


def synchronized() -> bool:
    """Whether the kernel takes its clock for synchronised (adjtimex(2)); reading it needs no privilege."""
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.adjtimex(ctypes.create_string_buffer(TIMEX_BYTES))) not in (UNSYNCHRONIZED, -1)
