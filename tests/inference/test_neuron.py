"""vLLM on Neuron: what is called, against the documentation; and the packs, with doubles of the programs.

Nothing of this has run on the hardware.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskrunner import load, run
from taskrunner.inference.neuron import checks, commands, compiled
from taskrunner.inference.neuron.commands import Asked, Refused
from tests.helpers import Process, command, completed
from tests.sshd import free_port

ROOT = Path(__file__).parents[2]
TWO = Asked("/m", "2.27", 64, 4, 8192, "10.0.0.1", "10.0.0.2", False, "/a/di_traced_model_tp64_b4/")
ONE = TWO._replace(tensor_parallel=32, single=True, prefill="127.0.0.1", decode="127.0.0.1")


def options(argv: list[str]) -> dict[str, str | list[str] | None]:
    """Options with their values."""
    found: dict[str, Any] = {}
    name = ""
    for word in argv:
        if word.startswith("--"):
            name = word
            found[name] = None
        elif name:
            value = found[name]
            found[name] = word if value is None else [*([value] if isinstance(value, str) else value), word]
    return found


def test_compiling_is_called_as_documented() -> None:
    argv = commands.compiling(TWO)
    assert argv[:5] == ["--model-type", "llama", "--task-type", "causal-lm", "run"]
    assert options(argv[5:]) == {
        "--model-path": "/m",
        "--compiled-model-path": "/a/di_traced_model_tp64_b4/",
        "--torch-dtype": "bfloat16",
        "--tp-degree": "64",
        "--batch-size": "4",
        "--ctx-batch-size": "1",
        "--tkg-batch-size": "4",
        "--is-continuous-batching": None,
        "--max-context-length": "8192",
        "--seq-len": "8192",
        "--on-device-sampling": None,
        "--fused-qkv": None,
        "--global-topk": "256",
        "--dynamic": None,
        "--top-k": "50",
        "--top-p": "0.9",
        "--temperature": "0.7",
        "--do-sample": None,
        "--sequence-parallel-enabled": None,
        "--qkv-kernel-enabled": None,
        "--attn-kernel-enabled": None,
        "--mlp-kernel-enabled": None,
        "--cc-pipeline-tiling-factor": "1",
        "--pad-token-id": "2",
        "--logical-neuron-cores": "2",
        "--context-encoding-buckets": ["256", "512", "1024", "2048", "4096", "8192"],
        "--token-generation-buckets": ["512", "1024", "2048", "4096", "8192"],
        "--apply-seq-ids-mask": None,
        "--enable-bucketing": None,
        "--prompt": "test prompt",
        "--save-sharded-checkpoint": None,
        "--attn-block-tkg-nki-kernel-enabled": None,
        "--attn-block-tkg-nki-kernel-cache-update": None,
        "--k-cache-transposed": None,
        "--async-mode": None,
        "--compile-only": None,
    }


OLD: dict[str, Any] = {
    "--model": "/m",
    "--max-num-seqs": "4",
    "--max-model-len": "8192",
    "--device": "neuron",
    "--use-v2-block-manager": None,
    "--override-neuron-config": "{}",
}
TRANSFER: dict[str, Any] = {
    "kv_connector": "NeuronConnector",
    "kv_buffer_device": "cpu",
    "kv_parallel_size": 2,
    "kv_buffer_size": 2e11,
}
ENV = {
    "NEURON_RT_ASYNC_SENDRECV_BOOTSTRAP_PORT": "45645",
    "NEURON_RT_ASYNC_SENDRECV_EXPERIMENTAL_ENABLED": "1",
    "NEURON_COMPILED_ARTIFACTS": "/a/di_traced_model_tp64_b4/",
    "NEURON_RT_ASYNC_EXEC_MAX_INFLIGHT_REQUESTS": "2",
}


@pytest.mark.parametrize(
    ("asked", "role", "rank", "kv_role", "offset", "more"),
    [
        (TWO, "prefill", 0, "kv_producer", 0, {}),
        (TWO, "decode", 1, "kv_consumer", "0", {}),
        (ONE, "prefill", 0, "kv_producer", 0, {"NEURON_RT_VISIBLE_CORES": "0-31"}),
        (ONE, "decode", 1, "kv_consumer", "32", {"NEURON_RT_VISIBLE_CORES": "32-63"}),
    ],
)
def test_servers_of_the_old_flow_are_started_as_documented(
    asked: Asked, role: str, rank: int, kv_role: str, offset: object, more: dict[str, str]
) -> None:
    argv, env = commands.server(role, asked, 8100)
    assert argv[:2] == ["-m", "vllm.entrypoints.openai.api_server"]
    found = options(argv[2:])
    transfer = json.loads(str(found.pop("--kv-transfer-config")))
    assert found == {**OLD, "--tensor-parallel-size": str(asked.tensor_parallel), "--port": "8100"}
    assert transfer == {
        **TRANSFER,
        "kv_role": kv_role,
        "kv_rank": rank,
        "kv_ip": asked.prefill,
        "neuron_core_offset": offset,
    }
    assert env == {**ENV, "NEURON_SEND_IP": asked.prefill, "NEURON_RECV_IP": asked.decode, **more}


def test_the_baseline_has_the_same_model_and_nothing_of_the_transfer() -> None:
    argv, env = commands.server("baseline", ONE, 8000)
    assert options(argv[2:]) == {**OLD, "--tensor-parallel-size": "32", "--port": "8000"}
    assert env == {
        "NEURON_COMPILED_ARTIFACTS": ONE.artifacts,
        "NEURON_RT_ASYNC_EXEC_MAX_INFLIGHT_REQUESTS": "2",
        "NEURON_RT_VISIBLE_CORES": "0-31",
    }


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize(("role", "port"), [("prefill", 5559), ("decode", 5659)])
def test_servers_of_the_new_flow_are_started_as_documented(role: str, port: int, single: bool) -> None:
    base = ONE if single else TWO
    asked = base._replace(sdk="2.31", config='{"num_seqs_buckets": [4]}')
    argv, env = commands.server(role, asked, 8200)
    assert argv[:2] == ["serve", "/m"]
    found = options(argv[2:])
    assert json.loads(str(found.pop("--kv-transfer-config"))) == {
        "kv_connector": "NixlConnector",
        "kv_role": "kv_consumer" if role == "decode" else "kv_producer",
        "kv_buffer_device": "cuda",
        "kv_connector_extra_config": {"backends": ["LIBFABRIC"]},
    }
    assert json.loads(str(found.pop("--additional-config"))) == {"neuron_config": {"num_seqs_buckets": [4]}}
    assert found == {
        "--port": "8200",
        "--tensor-parallel-size": str(asked.tensor_parallel),
        "--no-disable-hybrid-kv-cache-manager": None,
        "--max-num-seqs": "4",
        "--max-model-len": "8192",
    }
    assert env["VLLM_NIXL_SIDE_CHANNEL_PORT"] == str(port)
    assert env["VLLM_NIXL_SIDE_CHANNEL_HOST"] == (asked.decode if role == "decode" else asked.prefill)
    assert (env.get("FI_EFA_ENABLE_SHM_TRANSFER"), "NEURON_VISIBLE_DEVICES" in env) == (
        "0" if single else None,
        single,
    )
    assert not {name for name in env if name.startswith("NEURON_RT_")}


@pytest.mark.parametrize(
    ("sdk", "said"),
    [
        ("2.28", "no disaggregated inference"),
        ("2.30", "no disaggregated inference"),
        ("new", "expected a version"),
    ],
)
def test_an_sdk_without_disaggregation_is_refused(sdk: str, said: str) -> None:
    with pytest.raises(Refused, match=said):
        commands.server("prefill", TWO._replace(sdk=sdk), 8100)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(Refused, match="TENSOR_PARALLEL=32"):
        commands.server("decode", ONE._replace(tensor_parallel=64), 8200)
    with pytest.raises(Refused, match="serve-proxy"):
        commands.router(TWO._replace(sdk="2.32"), 8100, 8200)
    with pytest.raises(Refused, match="nothing to compile"):
        commands.compiling(TWO._replace(sdk="2.31"))
    with pytest.raises(Refused, match="no JSON object"):
        commands.server("prefill", TWO._replace(sdk="2.31", config="[]"), 8100)


def test_the_router_is_called_with_the_names_that_it_has() -> None:
    assert options(commands.router(TWO, 8100, 8200)) == {
        "--prefill-ip": "10.0.0.1",
        "--decode-ip": "10.0.0.2",
        "--prefill-port": "8100",
        "--decode-port": "8200",
    }


def test_a_lock_of_another_user_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "nrt_kv_store_server.lock"
    assert list(checks.lock(lock)) == []
    lock.touch()
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(lock).st_uid + 1)
    (problem,) = checks.lock(lock)
    assert "no process holds it" in problem.what
    assert problem.hint == f"remove it: sudo rm {lock}"
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        (problem,) = checks.lock(lock)
        assert f"process {holder.pid} holds it" in problem.what
        holder.communicate(b"")


class Node:
    """A Neuron instance's folder, and what packs are given there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ports = (
            folder,
            {name: free_port() for name in ("prefill", "decode", "router", "kv")},
        )
        (folder / "venv" / "bin").mkdir(parents=True)
        for name in ("python3", "inference_demo", "neuron-proxy-server", "neuron-ls"):
            path = folder / "venv" / "bin" / name
            words = shlex.join([sys.executable, "-m", "tests.neuron_double", str(path)])
            path.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {words} "$@"\n')
            path.chmod(0o755)
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text('{"model_type": "llama"}')
        # What setup-environment installs for the client.
        (folder / "env" / "venv" / "bin").mkdir(parents=True)
        python = folder / "env" / "venv" / "bin" / "python"
        python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
        python.chmod(0o755)

    @property
    def env(self) -> dict[str, Any]:
        return {
            "VENV": str(self.folder / "venv"),
            "MODEL_PATH": str(self.folder / "model"),
            "ARTIFACTS": str(self.folder / "artifacts"),
            "TENSOR_PARALLEL": 32,
            "SINGLE_INSTANCE": "true",
            "PREFILL_PORT": self.ports["prefill"],
            "DECODE_PORT": self.ports["decode"],
            "BASELINE_PORT": self.ports["router"],
        }

    def words(self, pack: str, **more: object) -> list[str]:
        return command(pack, *(f"--env={name}={value}" for name, value in {**self.env, **more}.items()))

    def measure(self, **more: object) -> Process:
        sizes = {"PROMPT_TOKENS": 64, "OUTPUT_TOKENS": 8, "REQUESTS": 12, "WARMUP": 1, "MAX_LAG": 5}
        url = f"http://127.0.0.1:{self.ports['router']}"
        given = {"ENV_DIR": self.folder / "env", "URL": url, "RESULT": "r", **sizes, **more}
        names = load("measure-neuron").document.data["variables"]
        words = {name: value for name, value in {**self.env, **given}.items() if name in names}
        options = [f"--env={name}={value}" for name, value in words.items()]
        return completed(command("measure-neuron", *options, "-v"))


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    made = Node(tmp_path)
    monkeypatch.setenv("DOUBLE_KV_PORT", str(made.ports["kv"]))
    monkeypatch.setenv("DOUBLE_ROUTER_PORT", str(made.ports["router"]))
    yield made
    assert run("stop-neuron").status == "ok"


def test_a_model_is_compiled_once_for_its_content(node: Node) -> None:
    assert run("neuron-compile", env=node.env).ok == 1
    assert run("neuron-compile", env=node.env).skipped == 1
    # Other options, another model, another compiler.
    assert run("neuron-compile", env={**node.env, "MAX_LEN": 4096}).ok == 1
    assert run("neuron-compile", env=node.env).ok == 1
    (node.folder / "model" / "config.json").write_text('{"model_type": "llama", "rope": 1}')
    assert run("neuron-compile", env=node.env).ok == 1
    package = node.folder / "venv" / "lib" / "python3.11" / "site-packages" / "neuronx_cc-2.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: neuronx-cc\nVersion: 2.0\n")
    assert run("neuron-compile", env=node.env).ok == 1
    # Weights that are gone.
    (node.folder / "artifacts/di_traced_model_tp32_b4/weights/tp0_sharded_checkpoint.safetensors").unlink()
    assert run("neuron-compile", env=node.env).ok == 1
    assert run("neuron-compile", env=node.env).skipped == 1


def test_what_was_compiled_in_part_is_not_taken(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOUBLE_DISK_FULL", "yes")
    failed = run("neuron-compile", env=node.env)
    assert "not complete" in "".join(failed.failures[0]["tail"])
    refused = run("neuron-serve-prefill", env=node.env)
    assert refused.status == "failed"
    assert "run neuron-compile" in str(refused.failures)


def test_both_servers_the_router_and_a_measurement(node: Node) -> None:
    assert run("neuron-compile", env=node.env).ok == 1
    # Each waits for the other.
    with subprocess.Popen(
        node.words("neuron-serve-prefill"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as prefill:
        decode = completed(node.words("neuron-serve-decode"))
        output = prefill.communicate(timeout=60)[0]
    assert (prefill.returncode, decode.returncode) == (0, 0), output + decode.stdout
    started = json.loads(Path(f"server-{node.ports['decode']}.json").read_text())
    assert started["env"]["NEURON_RT_VISIBLE_CORES"] == "32-63"
    assert run("neuron-router", env=node.env).ok == 1
    done = node.measure()
    assert done.returncode == 0, done.stdout
    results = json.loads(Path("results/r.json").read_text())["results"]
    assert (results["completed"], results["failed"], results["valid"]) == (12, 0, True)
    assert results["ttft"]["p50"] < results["e2e_latency"]["p50"]
    # The router answers 200 also when a server is not there.
    assert run("stop-neuron", only=["02-decode"]).status == "ok"
    broken = node.measure(WARMUP=0)
    assert broken.returncode == 1
    assert "Connection refused" in broken.stdout


def test_the_baseline_is_measured_without_a_router(node: Node) -> None:
    assert run("neuron-compile", env=node.env).ok == 1
    assert run("neuron-baseline", env=node.env).ok == 1
    done = node.measure(PREFILL_URL="")
    assert done.returncode == 0, done.stdout


def listed(count: int, processes: list[dict[str, Any]]) -> str:
    one = {"nc_count": 4, "memory_size": 103079215104, "neuron_processes": processes}
    return json.dumps([{**one, "neuron_device": index} for index in range(count)])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (listed(16, []), ""),
        (listed(4, []), "16 cores, 64 are needed"),
        (listed(16, [{"pid": 77, "command": "python x.py"}]), "process 77 holds cores: python x.py"),
        ("no devices", "neuron-ls -j: no devices"),
    ],
)
def test_what_a_node_is_asked(
    node: Node, text: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOUBLE_NEURON_LS", text)
    monkeypatch.setenv("PATH", f"{node.folder / 'venv' / 'bin'}:{os.environ['PATH']}")
    problems = list(checks.hardware(64))
    assert said in "; ".join(problem.what for problem in problems)
    assert bool(problems) == bool(said)
    if text.startswith("[{"):
        assert "cores" in capsys.readouterr().out


def test_the_identity_of_what_is_compiled_does_not_depend_on_where_it_is(tmp_path: Path) -> None:
    first = compiled.identity(commands.compiling(TWO), str(tmp_path))
    assert compiled.identity(commands.compiling(TWO._replace(artifacts="/b/x/")), str(tmp_path)) == first
    assert compiled.identity(commands.compiling(TWO._replace(batch=8)), str(tmp_path)) != first
