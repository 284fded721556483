"""Which GPUs a server gets on a machine, and how much of their memory."""

from __future__ import annotations

import subprocess
from typing import NamedTuple

SHARED = 0.42
"""The share of a GPU's memory for each of two servers on it: both with what CUDA itself takes."""


class Placement(NamedTuple):
    """Indices of GPUs as CUDA_VISIBLE_DEVICES has them ("" for all), and the share of their memory (0 for
    vLLM's default).
    """

    gpus: str
    memory: float


def names() -> list[str]:
    """What nvidia-smi calls the GPUs that are here; none where there is no driver."""
    try:
        words = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def place(mode: str, count: int, each: int, together: bool) -> Placement:
    """What a server gets that needs `each` of so many GPUs; `together`: both roles are on one machine.

    There, prefill takes the first ones and decode the next, where there are enough; else they share.
    """
    if not together or mode == "unified" or count == 0:
        return Placement("", 0.0)
    if count < 2 * each:
        return Placement("", SHARED)
    first = each if mode == "consumer" else 0
    return Placement(",".join(map(str, range(first, first + each))), 0.0)
