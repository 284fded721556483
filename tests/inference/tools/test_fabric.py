"""Which fabric the counters prove."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from taskrunner.inference.circumstances import machine
from taskrunner.inference.tools import fabric

PAYLOAD = 10 << 20
FIGURES = {"rows": [{"size_bytes": 1 << 20, "iterations": 10}]}


@pytest.fixture(autouse=True)
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "RDMA", tmp_path)
    for device, driver in (("rdmap0s6", "efa"), ("mlx5_0", "mlx5_core")):
        (tmp_path / "drivers" / driver).mkdir(parents=True)
        (tmp_path / device / "device").mkdir(parents=True)
        (tmp_path / device / "device" / "driver").symlink_to(tmp_path / "drivers" / driver)


def counted(**moved: int) -> fabric.Counters:
    rdma: dict[str, dict[str, Any]] = {
        name: {"rx": 0, "tx": moved.get(name.partition("/")[0], 0)} for name in ("rdmap0s6/1", "mlx5_0/1")
    }
    net = {
        str(number): {"name": name, "rx": moved.get(name, 0), "tx": 0}
        for number, name in enumerate(("lo", "eth0"), 1)
    }
    return {"rdma": rdma, "net": net}


@pytest.mark.parametrize(
    ("asked", "moved", "proven", "doubt"),
    [
        ("efa", {"rdmap0s6": PAYLOAD}, "efa", ""),
        ("efa", {"rdmap0s6": PAYLOAD, "eth0": PAYLOAD}, "efa", ""),
        (
            "efa",
            {"rdmap0s6": 4096, "eth0": PAYLOAD + 9000},
            "tcp",
            "the bytes went over tcp (rdmap0s6/1: 4,096",
        ),
        ("efa", {"lo": PAYLOAD}, "local", "the bytes went over local"),
        ("efa", {"mlx5_0": PAYLOAD}, "rdma", "the bytes went over rdma"),
        ("efa", {}, None, "no EFA device has counted the 10,485,760 bytes (nothing moved)"),
        ("tcp", {"eth0": PAYLOAD}, "tcp", ""),
        ("tcp", {"rdmap0s6": PAYLOAD}, "efa", "the bytes went over efa"),
        ("tcp", {"eth0": PAYLOAD // 2}, None, ""),
        ("local", {"lo": PAYLOAD * 2}, "local", ""),
        ("local", {}, None, ""),  # shared memory
        ("any", {"eth0": PAYLOAD}, "tcp", ""),
    ],
)
def test_the_counters_tell_the_fabric(
    asked: str, moved: dict[str, int], proven: str | None, doubt: str
) -> None:
    proof = fabric.proof(counted(), counted(**moved), FIGURES, asked)
    assert (proof["asked"], proof["proven"], proof["payload_bytes"]) == (asked, proven, PAYLOAD)
    doubts = fabric.doubts(proof)
    assert len(doubts) == bool(doubt)
    assert doubt in "".join(doubts)


def test_what_else_crosses_an_interface_proves_nothing_of_a_small_measurement() -> None:
    small = {"rows": [{"size_bytes": 64, "iterations": 1000}]}
    proof = fabric.proof(counted(), counted(eth0=500_000), small, "tcp")
    assert proof["proven"] is None
    assert fabric.proof(counted(), counted(rdmap0s6=64_000), small, "efa")["proven"] == "efa"


def test_a_server_on_this_node_is_not_a_measurement_of_a_fabric() -> None:
    assert fabric.asked("efa", "127.0.0.1") == "local"
    assert fabric.asked("efa", "localhost") == "local"
    assert fabric.is_here("192.0.2.7", lambda: ["192.0.2.7"])
    assert fabric.asked("efa", "192.0.2.7") == "efa"
    assert fabric.asked("efa", "no-such-host.invalid") == "efa"


def test_the_payload_is_what_was_received_or_all_messages() -> None:
    assert fabric.payload_of({"rows": [{"size_bytes": 131072, "iterations": 1}], "received_bytes": 5}) == 5
    assert fabric.payload_of({"rows": []}) == 0
    assert (
        fabric.payload_of({"rows": [{"size_bytes": 2, "iterations": 3}, {"size_bytes": 4, "iterations": 5}]})
        == 26
    )
