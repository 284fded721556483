"""From a description of a server to its command."""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
from pathlib import Path
from typing import Any

import pytest

from taskrunner import load
from taskrunner.inference.serving import FAIL_ON, Refused, Server, launch, lengths, service, versions
from taskrunner.inference.serving import main as serving_main
from taskrunner.inference.serving import read_ahead as reading
from taskrunner.inference.serving.fabric import FABRICS, fabric
from taskrunner.inference.serving.gpus import Placement, place, usable
from tests.helpers import wait_for

TASKS = Path(__file__).parents[2] / "tasks"


def config(server: Server) -> dict[str, Any]:
    argv = launch(server).argv
    found: dict[str, Any] = json.loads(argv[argv.index("--kv-transfer-config") + 1])
    return found


def test_a_producer_on_efa() -> None:
    server = Server("Qwen/Qwen2.5-7B", "producer", "efa", address="10.0.0.11", tensor_parallel=4)
    found = launch(server, "/env/bin/python")
    assert found.argv[:3] == ["/env/bin/vllm", "serve", "Qwen/Qwen2.5-7B"]
    assert "--no-enable-prefix-caching" in found.argv
    assert found.argv[found.argv.index("--host") + 1] == "10.0.0.11"
    assert service(server)["ready"]["http"] == "http://10.0.0.11:8100/health"
    assert found.env["VLLM_NIXL_SIDE_CHANNEL_HOST"] == "10.0.0.11"
    assert (found.env["FI_PROVIDER"], found.env["NCCL_IB_DISABLE"]) == ("efa", "0")
    assert "NIXL_BACKEND" not in found.env
    assert "VLLM_ALLOW_LONG_MAX_MODEL_LEN" not in found.env
    assert config(server) == {
        "kv_connector": "NixlConnector",
        "kv_role": "kv_producer",
        "kv_buffer_device": "cuda",
        "kv_connector_extra_config": {"backends": ["LIBFABRIC"], "kv_lease_duration": 300},
    }


def test_both_sides_have_the_same_connector_and_ports_of_their_own() -> None:
    producer, consumer = (Server("m", mode, "srd", vllm="0.33.0") for mode in ("producer", "consumer"))
    one, other = config(producer), config(consumer)
    assert one.pop("kv_role") != other.pop("kv_role")
    assert one == other
    assert (producer.listens, consumer.listens) == (8100, 8200)
    assert len({s.side_channel for s in (producer, consumer, Server("m", "consumer", port=8201))}) == 3
    assert launch(consumer).env["VLLM_NIXL_SIDE_CHANNEL_PORT"] == "5700"


def test_a_unified_server_has_no_connector() -> None:
    found = launch(Server("m"))
    assert "--kv-transfer-config" not in found.argv
    assert "--enable-prefix-caching" in found.argv
    assert not [name for name in found.env if "SIDE_CHANNEL" in name or name.startswith("UCX")]


@pytest.mark.parametrize("minor", [n for n in range(16, 34) if n != 27])
def test_options_by_version(minor: int) -> None:
    """What the wheels' own source accepts."""
    server = Server("m", "consumer", "tcp", vllm=f"0.{minor}.0", prompt_tokens=60_000, yarn=True)
    text, about = " ".join(launch(server).argv), config(server)
    assert "--disable-log-requests" not in text
    assert "kv_rank" not in about
    assert about["kv_role"] != "kv_both"
    extra = about["kv_connector_extra_config"]
    assert ("kv_lease_duration" in extra) is (minor >= 22)
    assert ("VLLM_NIXL_ABORT_REQUEST_TIMEOUT" in launch(server).env) is (minor < 22)
    assert about.get("kv_load_failure_policy", "default") == ("fail" if minor == 16 else "default")
    overrides = json.loads(launch(server).argv[launch(server).argv.index("--hf-overrides") + 1])
    assert ("max_position_embeddings" in overrides) is (minor >= 30)
    assert overrides["rope_parameters"]["original_max_position_embeddings"] == 32768
    if minor <= 28:
        crossed = Server("m", "consumer", "tcp", vllm=f"0.{minor}.0", cross_layers=True)
        assert config(crossed)["kv_connector_extra_config"]["enable_cross_layers_blocks"] == "True"
    else:
        with pytest.raises(Refused, match="silently ignore it"):
            launch(Server("m", "consumer", "tcp", vllm=f"0.{minor}.0", cross_layers=True))


def test_versions_that_are_not_known_are_said() -> None:
    assert "newer than 0.33" in versions.doubt_about("0.34.1")
    assert "older than 0.16" in versions.doubt_about("0.15.0")
    assert versions.doubt_about("0.27.0")
    assert versions.doubt_about("0.32.0+cpu") == ""


@pytest.mark.parametrize(
    ("prompt", "output", "length"),
    [
        (1024, 128, 16_384),
        (12_288, 128, 20_480),
        (20_000, 128, 34_816),
        (50_000, 128, 65_536),
        (65_536, 128, 131_072),
        (100_000, 0, 131_072),
        (131_072, 128, 131_200),
        (16_384, 128, 20_480),
    ],
)
def test_lengths(prompt: int, output: int, length: int) -> None:
    assert lengths.max_model_len(prompt, output) == length


def test_what_a_token_weighs() -> None:
    assert lengths.kv_bytes(64, 8, 128) == 262_144
    assert lengths.kv_bytes(28, 4, 128) == 57_344


def test_what_the_gpu_holds_is_the_limit() -> None:
    big: dict[str, Any] = {
        "model": "Qwen/Qwen2.5-32B-Instruct",
        "gpu": "NVIDIA L40S",
        "tensor_parallel": 4,
        "yarn": True,
    }
    found = launch(Server(**big, prompt_tokens=40_000, max_model_len=65_536))
    assert found.max_model_len == 48_848
    assert "more than NVIDIA L40S holds" in found.warnings[0]
    with pytest.raises(Refused, match="too short for 50000"):
        launch(Server(**big, prompt_tokens=50_000))


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"mode": "both"}, "expected one of unified, producer, consumer"),
        (
            {"mode": "producer", "fabric": "carrier-pigeon"},
            "expected one of cpu, cuda_ipc, efa, infiniband, roce, srd, tcp, tcp-host",
        ),
        ({"mode": "producer", "fabric": "../x"}, "expected one of cpu"),
        ({"mode": "producer", "fabric": "efa", "platform": "cpu"}, "there is none: use the fabric cpu"),
        ({"prompt_tokens": 60_000}, "enable YaRN"),
        ({"max_model_len": 1000, "prompt_tokens": 1000}, "too short for 1000"),
        ({"model": ""}, "no model is given"),
    ],
)
def test_what_would_not_work_is_refused(about: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused, match=said):
        launch(Server(**{"model": "m", **about}))


def test_as_the_service_of_a_step(write: Any) -> None:
    from taskrunner import validate

    path = write({"id": "a", "service": service(Server("m", "producer"))})
    assert validate(path) == []


def test_the_packs_know_the_same_signs_of_failure() -> None:
    found = [
        step["service"]["fail_on"]
        for path in TASKS.glob("*.json")
        for step in load(path).document.data["tasks"]
        if step.get("service", {}).get("name", "").startswith("vllm-")
        and "serve --mode" in step["service"].get("command", "")
    ]
    assert len(found) >= 9
    assert all(patterns == list(FAIL_ON) for patterns in found)


def test_the_gpu_that_is_here_sets_the_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA L40S'\necho 'NVIDIA L40S'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(serving_main, "version", lambda _: "0.32.0")
    parser = argparse.ArgumentParser()
    serving_main.arguments(parser)
    words = ["--model", "Qwen2.5-32B", "--prompt-tokens", "32000", "--tensor-parallel", "4", "--yarn", "true"]
    args = parser.parse_args([*words, "--max-model-len", "131072", "--print"])
    assert serving_main.main(args) == 0
    said = capsys.readouterr()
    assert "--max-model-len 48848" in said.out
    assert "more than NVIDIA L40S holds" in said.err


def test_a_running_server_does_for_shorter_prompts_and_nothing_else() -> None:
    def of(**other: Any) -> tuple[dict[str, Any], int]:
        server = Server("m", "producer", "tcp", **other)
        found = launch(server)
        needed = server.max_model_len or server.prompt_tokens + server.output_tokens
        return serving_main._record(found), needed

    running = of(prompt_tokens=12_000)[0]
    for fitting in ({}, {"prompt_tokens": 200}, {"prompt_tokens": 20_000}, {"max_model_len": 20_480}):
        assert serving_main.fits(*of(**fitting), running), fitting
    for other in (
        {"prompt_tokens": 20_400},
        {"max_model_len": 20_481},
        {"tensor_parallel": 2},
        {"address": "10.0.0.1"},
        {"prefix_caching": True},
        {"extra": ("--seed", "1")},
        {"lease": 60},
    ):
        assert not serving_main.fits(*of(**other), running), other
    given = Server("m", "producer", "tcp", extra=("--max-model-len=9000",))
    record = serving_main._record(launch(given))
    assert serving_main.fits(record, 1152, record)
    odds: list[object] = [None, {}, [], {"argv": [], "env": running["env"]}]
    for odd in odds:
        assert not serving_main.fits(*of(), odd)


@pytest.mark.parametrize(
    ("mode", "there", "each", "given", "peers", "placed"),
    [
        ("producer", "0123", 2, "", "", Placement("0,1", 0.0)),
        ("consumer", "0123", 2, "", "", Placement("2,3", 0.0)),
        ("consumer", "45", 1, "", "", Placement("5", 0.0)),
        ("consumer", "0", 1, "", "", Placement("", 0.42)),
        ("producer", "0123", 4, "", "", Placement("", 0.42)),
        ("consumer", "01", 1, "", "1", Placement("0", 0.0)),
        ("consumer", "01", 1, "0", "0", Placement("0", 0.42)),
        ("consumer", "01", 1, "0", "1", Placement("0", 0.0)),
        ("consumer", "01", 1, "", None, Placement("", 0.0)),
        ("unified", "01", 1, "1", None, Placement("1", 0.0)),
        ("producer", "", 1, "", "", Placement("", 0.0)),
    ],
)
def test_two_roles_on_one_machine_get_gpus_of_their_own(
    mode: str, there: str, each: int, given: str, peers: str | None, placed: Placement
) -> None:
    assert place(mode, list(there), each, given, peers) == placed


def test_gpus_that_the_environment_hides_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert usable(3) == ["0", "1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 5")
    assert usable(8) == ["4", "5"]


def test_gpus_that_are_named_are_part_of_what_a_server_is() -> None:
    assert launch(Server("m", gpus="2,3")).env["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert "CUDA_VISIBLE_DEVICES" not in launch(Server("m")).env


@pytest.mark.parametrize(
    ("about", "eager"),
    [
        ({}, False),
        ({"enforce_eager": True}, True),
        ({"platform": "cpu"}, True),
        ({"platform": "cpu", "enforce_eager": False}, False),
    ],
)
def test_cuda_graphs_are_used_unless_told_otherwise(about: dict[str, Any], eager: bool) -> None:
    assert ("--enforce-eager" in launch(Server("m", **about)).argv) is eager


def test_an_argument_that_is_given_replaces_ours() -> None:
    argv = launch(
        Server("m", extra=("--gpu-memory-utilization=0.5", "--max-num-batched-tokens", "8192"))
    ).argv
    text = " ".join(argv)
    assert text.count("--gpu-memory-utilization") == text.count("--max-num-batched-tokens") == 1
    assert "0.9" not in argv
    assert "4096" not in argv
    assert "--enable-chunked-prefill" in argv


def test_every_fabric_says_what_counts_its_bytes() -> None:
    names = [path.stem for path in FABRICS.glob("*.json")]
    assert {fabric(name)["counted_by"] for name in names} == {"net", "rdma", "memory"}
    for name in names:
        words = fabric(name)["env"].get("UCX_TLS", "").split(",")
        # Shared memory would take the KV cache past the network that is named.
        assert fabric(name)["counted_by"] == "memory" or not {"sm", "cuda_ipc", "all"} & set(words)


def test_settings_that_were_found_best_are_used(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    best = {
        "1024": {"name": "a", "env": {"UCX_X": "1"}, "gain": 2},
        "8192": {"name": "b", "env": {"UCX_X": "2"}, "gain": 3},
    }
    path.write_text(json.dumps({"fabric": "tcp", "best": best}))
    for tokens, value in ((1000, "1"), (6000, "2"), (100_000, "2")):
        server = Server("m", "producer", "tcp", tuning=str(path), prompt_tokens=tokens, yarn=True)
        assert launch(server).env["UCX_X"] == value
    with pytest.raises(Refused, match="of the fabric tcp, not efa"):
        launch(Server("m", "producer", "efa", tuning=str(path)))
    path.write_text("[]")
    with pytest.raises(Refused, match="not a result of tune-fabric"):
        launch(Server("m", "producer", "tcp", tuning=str(path)))


def test_a_model_folder_that_is_missing_is_not_looked_for_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_main, "version", lambda _: "0.32.0")
    parser = argparse.ArgumentParser()
    serving_main.arguments(parser)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text('{"max_position_embeddings": 4096}')
    for model, status, said in (
        ("models/none", 2, "no such folder"),
        (str(tmp_path / "none"), 2, "no such folder"),
        ("Qwen/Qwen2.5-7B", 0, ""),
        (str(tmp_path / "m"), 0, "--max-model-len 4096"),
    ):
        assert serving_main.main(parser.parse_args(["--model", model, "--print"])) == status
        told = capsys.readouterr()
        assert said in told.err + told.out


def cached(path: Path) -> int:
    """Bytes of a file that are in the page cache (mincore(2))."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as mapped:
        size = len(mapped)
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        begin = (ctypes.c_char * size).from_buffer(mapped)
        assert ctypes.CDLL(None).mincore(ctypes.byref(begin), ctypes.c_size_t(size), pages) == 0
        del begin
        return sum(page & 1 for page in pages) * mmap.PAGESIZE


def test_weights_are_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(os.urandom(1 << 20) * 32)
    with weights.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert cached(weights) < 1 << 20
    monkeypatch.setattr(reading, "_available", lambda: 10 << 20)
    assert not reading.read_ahead(str(tmp_path))  # there is no room for them
    monkeypatch.undo()
    assert reading.read_ahead(str(tmp_path))
    wait_for(lambda: cached(weights) == 32 << 20)
    assert not reading.read_ahead("Qwen/Qwen2.5-7B")
