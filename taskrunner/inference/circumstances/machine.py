"""Counters of a machine: processors, pressure, networks. What is not there is left out."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from .processes import TICKS

NET, RDMA = Path("/sys/class/net"), Path("/sys/class/infiniband")
RDMA_BYTES = {
    "rx": (("rdma_read_bytes", "rdma_write_recv_bytes", "recv_bytes"), "rx_bytes", "port_rcv_data"),
    "tx": (("rdma_read_resp_bytes", "rdma_write_bytes", "send_bytes"), "tx_bytes", "port_xmit_data"),
}
"""Each way: what an EFA counts by the kind of its operations, all of it where it does not count by kind, and
the counter of InfiniBand and RoCE."""
ERRORS = (
    "rx_drops",
    "retrans_pkts",
    "retrans_timeout_events",
    "impaired_remote_conn_events",
    "unresponsive_remote_events",
    "out_of_sequence",
    "packet_seq_err",
    "local_ack_timeout_err",
)
"""Of EFA and of mlx5."""
IB_WORDS = 4
"""Bytes of a unit of port_rcv_data: InfiniBand Architecture Specification, PortCounters."""


def processors() -> dict[str, float]:
    """Seconds since boot that processors were busy with processes, and that a hypervisor took."""
    fields = text_of(Path("/proc/stat")).partition("\n")[0].split()
    if len(fields) < 9:
        return {}
    user, nice, system, _, _, _, _, steal = (int(field) / TICKS for field in fields[1:9])
    return {"busy": user + nice + system, "steal": steal}


def pressure() -> dict[str, float]:
    """Seconds since boot in which some process waited for a processor, and all of them for memory."""
    averages = {}
    for name, kind, what in (("wait_cpu", "some", "cpu"), ("wait_memory", "full", "memory")):
        for line in text_of(Path(f"/proc/pressure/{what}")).splitlines():
            if line.startswith(kind):
                averages[name] = int(line.rpartition("total=")[2]) / 1e6
    return averages


def tcp() -> dict[str, int]:
    """TCP segments sent and sent again (RFC 4022)."""
    lines = [line.split() for line in text_of(Path("/proc/net/snmp")).splitlines() if line.startswith("Tcp:")]
    if len(lines) != 2:
        return {}
    table = dict(zip(*lines))
    return {
        name: int(table[of]) for name, of in (("sent", "OutSegs"), ("resent", "RetransSegs")) if of in table
    }


def interfaces() -> dict[str, dict[str, Any]]:
    """Bytes of each network interface, by its index: a name may change."""
    counters = {}
    for folder in NET.iterdir() if NET.is_dir() else ():
        try:
            counters[text_of(folder / "ifindex").strip()] = {
                "name": folder.name,
                **{way: int(text_of(folder / "statistics" / f"{way}_bytes")) for way in ("rx", "tx")},
            }
        except ValueError:
            continue  # gone while it was read
    return counters


def rdma() -> dict[str, dict[str, int]]:
    """Bytes received and sent, and errors, of each RDMA device and port."""
    counters = {}
    for port in sorted(RDMA.glob("*/ports/*")) if RDMA.is_dir() else ():
        named = f"{port.parent.parent.name}/{port.name}"
        hardware = port / "hw_counters"
        counted = {"errors": sum(_number(hardware / name) for name in ERRORS)}
        packets = sum(_number(hardware / name) for name in ("rx_pkts", "tx_pkts"))
        if packets:
            counted["packets"] = packets
        for way, (kinds, total, infiniband) in RDMA_BYTES.items():
            names = [name for name in kinds if (hardware / name).exists()]
            if names:
                counted[way] = sum(_number(hardware / name) for name in names)
            elif (hardware / total).exists():
                counted[way] = _number(hardware / total)
            elif (port / "counters" / infiniband).exists():
                counted[way] = _number(port / "counters" / infiniband) * IB_WORDS
        counters[named] = counted
    return counters


def about() -> dict[str, Any]:
    """What kind of machine it is."""
    cpus = [line for line in text_of(Path("/proc/cpuinfo")).splitlines() if line.startswith("model name")]
    memory = text_of(Path("/proc/meminfo")).partition("\n")[0].split()
    return {
        "hostname": os.uname().nodename,
        "kernel": os.uname().release,
        "cores": os.cpu_count(),
        "cpu": cpus[0].partition(":")[2].strip() if cpus else "",
        "memory_gib": round(int(memory[1]) / 1048576, 1) if len(memory) > 1 else 0,
        "addresses": addresses(),
        "instance_type": text_of(Path("/sys/devices/virtual/dmi/id/product_name")).strip(),
    }


def addresses() -> list[str]:
    """The addresses of this machine, without those of the loopback."""
    texts: set[str] = set()
    lines = text_of(Path("/proc/net/fib_trie")).splitlines()
    for line, following in zip(lines, lines[1:]):
        if "|--" in line and "host LOCAL" in following:
            texts.add(line.rpartition(" ")[2])
    for line in text_of(Path("/proc/net/if_inet6")).splitlines():
        texts.add(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(line.split()[0])))
    return sorted(address for address in texts if not address.startswith("127.") and address != "::1")


def xid_errors() -> int | None:
    """How many errors of GPUs the kernel has logged since it started; None where its log cannot be read."""
    count = 0
    try:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        while data := os.read(fd, 8192):
            count += b"NVRM: Xid" in data
    except BlockingIOError:
        pass  # the end
    except OSError:
        return None
    finally:
        os.close(fd)
    return count


def _number(path: Path) -> int:
    text = text_of(path).strip()
    return int(text) if text.isdigit() else 0


def text_of(path: Path) -> str:
    """The text of a file; "" where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
