"""The instance types that have accelerators and EFA (instance_types.json), and what follows from them."""

from __future__ import annotations

import difflib
import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).with_name("instance_types.json")


class InstanceType(NamedTuple):
    """A row of DescribeInstanceTypes, and two facts that are not in it.

    `efa` is the number of EFA interfaces, `first_efa_card` the first network card that takes one, `gbps`
    the network's bandwidth, `memory_gib` that of one accelerator. `gpudirect` says whether EFA reads and
    writes GPU memory (None: not known), `volume_gib` how large the root volume is made.
    """

    name: str
    efa: int
    cards: int
    first_efa_card: int
    gbps: int
    accelerator: str
    kind: str
    accelerators: int
    memory_gib: int
    vcpus: int
    host_memory_gib: int
    gpudirect: bool | None
    capacity_block: bool
    volume_gib: int


class Interface(NamedTuple):
    """A network interface: its card, its device index there, and its type as EC2 calls it."""

    card: int
    device: int
    kind: str


@cache
def known() -> dict[str, InstanceType]:
    """All of them by name."""
    rows = json.loads(TABLE.read_text())
    return {name: InstanceType(name, **row) for name, row in rows.items()}


def closest(name: str, count: int = 3) -> list[str]:
    """The types nearest to a name: of its family, then those spelled like it."""
    family = name.partition(".")[0]
    same = sorted(
        (row for row in known().values() if row.name.startswith(f"{family}.")), key=lambda row: row.vcpus
    )
    like = difflib.get_close_matches(name, known(), count, 0.5)
    return list(dict.fromkeys([*(row.name for row in same), *like]))[:count]


def with_capacity_blocks() -> list[str]:
    """The types that capacity blocks can be bought for."""
    return sorted(row.name for row in known().values() if row.capacity_block)


def interfaces(row: InstanceType) -> list[Interface]:
    """The interfaces that give a type all of its bandwidth.

    One card: a single `efa`. Several: the first has the address (`interface`) and, where it takes one, an
    `efa-only` beside it; each other card an `efa-only`, which needs no address.
    Source: EC2 User Guide, "Maximize network bandwidth on Amazon EC2 instances with multiple network cards".
    """
    if row.cards == 1:
        return [Interface(0, 0, "efa")]
    first = [Interface(0, 0, "interface")] + [Interface(0, 1, "efa-only")] * (row.first_efa_card == 0)
    return first + [Interface(card, 0, "efa-only") for card in range(1, row.cards)]
