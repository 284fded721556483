"""Both sides of real tools on loopback, by the packs: the server in a run of its own, the client in another."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taskrunner import run
from taskrunner.inference.circumstances import machine
from taskrunner.inference.tools import commands, measure
from taskrunner.inference.tools.reading import asked_size
from tests.helpers import Process, command, completed, wait_for
from tests.sshd import free_port

CASES: dict[str, dict[str, Any]] = {
    "iperf3": {"SECONDS": 1, "STREAMS": 2},
    "fi_pingpong": {"SIZE": "1K", "ITERATIONS": 50},
    "ucx_perftest": {"SIZE": 4096, "ITERATIONS": 200},
}


def assignments(**values: Any) -> list[str]:
    return [f"--env={name}={value}" for name, value in values.items()]


@pytest.fixture
def serve(home: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def serve(**values: Any) -> subprocess.Popen[str]:
        line = command("low-level-server", *assignments(**values))
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(process)
        return process

    yield serve
    for process in started:
        if process.poll() is None:
            completed(command("cancel", "last"))
        process.communicate(timeout=30)


def client(**values: Any) -> Process:
    return completed(command("low-level-client", *assignments(**values), "-v"))


def record() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("results/low-level.json").read_text())
    return found


@pytest.mark.parametrize("tool", CASES)
def test_a_client_measures_against_a_server_that_comes_up_after_it(
    tool: str, serve: Callable[..., subprocess.Popen[str]]
) -> None:
    assert shutil.which(tool), "scripts/test installs it"
    port = free_port()
    line = command("low-level-client", *assignments(TOOL=tool, PORT=port, **CASES[tool]))
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as measuring:
        time.sleep(1)  # refused at least once
        both = {name: value for name, value in CASES[tool].items() if name in ("SIZE", "ITERATIONS")}
        server = serve(TOOL=tool, PORT=port, **both)
        output = measuring.communicate(timeout=60)[0]
    assert measuring.returncode == 0, output
    said = server.communicate(timeout=60)[0]
    assert server.returncode == 0, said
    result = record()
    assert (result["valid"], result["doubts"], result["client_status"]) == (True, [], 0)
    assert result["summary"]
    assert (result["fabric"]["asked"], result["fabric"]["proven"] in ("local", None)) == ("local", True)
    assert "lo: " in result["fabric"]["evidence"]
    assert result["client_argv"][0] == shutil.which(tool)
    if "SIZE" in CASES[tool]:
        assert result["rows"][0]["size_bytes"] == asked_size(str(CASES[tool]["SIZE"]))


def test_a_client_that_finds_nobody_says_so_and_leaves_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    import argparse

    from taskrunner.inference.tools import main

    monkeypatch.setattr(measure, "RETRY_FOR_S", 1.5)
    parser = argparse.ArgumentParser()
    main.arguments(parser)
    args = parser.parse_args(["client", "ucx_perftest", "--port", str(free_port()), "-o", "r.json"])
    began = time.monotonic()
    assert main.main(args) == 1
    assert 1 < time.monotonic() - began < 20
    result = json.loads(Path("r.json").read_text())
    assert result["doubts"][0].startswith("ucx_perftest ended with status 255")
    assert "Connection refused" in result["doubts"][1]


def test_a_tool_that_never_ends_is_ended() -> None:
    from taskrunner.inference.tools.process import output_of

    began = time.monotonic()
    status, output, _ = output_of(["bash", "-c", "echo half; sleep 61 & wait"], 0.5)
    assert (status, output) == (None, "half\n")
    assert time.monotonic() - began < 10, "what it has started is ended, too"


def test_a_tool_that_is_not_there_is_named_with_its_package(
    serve: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = client(TOOL="fi_rdm_bw")
    assert done.returncode == 1
    assert "fi_rdm_bw is not installed" in done.stdout + done.stderr
    output = serve(TOOL="fi_rdm_bw", PORT=free_port()).communicate(timeout=60)[0]
    assert "fi_rdm_bw is not installed" in output


@pytest.mark.parametrize(("text", "size"), [("64", 64), ("64K", 65536), ("1MB", 1 << 20), ("1GiB", 1 << 30)])
def test_sizes_are_expanded_before_a_tool_sees_them(text: str, size: int) -> None:
    assert asked_size(text) == size
    values = {"peer": "p", "port": 1, "size": asked_size(text), "iterations": 2, "provider": "efa"}
    assert commands.words("fi_rdm_bw", "client", values) == (
        f"fi_rdm_bw -p efa -E=1 -S {size} -I 2 -m p".split()
    )


@pytest.mark.parametrize("text", ["", "K", "64X", "-1", "1.5M"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size"):
        asked_size(text)


def test_the_tools_need_nothing_but_a_python(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from inference.node import main\n"
        "try: main(['tool', '--help'])\n"
        "except SystemExit: pass\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "assert not loaded & {'numpy', 'pydantic', 'uvloop', 'httptools'}, loaded\n"
    )
    folder = Path(commands.__file__).parents[2]
    done = completed(["python3", "-I", "-S", "-c", script, str(folder)])
    assert done.returncode == 0, done.stderr
    wait_for(lambda: "side" in done.stdout or "TOOL" in done.stdout, 1)


@pytest.mark.parametrize(("driver", "connection"), [("efa", "SRD"), ("mlx5_core", "RC")])
def test_perftest_is_called_with_the_connection_that_the_device_has(
    driver: str, connection: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "RDMA", tmp_path / "infiniband")
    values = {"size": 4096, "iterations": 1000, "port": 18515, "peer": "p", "device": "", "provider": "efa"}
    with pytest.raises(measure.NotInstalledError, match="no RDMA device"):
        measure.resolved("ib_send_bw", values)
    device = tmp_path / "infiniband" / "rdmap49s0" / "device"
    device.mkdir(parents=True)
    (device / "driver").symlink_to(tmp_path / driver)
    program = tmp_path / "ib_send_bw"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    words = f"-d rdmap49s0 -c {connection} -x 0 -F --report_gbits -s 4096 -n 1000 -p 18515 p".split()
    known = measure.resolved("ib_send_bw", values)
    assert measure.command_line("ib_send_bw", "client", known) == [str(program), *words]
    assert measure.command_line("ib_send_bw", "server", known) == [str(program), *words[:-1]]


def test_fabtests_are_built_for_the_libfabric_that_is_there(tmp_path: Path) -> None:
    """From a release whose configure and Makefile only write down what they are asked for."""
    release, tools = tmp_path / "source" / "fabtests-1.22.0", tmp_path / "the tools"
    release.mkdir(parents=True)
    (release / "configure").write_text('#!/bin/sh\nfor word; do echo "$word" >> options; done\n')
    (release / "configure").chmod(0o755)
    (release / "Makefile").write_text(
        "install:\n\tmkdir -p ../fabtests/bin\n\tcp options ../fabtests/\n"
        "\tfor name in rdm_bw rdm_pingpong; do cp /bin/true ../fabtests/bin/fi_$$name; done\n"
    )
    (tmp_path / "v1.22.0").mkdir()
    archive = tmp_path / "v1.22.0" / "fabtests-1.22.0.tar.bz2"
    subprocess.run(["tar", "cjf", archive, "-C", release.parent, release.name], check=True)
    (tmp_path / "include" / "rdma").mkdir(parents=True)
    (tmp_path / "include" / "rdma" / "fabric.h").touch()
    env = {
        "TOOLS_DIR": str(tools),
        "FABTESTS_URL": f"file://{tmp_path}",
        "LIBFABRIC_HOME": str(tmp_path),
        "LIBFABRIC_VERSION": "1.22.0",
        "CUDA_HOME": "",
    }
    steps = ["01-script", "03-fabtests"]
    result = run("setup-low-level", env=env, only=steps)
    assert result.status == "ok", result.failures
    assert (tools / "bin" / "fi_rdm_bw").exists()
    assert f"--with-libfabric={tmp_path}" in (tools / "fabtests" / "options").read_text().splitlines()
    assert run("setup-low-level", env=env, only=steps).ok == 0
    # The libfabric of another installer.
    failed = run("setup-low-level", env={**env, "LIBFABRIC_VERSION": "9.9.9"}, only=steps)
    assert [event["step"] for event in failed.failures] == ["03-fabtests"]
