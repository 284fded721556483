"""What one layer reaches of what another one can do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from taskrunner.analysis import text
from taskrunner.analysis.analysis import analysis
from taskrunner.analysis.layers import layers
from taskrunner.analysis.load import Sweep, load
from tests.analysis import made


def tool(name: str, *rows: tuple[int, float], proven: str = "efa", **more: Any) -> dict[str, Any]:
    """A valid record of a tool: bandwidths by size."""
    return {
        "kind": "low-level",
        "tool": name,
        "valid": True,
        "fabric": {"proven": proven},
        "rows": [{"size_bytes": size, "bandwidth_gbps": gbps} for size, gbps in rows],
        "summary": {"bandwidth_gbps": rows[-1][1] if rows else None},
        **more,
    }


def compared(*tools: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in layers(Sweep("", "", {}, [], [], tools), [], [])}


def test_the_same_sizes_are_compared() -> None:
    found = compared(
        tool("nixlbench", (1000, 40.0), (2000, 90.0), backend="LIBFABRIC"),
        tool("nixlbench", (1000, 10.0), (2000, 30.0), (4000, 1.0), backend="UCX"),
        tool("nixlbench", (1000, 1.0), backend="UCX", scheme="manytoone"),
        tool("ucx_perftest", (1000, 12.0), memory="cuda"),
        tool("ucx_perftest", (1000, 24.0), memory="host"),
        tool("ucx_perftest", (1000, 1.0), memory="host", proven="tcp"),
    )
    assert found["CMP-07"]["values"] == [4.0, 3.0]
    assert found["CMP-07"]["ratio"] == pytest.approx(12**0.5)
    assert found["CMP-07"]["as_expected"] is True
    assert found["CMP-09"]["values"] == [0.5]
    assert found["CMP-09"]["as_expected"] is None
    assert found.keys() == {"CMP-07", "CMP-09"}


def test_what_is_not_valid_or_no_number_is_left_out() -> None:
    slow = tool("nixlbench", (1000, 10.0), backend="UCX")
    for bad in (
        tool("nixlbench", (1000, 40.0), backend="LIBFABRIC", valid=False),
        tool("nixlbench", (1000, float("nan")), backend="LIBFABRIC"),
        tool("nixlbench", (1000, 10**400), backend="LIBFABRIC"),
        {**tool("nixlbench", backend="LIBFABRIC"), "rows": "none"},
        {**tool("nixlbench", backend="LIBFABRIC"), "rows": [None, {"bandwidth_gbps": "40"}]},
        {**tool("kvbench-shape"), "kv_cache": {"ratio_to_line_rate": 0}},
    ):
        assert compared(slow, bad) == {}


def test_a_kv_cache_takes_longer_than_the_line_rate_says() -> None:
    found = compared({**tool("kvbench-shape"), "kv_cache": {"ratio_to_line_rate": 0.1}})["CMP-10"]
    assert found["ratio"] == pytest.approx(10)
    assert text.layer(found).endswith(": 10.00 (expected 2 to 5; this is outside)")


def test_the_time_of_a_transfer_is_a_share_of_what_disaggregation_adds(tmp_path: Path) -> None:
    place = made.sweep(
        tmp_path, cv=0.001, restart=0.0, ttft=lambda one: 1.5 if one.mode == "disaggregated" else 1.0
    )
    (place / "tool.json").write_text(json.dumps(tool("nixlbench", (1000, 80.0), backend="LIBFABRIC")))
    document = analysis(load(place))
    rows = {row["id"]: row for row in document["layers"]}
    per_token = made.BYTES_PER_TOKEN
    added = 0.5 * (made.TTFT_MS / 12_288 + made.PER_TOKEN_MS)  # milliseconds a token, at 12,288
    assert min(rows["CMP-08"]["values"]) <= per_token * 8 / 80 / 1e6 / added <= max(rows["CMP-08"]["values"])
    assert rows["CMP-05"]["ratio"] > 0
    assert any(line.startswith("CMP-08: nixlbench over efa / ") for line in text.lines(document))


def test_the_gpus_share_of_tpot_by_streams() -> None:
    parts = [
        {"concurrency": 16, "compute_share": 0.7},
        {"concurrency": 1, "compute_share": 1.0},
        {"concurrency": 16, "compute_share": 0.5},
    ]
    rows = layers(Sweep("", "", {}, [], []), [], parts)
    assert [(row["title"].split(" at ")[1], row["values"]) for row in rows] == [
        ("1 stream", [1.0]),
        ("16 streams", [0.7, 0.5]),
    ]
    assert text.layer(rows[1]).endswith("0.59 (0.50 to 0.70 in 2; expected 0.69 to 1; this is outside)")
