"""Which GPUs a server gets on a machine, and how much of their memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from .. import nvidia_smi

SHARED = 0.42
"""The share of a GPU's memory for each of two servers on it: both with what CUDA itself takes."""
PATIENCE_S = 60.0
VISIBLE = "CUDA_VISIBLE_DEVICES"


class Placement(NamedTuple):
    """GPUs as CUDA_VISIBLE_DEVICES has them ("" for all), and the share of their memory (0 for vLLM's
    default).
    """

    gpus: str
    memory: float


def names() -> list[str]:
    """What nvidia-smi calls the GPUs that are here; none where there is no driver."""
    return [row[0] for row in nvidia_smi.gpus("name", patience=PATIENCE_S)]


def usable(count: int) -> list[str]:
    """The GPUs that servers may take: those that the environment leaves of so many."""
    given = os.environ.get(VISIBLE)
    return [str(index) for index in range(count)] if given is None else split(given)


def split(text: str) -> list[str]:
    """The GPUs in a list such as "0,1"."""
    return [part.strip() for part in text.split(",") if part.strip()]


def place(mode: str, there: Sequence[str], each: int, given: str = "", peers: str | None = None) -> Placement:
    """What a server gets of the GPUs that are `there`, of which it needs `each`; `given` are those that were
    chosen for it, `peers` those for the other role on this machine ("": none were; None: it is not here).

    Both roles here: prefill takes the first ones and decode the next, or those that the other one leaves;
    where there are too few, they share.
    """
    if mode == "unified" or peers is None or not there:
        return Placement(given, 0.0)
    mine, other = split(given), split(peers)
    if not mine and other:
        mine = [gpu for gpu in there if gpu not in other][:each]
    elif not mine and len(there) >= 2 * each:
        first = each if mode == "consumer" else 0
        mine = list(there[first : first + each])
    if len(mine) < each or set(mine) & set(other):
        return Placement(given, SHARED)
    return Placement(",".join(mine), 0.0)
