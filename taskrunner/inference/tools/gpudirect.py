"""Whether network cards can reach the memory of GPUs (GPUDirect RDMA): what this node says about it."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .. import nvidia_smi
from ..circumstances import machine
from . import fabric, node_record
from .process import find, output_of
from .reading import NotAResult
from .registry import parser

PATIENCE_S = 30.0
HAS = re.compile(r"p4de?\.|p5(?:e|en)?\.(?!4xlarge)|p6|g7e\.(?:12|24|48)xlarge|trn")
HAS_NOT = re.compile(r"(?:g4dn|g5|g5g|g6|g6e|gr6|p3dn)\.|p5\.4xlarge|g7e\.8xlarge")
"""EC2 instance types with GPUDirect RDMA over EFA and without (aws-ofi-nccl, table of platforms)."""
GOOD = ("PIX", "PXB")
MODULES = ("nvidia_peermem", "efa_nv_peermem")
DMABUF_KERNEL = (5, 12)
"""The first kernel with dma-buf for RDMA."""
MEANING = {
    "PIX": "at most one PCIe bridge apart",
    "PXB": "several PCIe bridges apart",
    "PHB": "across a host bridge; a virtual machine may show this for all",
    "NODE": "across the host bridges of one NUMA node",
    "SYS": "across NUMA nodes",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """What can be said to it."""
    parser.add_argument(
        "--nccl-log", default="", metavar="FILE", help="a log of NCCL_DEBUG=INFO, which proves it"
    )
    parser.add_argument("--check", action="store_true", help="fail where it is missing and could be there")
    parser.add_argument("-o", "--output", default="", metavar="FILE", help="where the record goes")


def main(args: argparse.Namespace) -> int:
    """Look, judge and record. Its absence is a fact about the node; with --check it may be a failure."""
    inputs = look(args.nccl_log)
    verdict = verdict_of(inputs)
    about = {"gpudirect_status": verdict.status, "gpudirect_reason": verdict.reason, **inputs}
    result = node_record.made("gpudirect", **about)
    node_record.tell(result, lines(result), args.output)
    if not (args.check and verdict.remedy):
        return 0
    print(f"to do: {verdict.remedy}")
    return 1


def look(nccl_log: str = "") -> dict[str, Any]:
    """Everything that speaks for it or against it; None for what cannot be asked here."""
    devices = sorted(path.name for path in machine.RDMA.iterdir()) if machine.RDMA.is_dir() else []
    efa = [name for name in devices if fabric.kind(name) == "efa"]
    topology = _topology()
    return {
        "efa_devices": efa,
        "efa_device_count": len(efa),
        "gpu_count": nvidia_smi.count(patience=PATIENCE_S),
        "hmem": _fi_info("-c", "FI_HMEM"),
        "rdma_read": _verb("rdma_read_bytes", efa),
        "rdma_write": _verb("rdma_write_bytes", efa),
        "peer_memory": _peer_memory(),
        "topology": topology,
        "nccl_gpudirect_channels": _channels(nccl_log),
    }


class Verdict(NamedTuple):
    """enabled (proven), likely_enabled, likely_disabled, disabled or unknown, why, and what to do: "" where
    it is there, or the hardware lacks it.
    """

    status: str
    reason: str
    remedy: str = ""


def verdict_of(inputs: Mapping[str, Any], instance: str | None = None) -> Verdict:
    """What the inputs say of an instance type, by default that of this node."""
    instance = instance or machine.about()["instance_type"] or ""
    if inputs["nccl_gpudirect_channels"]:
        return Verdict("enabled", f"NCCL used it on {inputs['nccl_gpudirect_channels']} channels")
    if HAS_NOT.match(instance):
        return Verdict("disabled", f"{instance} has no GPUDirect RDMA: GPU memory goes through the host's")
    if not inputs["gpu_count"]:
        reason = "there is no NVIDIA GPU, or its driver does not answer"
        return Verdict("disabled", reason, "install the NVIDIA driver, or use a Deep Learning AMI")
    if not inputs["efa_device_count"]:
        remedy = "enable EFA on a network interface of an instance type that has it"
        return Verdict("disabled", "there is no EFA device", remedy)
    hmem, memory = inputs["hmem"], inputs["peer_memory"]
    if hmem is False:
        reason = "libfabric's efa provider does not offer GPU memory (fi_info -c FI_HMEM)"
        return Verdict("disabled", reason, "run a newer EFA installer: its libfabric offers GPU memory")
    if memory == "none":
        reason = "the kernel has neither nvidia_peermem nor dma-buf for the NVIDIA driver"
        remedy = "sudo modprobe nvidia_peermem, or install the driver's open kernel modules (Linux 5.12 on)"
        return Verdict("likely_disabled", reason, remedy)
    if hmem and (HAS.match(instance) or inputs["rdma_read"]):
        best = _best(inputs["topology"])
        far = f"; a card and a GPU are at best {MEANING[best]}" if best and best not in GOOD else ""
        return Verdict("likely_enabled", f"libfabric offers GPU memory over EFA, by {memory}{far}")
    if hmem is None:
        reason = "fi_info, which would tell whether libfabric offers GPU memory, is not installed"
        return Verdict("unknown", reason, "run the EFA installer: it brings fi_info")
    reason = f"libfabric offers GPU memory, but {instance or 'this machine'} may not have RDMA"
    return Verdict("unknown", reason, "measure with NCCL (nccl-benchmark-nodes): its log proves it, or not")


def _best(topology: Mapping[str, Any] | None) -> str:
    """The shortest way between a network card and a GPU."""
    ways = {way for gpus in (topology or {}).get("nic_to_gpu", {}).values() for way in gpus.values()}
    return next((way for way in MEANING if way in ways), "")


def _fi_info(*more: str) -> bool | None:
    """Whether libfabric's efa provider has an endpoint with a capability; None where it cannot be asked."""
    program = find("fi_info")
    if program is None:
        return None
    status = output_of([program, "-p", "efa", "-t", "FI_EP_RDM", *more], PATIENCE_S)[0]
    return status == 0


def _verb(counter: str, devices: list[str]) -> bool | None:
    """Whether the driver of the EFAs counts an operation, which it does where the device has it."""
    if not devices:
        return None
    return all(any(machine.RDMA.glob(f"{name}/ports/*/hw_counters/{counter}")) for name in devices)


def _peer_memory() -> str:
    """How the kernel gives GPU memory to other devices: peermem, dmabuf or none."""
    modules = {line.split(" ", 1)[0] for line in machine.text_of(Path("/proc/modules")).splitlines()}
    if not modules.isdisjoint(MODULES) or any(Path("/sys/module", name).is_dir() for name in MODULES):
        return "peermem"
    numbers = re.match(r"(\d+)\.(\d+)", os.uname().release)
    kernel = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    # The open kernel modules alone export dma-buf.
    license_of = output_of(["modinfo", "-F", "license", "nvidia"], PATIENCE_S)[1]
    return "dmabuf" if "GPL" in license_of and kernel >= DMABUF_KERNEL else "none"


def _topology() -> dict[str, Any] | None:
    """How far each network card is from each GPU, by the driver; None where it does not say."""
    status, output, _ = output_of(["nvidia-smi", "topo", "-m"], PATIENCE_S)
    if status != 0:
        return None
    try:
        matrix = parser("nvidia-smi")(output)
    except NotAResult:
        return None
    ways = {
        matrix["nics"].get(name, name): {gpu: way for gpu, way in links.items() if gpu.startswith("GPU")}
        for name, links in matrix["links"].items()
        if name.startswith("NIC")
    }
    return {"nic_to_gpu": ways, "links": matrix["links"]}


def _channels(path: str) -> int | None:
    if not path:
        return None
    try:
        return int(parser("nccl-log")(machine.text_of(Path(path).expanduser()))["gpudirect_channels"])
    except NotAResult as error:
        print(f"{path} proves nothing: {error}")
        return None


SHOWN: Mapping[str, tuple[str, Callable[[Any], object]]] = {
    "efa_devices": ("EFA devices", lambda names: ", ".join(names) or "none"),
    "gpu_count": ("GPUs", str),
    "hmem": ("libfabric offers GPU memory", lambda value: value),
    "rdma_read": ("device has RDMA read", lambda value: value),
    "rdma_write": ("device has RDMA write", lambda value: value),
    "peer_memory": ("kernel", lambda value: value),
}
WORDS: Mapping[object, str] = {True: "yes", False: "no", None: "not known"}


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The record for people."""
    yield f"GPUDirect RDMA: {result['gpudirect_status'].replace('_', ' ')}: {result['gpudirect_reason']}"
    for name, (title, shown) in SHOWN.items():
        value = shown(result[name])
        yield f"  {title}: {WORDS.get(value, value)}"
    for nic, gpus in ((result["topology"] or {}).get("nic_to_gpu", {})).items():
        yield f"  {nic}: " + ", ".join(f"{gpu} {way}" for gpu, way in gpus.items())
