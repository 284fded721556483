"""The baseline of a network: both sides by the packs, and what is made of their figures."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from taskrunner.inference.tools import baseline
from tests.helpers import command, completed
from tests.sshd import free_port


def both_sides(shared: list[str]) -> tuple[subprocess.CompletedProcess[str], int, str]:
    """What the client said; how the server ended, and its output."""
    with subprocess.Popen(
        command("measure-baseline-bandwidth-server", *shared),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as server:
        client = completed(
            command("measure-baseline-bandwidth-client", *shared, "--env=SECONDS=1", "--env=OMIT=0", "-v")
        )
        output = server.communicate(timeout=60)[0]
    return client, server.returncode, output


def test_both_sides_by_the_packs() -> None:
    shared = [
        f"--env=PORT={free_port()}",
        "--env=STREAMS=1 2",
        "--env=EFA_TOOL=fi_pingpong",
        "--env=PROVIDER=tcp",
        "--env=EFA_SIZE=1M",
    ]
    client, server, output = both_sides(shared)
    assert (client.returncode, server) == (0, 0), client.stdout + output
    result = json.loads(Path("results/baseline-bandwidth.json").read_text())
    assert result["measurement_type"] == "baseline_bandwidth"
    assert (result["valid"], list(result["tcp_by_streams"])) == (True, ["1", "2"])
    assert result["tcp_bandwidth_gbps"] == max(result["tcp_by_streams"].values()) > 0
    # It was measured, but not over EFA.
    assert (result["efa_bandwidth_gbps"], result["bandwidth_ratio"]) == (None, None)
    assert result["runs"][-1]["summary"]["bandwidth_gbps"] > 0
    assert "EFA: none, as fi_pingpong used local" in client.stdout


def test_a_tool_of_efa_that_is_missing_leaves_the_figures_of_tcp() -> None:
    shared = [f"--env=PORT={free_port()}", "--env=STREAMS=1", "--env=TIMEOUT=20"]
    client, server, output = both_sides(shared)
    assert (client.returncode, server) == (0, 0), client.stdout + output
    assert "EFA: none, as fi_rdm_bw is not installed" in client.stdout


def tcp(streams: int, gbps: float, version: str = "3.16") -> dict[str, Any]:
    return {
        "tool": "iperf3",
        "tool_version": version,
        "streams": streams,
        "summary": {"bandwidth_gbps": gbps},
        "valid": True,
        "doubts": [],
    }


def efa(gbps: float, proven: str | None = "efa", tool: str = "fi_rdm_bw") -> dict[str, Any]:
    fabric = {"asked": "efa", "proven": proven}
    return {"tool": tool, "summary": {"bandwidth_gbps": gbps}, "valid": True, "doubts": [], "fabric": fabric}


def judged(instance: str, *runs: dict[str, Any], over: dict[str, Any] | None) -> dict[str, Any]:
    result = {**baseline.summary(runs, over), "instance_type": instance}
    result["runs"] = [*runs, *([over] if over else [])]
    return {**result, **baseline.notes(result)}


def test_the_ratio_is_that_of_efa_to_the_best_of_tcp() -> None:
    result = judged("g6e.12xlarge", tcp(1, 9.4), tcp(8, 25.0), over=efa(90.0))
    assert (result["tcp_bandwidth_gbps"], result["efa_bandwidth_gbps"]) == (25.0, 90.0)
    assert result["bandwidth_ratio"] == pytest.approx(3.6)
    assert result["expected"]["efa_bandwidth_gbps"] == [80, 100]
    assert result["notes"] == []


@pytest.mark.parametrize(
    ("runs", "over", "note"),
    [
        ([tcp(8, 12.0)], efa(90.0), "TCP: 12.0 is below the 20 to 30 that are expected of g6e.12xlarge"),
        ([tcp(8, 25.0)], efa(52.0), "EFA: 52.0 is below the 80 to 100"),
        ([tcp(1, 4.9), tcp(8, 25.0)], efa(90.0), "outside a cluster placement group EC2 limits it to 5"),
        ([tcp(8, 25.0, "3.12")], efa(90.0), "iperf3 3.12 serves all streams with one core"),
        ([tcp(8, 25.0)], efa(90.0, tool="fi_pingpong"), "fi_pingpong has one message in flight"),
    ],
)
def test_what_differs_from_expectation_is_a_note_and_no_verdict(
    runs: list[dict[str, Any]], over: dict[str, Any], note: str
) -> None:
    result = judged("g6e.12xlarge", *runs, over=over)
    assert note in "\n".join(result["notes"])
    assert result["valid"]


def test_bytes_that_no_efa_has_counted_are_none_of_efa() -> None:
    result = judged("p5.48xlarge", tcp(8, 25.0), over=efa(90.0, proven=None))
    assert (result["efa_bandwidth_gbps"], result["efa_reason"]) == (None, "fi_rdm_bw used efa, unproven")


def test_one_failed_run_of_tcp_makes_the_whole_doubtful() -> None:
    failed = {**tcp(4, 1.0), "valid": False, "doubts": ["iperf3 ended with status 1"]}
    result = judged("unknown", tcp(1, 9.0), failed, over=None)
    assert (result["valid"], result["doubts"]) == (False, ["iperf3 ended with status 1"])
    assert (result["expected"], result["efa_reason"]) == (None, "it was not asked for")
