"""What a node says of GPUDirect and of its GPUs. nvidia-smi is one that prints what the real one has printed."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest

from taskrunner import run
from taskrunner.inference.circumstances import machine
from taskrunner.inference.tools import gpudirect
from taskrunner.inference.tools.gpudirect import verdict_of
from taskrunner.inference.tools.registry import parser

SAMPLES = Path(__file__).parent / "samples"
TOPOLOGY = """\t\x1b[4mGPU0\tGPU1\tNIC0\tNIC1\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tNV18\tPIX\tSYS\t0-47\t0\t\tN/A
GPU1\tNV18\t X \tSYS\tPHB\t48-95\t1\t\tN/A
NIC0\tPIX\tSYS\t X \tSYS\t\t\t\t
NIC1\tSYS\tPHB\tSYS\t X \t\t\t\t

Legend:

  X    = Self
  PIX  = Connection traversing at most a single PCIe bridge

NIC Legend:

  NIC0: rdmap49s0
  NIC1: rdmap50s0
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs before all others: nvidia-smi with two H100, fi_info with EFA and GPU memory."""
    folder = tmp_path / "tools"
    folder.mkdir()
    (folder / "topology").write_text(TOPOLOGY)
    answers = {
        "--query-gpu=index": SAMPLES / "nvidia_smi_query_nounits.txt",
        "topo": folder / "topology",
        "dmon": SAMPLES / "nvidia_smi_dmon.txt",
        "--query-gpu=*": SAMPLES / "nvidia_smi_query_csv.txt",
    }
    cases = "".join(f"{word}) cat {shlex.quote(str(path))};; " for word, path in answers.items())
    for name, script in (
        ("nvidia-smi", f'case "$1" in {cases}*) exit 255;; esac'),
        ("fi_info", "exit 0"),
        ("modinfo", "echo Dual MIT/GPL"),
    ):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.fixture
def efa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    devices = tmp_path / "infiniband"
    (tmp_path / "drivers" / "efa").mkdir(parents=True)
    for name in ("rdmap49s0", "rdmap50s0"):
        counters = devices / name / "ports" / "1" / "hw_counters"
        counters.mkdir(parents=True)
        (counters / "rdma_read_bytes").write_text("0\n")
        (devices / name / "device").mkdir()
        (devices / name / "device" / "driver").symlink_to(tmp_path / "drivers" / "efa")
    monkeypatch.setattr(machine, "RDMA", devices)
    return devices


def test_everything_that_speaks_for_it_is_found(tools: Path, efa: Path) -> None:
    inputs = gpudirect.look(str(SAMPLES / "nccl_log_socket.txt"))
    assert inputs["efa_devices"] == ["rdmap49s0", "rdmap50s0"]
    assert (inputs["gpu_count"], inputs["hmem"]) == (2, True)
    assert (inputs["rdma_read"], inputs["rdma_write"]) == (True, False)
    assert inputs["peer_memory"] == "dmabuf"
    assert inputs["topology"]["nic_to_gpu"]["rdmap49s0"] == {"GPU0": "PIX", "GPU1": "SYS"}
    assert inputs["nccl_gpudirect_channels"] == 0
    assert verdict_of(inputs, "p5.48xlarge")[:2] == (
        "likely_enabled",
        "libfabric offers GPU memory over EFA, by dmabuf",
    )


GOOD: dict[str, Any] = {
    "efa_device_count": 4,
    "gpu_count": 8,
    "hmem": True,
    "rdma_read": True,
    "rdma_write": True,
    "peer_memory": "peermem",
    "topology": {"nic_to_gpu": {"a": {"GPU0": "PXB"}}},
    "nccl_gpudirect_channels": None,
}


@pytest.mark.parametrize(
    ("instance", "changed", "status", "why"),
    [
        ("p5.48xlarge", {}, "likely_enabled", "by peermem"),
        ("p5.48xlarge", {"nccl_gpudirect_channels": 8}, "enabled", "on 8 channels"),
        ("p5.48xlarge", {"hmem": False}, "disabled", "does not offer GPU memory"),
        ("p5.48xlarge", {"peer_memory": "none"}, "likely_disabled", "neither nvidia_peermem nor dma-buf"),
        ("p5.48xlarge", {"efa_device_count": 0}, "disabled", "no EFA device"),
        ("p5.48xlarge", {"gpu_count": 0}, "disabled", "no NVIDIA GPU"),
        ("p5.48xlarge", {"hmem": None}, "unknown", "fi_info"),
        (
            "p5.48xlarge",
            {"topology": {"nic_to_gpu": {"a": {"GPU0": "SYS"}}}},
            "likely_enabled",
            "across NUMA nodes",
        ),
        ("p5.48xlarge", {"topology": None}, "likely_enabled", "by peermem"),
        ("g6e.12xlarge", {}, "disabled", "g6e.12xlarge has no GPUDirect RDMA"),
        ("g7e.8xlarge", {}, "disabled", "g7e.8xlarge has no GPUDirect RDMA"),
        ("g7e.48xlarge", {"rdma_read": None}, "likely_enabled", "by peermem"),
        ("p5.4xlarge", {}, "disabled", "p5.4xlarge has no GPUDirect RDMA"),
        ("p9.new", {}, "likely_enabled", "by peermem"),
        ("p9.new", {"rdma_read": False}, "unknown", "p9.new may not have RDMA"),
    ],
)
def test_the_verdict_names_its_reason(instance: str, changed: dict[str, Any], status: str, why: str) -> None:
    verdict, reason, _ = verdict_of({**GOOD, **changed}, instance)
    assert (verdict, why in reason) == (status, True), reason


@pytest.mark.parametrize(
    ("changed", "hint"),
    [
        ({"gpu_count": 0}, "NVIDIA driver"),
        ({"efa_device_count": 0}, "enable EFA"),
        ({"hmem": None}, "EFA installer"),
        ({"hmem": False}, "newer EFA installer"),
        ({"peer_memory": "none"}, "modprobe nvidia_peermem"),
        ({"rdma_read": False}, "measure with NCCL"),
    ],
)
def test_what_is_missing_has_a_remedy_unless_the_hardware_lacks_it(
    changed: dict[str, Any], hint: str
) -> None:
    assert hint in verdict_of({**GOOD, **changed}, "p9.new").remedy
    assert verdict_of({**GOOD, **changed}, "g5.12xlarge").remedy == ""


def test_the_pack_records_and_shows_it() -> None:
    result = run("check-gpudirect")
    assert result.status == "ok"
    record = json.loads(Path("results/gpudirect.json").read_text())
    assert (record["gpudirect_status"], record["gpu_count"], record["efa_device_count"]) == ("disabled", 0, 0)
    assert "no NVIDIA GPU" in record["gpudirect_reason"]


def test_the_gpus_of_a_node(tools: Path) -> None:
    assert run("nvidia-smi", env={"SECONDS": 3}).status == "ok"
    record = json.loads(Path("results/gpus.json").read_text())
    assert [gpu["memory_total_mib"] for gpu in record["gpus"]] == [81559, 81559]
    assert record["topology"]["links"]["GPU0"]["NIC1"] == "SYS"
    assert record["topology"]["nics"] == {"NIC0": "rdmap49s0", "NIC1": "rdmap50s0"}
    assert record["dmon"]["0"]["pwr"]["mean"] > 0
    # Cut off, it is no record.
    (tools / "topology").write_text(TOPOLOGY[:80])
    Path("results/gpus.json").unlink()
    assert run("nvidia-smi").status == "failed"
    assert not Path("results/gpus.json").exists()


def test_a_topology_with_network_cards_is_read() -> None:
    matrix = parser("nvidia-smi")(TOPOLOGY)
    assert matrix["nics"] == {"NIC0": "rdmap49s0", "NIC1": "rdmap50s0"}
