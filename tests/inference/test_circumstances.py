"""What a node did during a measurement, and what that means for the result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskrunner.inference.circumstances import collect, gpu, judge, machine, processes, sampler, servers
from taskrunner.inference.circumstances.collect import Samplers
from tests.helpers import command, completed, wait_for
from tests.inference.conftest import Told, get

Start = Callable[..., Told]
BURN = "import time\nwhile True: pass"


def process(used: float, parent: int = 1, start: int = 5, session: int = 0) -> processes.Process:
    return processes.Process(start, parent, session, "p", used)


def test_what_a_process_used_is_counted_once() -> None:
    """Also when it ends, and its time becomes its parent's."""
    before = {10: process(5.0), 11: process(100.0, parent=10)}
    after = {10: process(107.0), 12: process(3.0, parent=10)}
    assert processes.spent(before, after) == {10: pytest.approx(2.0), 12: 3.0}
    assert processes.spent({10: process(5.0)}, {10: process(1.0, start=6)}) == {10: 1.0}  # another one


def test_a_family_has_what_it_started_and_its_session() -> None:
    known = {
        5: process(0, session=5),
        6: process(0, parent=5),
        7: process(0, parent=6),
        8: process(0, session=5),
        9: process(0),
        10: process(0, session=77),
    }
    assert processes.family(known, [5]) == {5, 6, 7, 8}
    assert processes.family(known, [10]) == {10}
    assert processes.ancestors(known, 7) == {7, 6, 5}


def test_the_owner_of_a_port_is_found(truth: Start) -> None:
    server = truth()
    port = int(server.url.rpartition(":")[2])
    assert processes.listeners({port}) == {port: server.process.pid}


def test_counters_that_are_set_back_or_vanish_say_so() -> None:
    found = sampler.grown(
        [
            {"1": {"name": "lo", "rx": 10}, "2": {"name": "eth0", "rx": 500}, "3": {"name": "old", "rx": 1}},
            {"1": {"name": "lo", "rx": 30}, "2": {"name": "eth0", "rx": 4}, "4": {"name": "new", "rx": 9}},
            {
                "1": {"name": "renamed", "rx": 40},
                "2": {"name": "eth0", "rx": 10},
                "4": {"name": "new", "rx": 10},
            },
        ]
    )
    assert found["1"] == {"name": "renamed", "rx": 30}
    assert found["2"] == {"name": "eth0", "rx": 6, "reset": True}
    assert found["3"]["reset"]
    assert found["4"] == {"name": "new", "rx": 1, "reset": True}


def test_counters_of_an_efa_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kinds of bytes that it has; what some driver does not have is not missed."""
    monkeypatch.setattr(machine, "RDMA", tmp_path)
    for device, kinds in (
        ("efa0", {"rdma_read_bytes": 7, "recv_bytes": 2, "rdma_write_bytes": 4, "rx_drops": 1}),
        ("efa1", {"rx_bytes": 5, "tx_bytes": 6}),
    ):
        folder = tmp_path / device / "ports" / "1" / "hw_counters"
        folder.mkdir(parents=True)
        for name, value in kinds.items():
            (folder / name).write_text(f"{value}\n")
    (tmp_path / "mlx5_0" / "ports" / "1" / "counters").mkdir(parents=True)
    (tmp_path / "mlx5_0" / "ports" / "1" / "counters" / "port_rcv_data").write_text("10")
    assert machine.rdma() == {
        "efa0/1": {"rx": 9, "tx": 4, "errors": 1},
        "efa1/1": {"rx": 5, "tx": 6, "errors": 0},
        "mlx5_0/1": {"rx": 40, "errors": 0},
    }


def nodes(lo: int = 0, eth0: int = 0, efa: int | None = None, **more: Any) -> dict[str, Any]:
    net = {"1": {"name": "lo", "rx": lo}, "2": {"name": "eth0", "rx": eth0}}
    rdma = {} if efa is None else {"efa0/1": {"name": "efa0/1", "rx": efa, "errors": 0}}
    return {"d": {"samples": 9, "net": net, "rdma": rdma, **more}}


ABOUT = {"d": {"addresses": ["10.0.0.2"]}}
HERE = {"d": {"addresses": ["10.0.0.2", "10.0.0.1"]}}


@pytest.mark.parametrize(
    ("named", "kind", "counted", "about", "invalid", "doubtful"),
    [
        ("efa", "rdma", nodes(efa=1_010_000, eth0=20_000), ABOUT, "", ""),
        ("efa", "rdma", nodes(efa=1000, eth0=1_020_000), ABOUT, "it went over TCP", ""),
        ("efa", "rdma", nodes(efa=1_010_000, eth0=900_000), ABOUT, "", "beside the fabric efa"),
        ("efa", "rdma", nodes(eth0=20_000), ABOUT, "", "no counters of RDMA"),
        ("tcp", "net", nodes(eth0=1_016_000, lo=5), ABOUT, "", ""),
        ("tcp", "net", nodes(eth0=3000, lo=9_000_000), ABOUT, "it went over the machine's memory", ""),
        ("tcp", "net", nodes(lo=1_016_000), HERE, "", ""),
        ("tcp", "net", nodes(lo=30_000), HERE, "it went over the machine's memory", ""),
        ("tcp", "net", nodes(eth0=3000, efa=1_020_000), ABOUT, "it went over RDMA", ""),
        ("cuda_ipc", "memory", nodes(lo=30_000), HERE, "", ""),
        ("cuda_ipc", "memory", nodes(lo=1_020_000), HERE, "1.0 MB crossed TCP", ""),
        ("tcp", "net", {}, ABOUT, "", "10.0.0.2 was not sampled"),
    ],
)
def test_the_way_of_the_kv_cache_is_proved(
    named: str, kind: str, counted: dict[str, Any], about: dict[str, Any], invalid: str, doubtful: str
) -> None:
    way = judge.Way(named, kind, ["10.0.0.1"], "10.0.0.2")
    _, wrong, doubts = judge.proof(way, 1_000_000, counted, about)
    for said, wanted in ((wrong, invalid), (doubts, doubtful)):
        assert bool(said) is bool(wanted), said
        assert all(wanted in reason for reason in said)


def test_prefill_servers_here_and_elsewhere_are_counted_together() -> None:
    way = judge.Way("tcp", "net", ["10.0.0.2", "10.0.0.1"], "10.0.0.2")
    proof, wrong, doubts = judge.proof(way, 1_000_000, nodes(lo=500_000, eth0=510_000), ABOUT)
    assert (proof["received"]["net"], wrong, doubts) == (1_010_000, [], [])


def test_servers_that_count_no_bytes_prove_nothing() -> None:
    _, wrong, doubts = judge.proof(
        judge.Way("efa", "rdma", ["10.0.0.1"], "10.0.0.2"), 0.0, nodes(efa=5), ABOUT
    )
    assert (wrong, "count no bytes" in doubts[0]) == ([], True)


def test_a_node_is_known_by_its_addresses_its_name_and_the_url_of_its_sampler() -> None:
    node = {"addresses": ["10.0.0.2"], "hostname": "two"}
    assert judge.has("10.1.1.1:8390", node, "10.1.1.1")
    assert judge.has("n", node, "10.0.0.2")
    assert judge.has("n", node, "two")
    assert not judge.has("n", node, "10.0.0.3")
    assert judge.has(judge.CLIENT, node, "localhost")
    assert not judge.has("n", node, "127.0.0.1")


def test_no_proof_from_a_counter_that_was_set_back() -> None:
    counted = nodes(eth0=3000)
    counted["d"]["net"]["2"]["reset"] = True
    _, wrong, doubts = judge.proof(judge.Way("tcp", "net", ["10.0.0.1"], "10.0.0.2"), 1e6, counted, ABOUT)
    assert (wrong, "eth0 was reset" in doubts[0]) == ([], True)


QUIET = {
    "samples": 9,
    "foreign_cores": 0.01,
    "foreign_by": {},
    "busy_cores": 1.0,
    "ours_cores": 0.9,
    "clock": {"ahead": [0, 0], "error": 0},
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"foreign_cores": 0.3, "foreign_by": {"stress (pid 7)": 0.3}}, "stress (pid 7) 0.30"),
        ({"steal_cores": 0.2}, "the hypervisor took 0.20"),
        ({"gpu": [{"hw_thermal": 0.1}]}, "GPU 0 was slowed down: it was too hot"),
        ({"gpu": [{"power_brake": 1.0}]}, "its power brake was on"),
        ({"gpu": [{"ecc_uncorrected": 1.0}]}, "uncorrected memory errors"),
        ({"xid_errors": 1}, "Xid"),
        ({"busy_cores": 9.0, "ours_cores": 1.0}, "of another container"),
        ({"foreign_cores": 1.0, "unseen_ports": [8200]}, "the server on port 8200 cannot be seen"),
        ({"rdma": {"e": {"name": "efa0", "errors": 3, "rx": 10**9}}}, ""),
        ({"rdma": {"e": {"name": "efa0", "errors": 9000, "packets": 10**6}}}, "efa0: 9000 drops"),
        ({"gpu_foreign": {"9": "python"}}, "another process was on a GPU: python (pid 9)"),
        ({"tcp": {"sent": 10_000, "resent": 200}}, "200 of 10000 TCP segments"),
        ({"clock": {"ahead": [0.0, 500.0], "error": 1.0}}, "its clock was set by 500 ms"),
        ({"samples": 1}, "was not sampled"),
    ],
)
def test_each_disturbance_is_told(change: dict[str, Any], said: str) -> None:
    why = judge.doubts({"n": {**QUIET, **change}}, {"n": {"cores": 2}}, {})
    assert bool(why) is bool(said)
    assert all(said in reason for reason in why)


def test_values_of_nvidia_smi() -> None:
    told = [gpu.value(text) for text in ("1980", "Active", "Not Active", "[N/A]", "[Unknown Error]", "71.55")]
    assert told == [1980.0, 1.0, 0.0, None, None, 71.55]


def test_a_server_is_described_without_its_secrets(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    argv = [
        sys.executable,
        "-c",
        "import time; time.sleep(60)",
        "--model",
        "m",
        "--max-num-batched-tokens",
        "4096",
        "--api-key",
        "sesame",
        "--hf-token=tok",
    ]
    env = {**os.environ, "VLLM_API_KEY": "sesame", "UCX_TLS": "tcp,self", "HF_TOKEN": "tok", "OTHER": "x"}
    server = subprocess.Popen(argv, env=env, cwd=tmp_path)
    try:
        wait_for(lambda: b"time.sleep" in Path(f"/proc/{server.pid}/cmdline").read_bytes())
        found = servers.look(server.pid)
    finally:
        server.kill()
        server.wait()
    assert found["argv"][-5:] == ["--max-num-batched-tokens", "4096", "--api-key", "***", "--hf-token=***"]
    assert found["env"]["UCX_TLS"] == "tcp,self"
    assert "sesame" not in json.dumps(found)
    assert "tok" not in (found["env"]["HF_TOKEN"], found["env"]["VLLM_API_KEY"])
    assert "OTHER" not in found["env"]
    assert found["versions"].keys() <= set(servers.PACKAGES)
    assert len(found["model"]["content"]) == 16


def test_secrets_are_known_however_they_are_written() -> None:
    words = ["vllm", "--api_key", "A", "B", "--hf_token=T", "--served-model-name", "m", "--x=http://u:p@h/y"]
    assert servers.masked(words) == [
        "vllm",
        "--api_key",
        "***",
        "***",
        "--hf_token=***",
        "--served-model-name",
        "m",
        "--x=http://***@h/y",
    ]
    assert not servers.SECRET.search("TOKENIZERS_PARALLELISM")
    assert servers.SECRET.search("HF_TOKEN")


def bench(url: str, out: Path, *more: object) -> dict[str, Any]:
    words = (
        "bench",
        url,
        "--unified",
        url,
        "--prompt-tokens",
        20,
        "--output-tokens",
        30,
        "--requests",
        40,
        "--warmup",
        2,
        "--max-lag",
        1,
        "-o",
        out,
        *more,
    )
    done = completed(command(*words), timeout=120)
    found: dict[str, Any] = json.loads(out.read_text())
    assert done.returncode == 0, done.stderr
    for reason in found["results"]["doubtful_because"]:
        assert f"doubtful: {reason}" in done.stdout
    return found


@pytest.mark.slow
@pytest.mark.alone
def test_foreign_load_is_told_by_name(truth: Start, tmp_path: Path) -> None:
    """And what the measurement needs itself is none: its server, its client, its sampler."""
    server = truth("--ttft", 20, "--gap", 5)
    url = server.url
    quiet = bench(url, tmp_path / "quiet.json")
    node = quiet["circumstances"]["nodes"]["client"]
    # Servers that other tests keep may be at work.
    assert not [name for name in node["foreign_by"] if f"(pid {server.process.pid})" in name]
    assert node["ours_cores"] > 0.01
    assert quiet["metadata"]["servers"]["unified0"]["argv"][1:3] == ["-m", "tests.scripted_server"]
    burner = subprocess.Popen([sys.executable, "-c", BURN])
    try:
        busy = bench(url, tmp_path / "busy.json")
    finally:
        burner.kill()
        burner.wait()
    assert any(f"(pid {burner.pid})" in why for why in busy["results"]["doubtful_because"])


def test_a_sampler_that_is_killed_or_away_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "PATIENCE", 1.0)
    with Samplers([1], ["http://192.0.2.9:9"]) as samplers:
        samplers.begin()
        assert "192.0.2.9:9" in samplers.missing
        assert samplers._process is not None
        os.kill(samplers._process.pid, signal.SIGKILL)
        samplers._process.wait()
        assert samplers.end() == {}
    why = judge.doubts({}, {}, samplers.missing)
    assert sum("was not sampled" in reason for reason in why) == 2


def test_a_sampler_answers_who_has_the_key(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command("sample", "--port", 0),
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "VLLM_API_KEY": "k"},
    )
    assert process.stdout is not None
    url = "http://" + process.stdout.readline().rpartition("ready on ")[2].strip()
    try:
        with pytest.raises(OSError, match="401"):
            get(f"{url}/mark")
        begin = json.loads(get(f"{url}/mark", Authorization="Bearer k"))["t"]
        time.sleep(0.1)
        end = json.loads(get(f"{url}/mark", Authorization="Bearer k"))["t"]
        told = json.loads(get(f"{url}/window?begin={begin}&end={end}", Authorization="Bearer k"))
        assert (told["samples"], told["seconds"]) == (2, pytest.approx(end - begin))
        with pytest.raises(OSError, match="400"):
            get(f"{url}/window?begin=x", Authorization="Bearer k")
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        process.stdout.close()


@pytest.mark.slow
@pytest.mark.alone
def test_sampling_costs_little() -> None:
    """Under half a percent of a core where nothing else runs; here other tests have servers, each of which it sees."""
    with Samplers([1], []) as samplers:
        samplers.begin()
        assert samplers._process is not None
        before = processes.of(samplers._process.pid)
        time.sleep(5)
        after = processes.of(samplers._process.pid)
    assert before is not None
    assert after is not None
    assert (after.used - before.used) / 5 < 0.01
