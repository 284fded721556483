"""What samples mean for a result: which way the KV cache went, and what has disturbed the measurement."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

CLIENT = "client"
FOREIGN_CORES, FOREIGN_SHARE = 0.05, 0.005
"""Foreign load from which on a result is doubtful: of a core, or of all cores where that is more."""
STEAL_SHARE, MEMORY_STALLS = 0.1, 0.01
"""Of the processor time that was wanted, and of the window."""
RESENT, FEW_ERRORS = 0.001, 5
"""The share of TCP segments or RDMA packets that may be sent again, and how many may whatever their share."""
UNSEEN_CORES, UNSEEN_SHARE = 0.5, 0.2
"""Load of processes that cannot be seen: in cores, and as a share of all load; kernel threads are in it."""
CLOCK_STEP_MS = 100.0
MOVED, STRAY = 0.95, 0.5
"""Of the KV bytes: at least so much crosses the fabric that is named, less than so much any other one."""
SLOWED = {
    "hw_thermal": "it was too hot (hardware)",
    "sw_thermal": "it was too hot (software)",
    "power_brake": "its power brake was on",
}
NAMES = {"net": "TCP", "rdma": "RDMA", "memory": "the machine's memory"}


class Way(NamedTuple):
    """The way that a KV cache is meant to go: the fabric, what its bytes are counted by (net, rdma or
    memory), and the hosts that it leads from and to.
    """

    fabric: str
    counted_by: str
    prefills: Sequence[str]
    decode: str


def doubts(
    nodes: Mapping[str, Any], circumstances: Mapping[str, Any], missing: Mapping[str, str]
) -> list[str]:
    """Why a result is doubtful, as the samples of the nodes say; `about` is what is known of each node."""
    why = [f"{_shown(name)} was not sampled: {reason}" for name, reason in missing.items()]
    for name, answer in nodes.items():
        if answer.get("samples", 0) < 2:
            why.append(f"{_shown(name)} was not sampled: it has no samples of the measurement")
            continue
        cores = circumstances.get(name, {}).get("cores") or 1
        why += [f"{_shown(name)}: {reason}" for reason in _of_node(answer, cores)]
    return why


def _of_node(answer: Mapping[str, Any], cores: int) -> list[str]:
    why = []
    foreign = answer["foreign_cores"]
    if foreign > max(FOREIGN_CORES, FOREIGN_SHARE * cores):
        names = (
            ", ".join(f"{who} {used:.2f}" for who, used in answer["foreign_by"].items()) or "short processes"
        )
        unseen = "".join(
            f"; the server on port {port} cannot be seen here" for port in answer.get("unseen_ports", ())
        )
        why.append(f"other processes used {foreign:.2f} of a core: {names}{unseen}")
    hidden = answer.get("busy_cores", 0.0) - foreign - answer.get("ours_cores", 0.0)
    if hidden > max(UNSEEN_CORES, UNSEEN_SHARE * answer.get("busy_cores", 0.0)):
        why.append(
            f"processes that cannot be seen here, of another container say, used {hidden:.2f} of a core"
        )
    stolen, busy = answer.get("steal_cores", 0.0), answer.get("busy_cores", 0.0)
    if stolen > STEAL_SHARE * (stolen + busy) and stolen > FOREIGN_CORES:
        why.append(f"the hypervisor took {stolen:.2f} of a core")
    if answer.get("wait_memory_cores", 0.0) > MEMORY_STALLS:
        why.append(f"all processes waited for memory in {answer['wait_memory_cores']:.0%} of the time")
    for index, gpu in enumerate(answer.get("gpu", ())):
        why += [f"GPU {index} was slowed down: {text}" for name, text in SLOWED.items() if gpu.get(name)]
        if gpu.get("ecc_uncorrected"):
            why.append(f"GPU {index}: {gpu['ecc_uncorrected']:g} uncorrected memory errors")
    if answer.get("xid_errors"):
        why.append(f"the kernel has logged {answer['xid_errors']} GPU errors (Xid)")
    for pid, name in answer.get("gpu_foreign", {}).items():
        why.append(f"another process was on a GPU: {name} (pid {pid})")
    tcp = answer.get("tcp", {})
    if tcp.get("resent", 0) > max(FEW_ERRORS, RESENT * tcp.get("sent", 0)):
        why.append(f"{tcp['resent']} of {tcp['sent']} TCP segments were sent again")
    for device in answer.get("rdma", {}).values():
        packets = device.get("packets") or device.get("rx", 0) / 4096
        if device.get("errors", 0) > max(FEW_ERRORS, RESENT * packets):
            why.append(f"{device['name']}: {device['errors']} drops or retransmissions")
    ahead = answer.get("clock", {}).get("ahead", [0.0, 0.0])
    if abs(ahead[1] - ahead[0]) > CLOCK_STEP_MS + 2 * answer["clock"]["error"]:
        why.append(f"its clock was set by {ahead[1] - ahead[0]:.0f} ms")
    return why


def proof(
    way: Way, kv_bytes: float, nodes: Mapping[str, Any], circumstances: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str], list[str]]:
    """Whether so many bytes of KV cache went the way that is named: the proof, why the result is not valid,
    why it is doubtful.

    What decode has received is counted: by the loopback where both are on one node, else by every other
    interface.
    """
    named, kind = way.fabric, way.counted_by
    no_proof = f"no proof that the KV cache crossed {named}"
    at = next((name for name in nodes if has(name, circumstances[name], way.decode)), "")
    if not at or nodes[at].get("samples", 0) < 2:
        return {}, [], [f"{no_proof}: {way.decode} was not sampled"]
    answer, here = nodes[at], [has(at, circumstances[at], host) for host in way.prefills]
    if not kv_bytes:
        return {}, [], [f"{no_proof}: the servers count no bytes of KV cache"]
    ways: dict[str, dict[str, Any]] = {
        "net": {
            key: each
            for key, each in answer["net"].items()
            if (any(here) if each["name"] == "lo" else not all(here))
        },
        "rdma": {key: each for key, each in answer["rdma"].items() if "rx" in each},
    }
    received = {kind: sum(each.get("rx", 0) for each in devices.values()) for kind, devices in ways.items()}
    counted = [each for devices in ways.values() for each in devices.values()]
    proof = {
        "fabric": named,
        "kv_bytes": kv_bytes,
        "received": received,
        "by": {each["name"]: each["rx"] for each in counted if each.get("rx")},
    }
    broken = [each["name"] for each in counted if each.get("reset")]
    if kind in ways and not ways[kind]:
        return proof, [], [f"{no_proof}: {way.decode} has no counters of {NAMES[kind]}"]
    most = max(received, key=lambda way: received[way]) if any(received.values()) else ""
    stray = [other for other in received if other != kind and received[other] > STRAY * kv_bytes]
    if kind in received and received[kind] < MOVED * kv_bytes:
        if broken:
            return proof, [], [f"{no_proof}: {', '.join(broken)} was reset meanwhile"]
        went = NAMES[most] if most and received[most] >= MOVED * kv_bytes else NAMES["memory"]
        what = f"{_mb(received[kind])} of {_mb(kv_bytes)} of KV cache crossed {NAMES[kind]}"
        return proof, [f"fabric {named} is named, but only {what}: it went over {went}"], []
    if kind == "memory" and stray:
        what = f"{_mb(received[stray[0]])} crossed {NAMES[stray[0]]}"
        return proof, [f"fabric {named} is named, but {what}"], []
    if stray:
        what = ", ".join(f"{_mb(received[other])} crossed {NAMES[other]}" for other in stray)
        return proof, [], [f"beside the fabric {named}, {what}"]
    return proof, [], []


def has(name: str, node: Mapping[str, Any], host: str) -> bool:
    """Whether a host, as it stands in a URL of the client, is the node of this name (that of a sampler is its
    address and port).
    """
    own, wanted_addresses = {*node.get("addresses", ()), node.get("hostname")}, _addresses(host)
    if host == name.rpartition(":")[0].strip("[]") or not own.isdisjoint(wanted_addresses):
        return True
    return name == CLIENT and any(map(_is_loopback, wanted_addresses))


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False  # a name


@cache
def _addresses(host: str) -> frozenset[str]:
    """A host and its addresses."""
    try:
        return frozenset({host, *(str(info[4][0]) for info in socket.getaddrinfo(host, None))})
    except (OSError, UnicodeError):
        return frozenset({host})


def _shown(name: str) -> str:
    return "the client's node" if name == CLIENT else name


def _mb(count: float) -> str:
    return f"{count / 1e6:.1f} MB"
