"""nixlbench and a KV cache's shape, between two nodes by the packs; and how it is built."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskrunner import run
from taskrunner.inference.tools import measure, nixlbench_sides
from taskrunner.inference.tools.options import DEFAULTS
from tests.helpers import command, completed, wait_for
from tests.inference.tools.test_measure import assignments, client, record, serve
from tests.sshd import free_pair

__all__ = ["serve"]
Serve = Callable[..., subprocess.Popen[str]]


@pytest.fixture(autouse=True)
def nixlbench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "nixlbench"
    program.parent.mkdir()
    double = Path(__file__).with_name("nixlbench_double.py")
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{double}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")


def both(serve: Serve, **values: Any) -> tuple[int, str, subprocess.Popen[str]]:
    """Both sides, the client first; its status and output, and the server."""
    values = {"PORT": free_pair(), **values}
    line = command("low-level-client", *assignments(**values))
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as measuring:
        time.sleep(0.5)  # refused at least once
        server = serve(**values)
        output = measuring.communicate(timeout=60)[0]
    return measuring.returncode, output, server


def test_the_initiator_is_up_first_whichever_node_is(serve: Serve) -> None:
    status, output, server = both(serve, TOOL="nixlbench", SIZE="64K", ITERATIONS=40, BATCH=2)
    said = server.communicate(timeout=60)[0]
    assert (status, server.returncode) == (0, 0), output + said
    result = record()
    assert (result["valid"], result["doubts"], result["tool"]) == (True, [], "nixlbench")
    row = result["rows"][0]
    assert (row["size_bytes"], row["batch"], row["iterations"]) == (65536, 2, 40)
    assert result["fabric"]["payload_bytes"] == 65536 * 2 * 40
    assert (result["fabric"]["asked"], result["fabric"]["proven"]) == ("local", "local")


def test_a_kv_cache_is_transferred_in_the_blocks_of_vllm(serve: Serve) -> None:
    status, output, server = both(serve, TOOL="kvbench-shape", TOKENS=500, TOKEN_BYTES=2048, ITERATIONS=20)
    said = server.communicate(timeout=60)[0]
    assert (status, server.returncode) == (0, 0), output + said
    result = record()
    assert result["tool"] == "kvbench-shape"
    assert (result["rows"][0]["size_bytes"], result["rows"][0]["batch"]) == (16 * 2048, 32)
    cache = result["kv_cache"]
    assert (cache["bytes"], cache["tokens"]) == (512 * 2048, 500)
    took = cache["bytes"] * 8 / result["rows"][0]["bandwidth_gbps"] / 1e6
    assert result["summary"]["kv_transfer_time_ms"] == pytest.approx(took, rel=1e-3)


def test_several_initiators_are_devices_of_one_process(serve: Serve) -> None:
    status, output, server = both(serve, TOOL="nixlbench", SIZE="64K", ITERATIONS=20, INITIATORS=3)
    said = server.communicate(timeout=60)[0]
    assert (status, server.returncode) == (0, 0), output + said
    settings = record()["settings"]
    assert (settings["scheme"], settings["mode"], settings["num_initiator_dev"]) == ("manytoone", "MG", "3")


def test_an_initiator_that_does_not_come_up_ends_both_sides_at_once(serve: Serve) -> None:
    began = time.monotonic()
    status, output, server = both(serve, TOOL="nixlbench", NIXL_BACKEND="LIBFABRIC")
    said = server.communicate(timeout=60)[0]
    assert (status, server.returncode) == (1, 1)
    assert time.monotonic() - began < 30
    assert "createBackend failed" in output
    assert "has not come up" in said
    assert record()["valid"] is False


def test_who_asks_at_the_port_and_says_nothing_starts_no_target(serve: Serve) -> None:
    port = free_pair()
    server = serve(TOOL="nixlbench", PORT=port, SIZE="4K", ITERATIONS=5)

    def asked() -> bool:
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as stranger:
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
                return True
        except OSError:
            return False

    wait_for(asked, 20)
    done = client(TOOL="nixlbench", PORT=port, SIZE="4K", ITERATIONS=5)
    assert done.returncode == 0, done.stdout
    server.communicate(timeout=60)
    assert server.returncode == 0


@pytest.mark.parametrize(
    ("tool", "values", "message"),
    [
        ("kvbench-shape", {"tokens": 0, "token_bytes": 64}, "--tokens"),
        ("kvbench-shape", {"tokens": 64, "token_bytes": 0}, "--token-bytes"),
        ("nixlbench", {"memory": "gpu"}, "--memory is one of host, cuda"),
    ],
)
def test_what_is_no_measurement_is_refused(tool: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(nixlbench_sides.PairingError, match=message):
        measure.resolved(tool, {**DEFAULTS, **values})


def test_it_is_built_for_the_nixl_that_vllm_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a compiler that writes down what it is asked for."""
    tools, env_dir = tmp_path / "the tools", tmp_path / "env"
    sources = tmp_path / "source" / "nixl-9.9.9" / "benchmark" / "nixlbench" / "src"
    for name in (
        "main.cpp",
        "runtime/runtime.cpp",
        "utils/utils.cpp",
        "worker/worker.cpp",
        "worker/nixl/w.cpp",
    ):
        (sources / name).parent.mkdir(parents=True, exist_ok=True)
        (sources / name).touch()
    packed = [tmp_path / "v9.9.9.tar.gz", "-C", tmp_path / "source", "nixl-9.9.9"]
    assert completed(["tar", "czf", *packed]).returncode == 0
    compiler = tmp_path / "bin" / "g++"
    compiler.write_text(
        '#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\n'
        'shift; printf "#!/bin/sh\\n# %s\\n" "$*" > "$1"; chmod +x "$1"\n'
    )
    compiler.chmod(0o755)
    assert completed([sys.executable, "-m", "venv", "--without-pip", env_dir / "venv"]).returncode == 0
    where = completed(
        [env_dir / "venv/bin/python", "-c", "import sysconfig; print(sysconfig.get_path('platlib'))"]
    )
    site = Path(where.stdout.strip())
    env = {
        "TOOLS_DIR": str(tools),
        "ENV_DIR": str(env_dir),
        "NIXL_URL": f"file://{tmp_path}",
        "BUILD": "nixlbench",
        "LIBFABRIC_HOME": str(tmp_path),
        "CUDA_HOME": "",
    }
    steps = ["01-script", "06-nixlbench"]
    missing = run("setup-low-level", env=env, only=steps)
    assert [event["step"] for event in missing.failures] == ["06-nixlbench"]
    assert "to do: run setup-environment" in json.dumps(missing.failures)
    libraries = site / ".nixl_cu12.mesonpy.libs"
    libraries.mkdir()
    (site / "nixl-9.9.9.dist-info").mkdir()
    (site / "nixl-9.9.9.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: nixl\nVersion: 9.9.9\n"
    )
    result = run("setup-low-level", env=env, only=steps)
    assert result.status == "ok", [event["tail"] for event in result.failures]
    assert f"-Wl,-rpath,{libraries}" in (tools / "bin" / "nixlbench").read_text()
    assert run("setup-low-level", env=env, only=steps).ok == 0


def test_a_port_that_is_taken_is_named_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        meeting = taken.getsockname()[1]
        began = time.monotonic()
        done = client(TOOL="nixlbench", PORT=meeting - 1, SIZE="4K", ITERATIONS=5)
    assert done.returncode == 1
    assert (
        f"port {meeting}, where nixlbench's processes meet, is taken by process {os.getpid()}" in done.stdout
    )
    assert time.monotonic() - began < 20
