"""Which way the bytes of a measurement went, by the counters of this node's devices."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..circumstances import judge, machine
from ..circumstances.sampler import grown
from .reading import Parsed

Counters = dict[str, dict[str, dict[str, Any]]]
MOVED = 0.9
"""The share of the payload that must have crossed a device. Protocol headers make it more."""
ENOUGH = 1 << 20
"""Bytes of payload that tell a measurement from whatever else crosses a network interface."""


def counters() -> Counters:
    """What the devices have counted until now."""
    return {"rdma": machine.rdma(), "net": machine.interfaces()}


def asked(provider: str, peer: str) -> str:
    """What is to be measured: `local` between two processes of one node, whatever the provider."""
    return "local" if is_here(peer) else provider


def proof(before: Counters, after: Counters, figures: Parsed, asked: str) -> dict[str, Any]:
    """What crossed which device: {asked, proven, payload_bytes, evidence}; not proven: None."""
    payload = payload_of(figures)
    moved = {
        each["name"]: each.get("rx", 0) + each.get("tx", 0)
        for each_kind in before
        for each in grown([before[each_kind], after[each_kind]]).values()
    }
    evidence = ", ".join(f"{name}: {count:,} bytes" for name, count in moved.items() if count)
    proven = None
    for way, names, least in _ways(before):
        if payload and payload >= least and sum(moved.get(name, 0) for name in names) >= MOVED * payload:
            proven = way
            break
    return {
        "asked": asked,
        "proven": proven,
        "payload_bytes": payload,
        "evidence": evidence or "nothing moved",
    }


def doubts(fabric: Mapping[str, Any]) -> list[str]:
    """Why the counters contradict the fabric that was asked for."""
    asked, proven = fabric["asked"], fabric["proven"]
    if proven == asked or asked not in ("efa", "rdma", "tcp", "local"):
        return []
    if proven is not None:
        return [f"{asked} is asked for, but the bytes went over {proven} ({fabric['evidence']})"]
    payload, evidence = fabric["payload_bytes"], fabric["evidence"]
    if asked in ("efa", "rdma") and payload:
        return [f"no {asked.upper()} device has counted the {payload:,} bytes ({evidence})"]
    return []


def kind(device: str) -> str:
    """What an RDMA device is: efa, or rdma for InfiniBand and RoCE."""
    driver = machine.RDMA / device / "device" / "driver"
    return "efa" if Path(os.path.realpath(driver)).name == "efa" else "rdma"


def payload_of(figures: Parsed) -> int:
    """The least that has crossed the fabric, in bytes; 0 where that is not known."""
    if figures.get("received_bytes"):
        return int(figures["received_bytes"])
    return sum(
        (row["size_bytes"] or 0) * (row["iterations"] or 0) * row.get("batch", 1) for row in figures["rows"]
    )


def is_here(host: str, own: Callable[[], list[str]] = machine.addresses) -> bool:
    """Whether an address or a name is of this node."""
    return judge.has(judge.CLIENT, {"addresses": own()}, host)


def _ways(before: Counters) -> list[tuple[str, list[str], int]]:
    """Kinds of fabric, the devices of each, and how many bytes tell. Few but a measurement use RDMA."""
    rdma: dict[str, list[str]] = {}
    for port in before["rdma"]:
        rdma.setdefault(kind(port.partition("/")[0]), []).append(port)
    names = [each["name"] for each in before["net"].values()]
    net = [("local", [name for name in names if name == "lo"], ENOUGH)]
    net.append(("tcp", [name for name in names if name != "lo"], ENOUGH))
    return [(name, ports, 1) for name, ports in rdma.items()] + net
