"""Single questions to nvidia-smi: rows of values."""

from __future__ import annotations

import subprocess

SMI = "nvidia-smi"
FORMAT = "--format=csv,noheader,nounits"


def gpus(*fields: str, patience: float) -> list[list[str]]:
    """These fields of each GPU; none without a driver, for a field that it does not know, or when it does not
    answer within `patience` seconds.
    """
    return rows("--query-gpu=" + ",".join(fields), patience=patience)


def count(*, patience: float) -> int:
    """How many GPUs the driver knows."""
    return len(gpus("index", patience=patience))


def rows(question: str, *, patience: float) -> list[list[str]]:
    """The answer to a query option; without units."""
    words = [SMI, question, FORMAT]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=patience, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    return [[field.strip() for field in line.split(",")] for line in lines if line.strip()]
