"""nccl-tests by the packs. The programs are scripts that print what the real ones have printed on two H100."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskrunner import run
from taskrunner.inference.tools import nccl
from tests.helpers import Process, completed

Cli = Callable[..., Process]
SAMPLES = Path(__file__).parent / "samples"
MPIRUN = """#!/usr/bin/env bash
# The environment of -x, and the program after the options: started once for all ranks.
printf '%s\\n' "$@" > "$0.words"
while [ $# -gt 0 ]; do
  case $1 in
    -x) export "$2"; shift 2;;
    -np|-N|--host|--bind-to) shift 2;;
    --mca) shift 3;;
    --allow-run-as-root) shift;;
    *) break;;
  esac
done
exec "$@"
"""


@pytest.fixture
def tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of nccl-tests, and mpirun in PATH."""
    folder = tmp_path / "nccl-tests"
    (folder / "build").mkdir(parents=True)
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "mpirun").write_text(MPIRUN)
    (programs / "mpirun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return folder


def program(folder: Path, name: str, table: str, log: str = "", status: int = 0, errors: str = "") -> None:
    lines = [f"cat {shlex.quote(str(SAMPLES / table))}"]
    if errors:
        lines.append(f"cat {shlex.quote(str(SAMPLES / errors))} >&2")
    if log:
        lines.append(
            f'[ "$NCCL_DEBUG" = INFO ] && cat {shlex.quote(str(SAMPLES / log))} > "$NCCL_DEBUG_FILE"'
        )
    path = folder / "build" / name
    path.write_text("#!/bin/sh\n" + "\n".join(lines) + f"\nexit {status}\n")
    path.chmod(0o755)


def measure(pack: str, folder: Path, tmp_path: Path, **env: Any) -> tuple[str, dict[str, Any]]:
    values = {"NCCL_TESTS_DIR": str(folder), "RESULTS_DIR": str(tmp_path / "texts"), "NUM_GPUS": 2, **env}
    result = run(pack, env=values)
    return result.status, json.loads(Path("results/nccl.json").read_text())


def test_one_node(tests: Path, tmp_path: Path) -> None:
    program(tests, "all_reduce_perf", "nccl_all_reduce_h100x2.txt", "nccl_log_p2p.txt")
    program(tests, "all_gather_perf", "nccl_all_gather_h100x2.txt", "nccl_log_p2p.txt")
    status, record = measure("nccl-benchmark", tests, tmp_path)
    assert (status, record["valid"]) == ("ok", True), record["runs"]
    first = record["runs"][0]
    assert first["summary"]["max_busbw_gbytes_s"] == 298.1
    assert first["fabric"]["proven"] == "local"
    assert first["argv"][1:] == ["-b", "8", "-e", "134217728", "-f", "2", "-g", "2"]
    names = sorted(path.name for path in (tmp_path / "texts").iterdir())
    assert [re.sub(r"\d", "0", name) for name in names] == [
        "all_gather_LOCAL_00000000_000000.txt",
        "all_reduce_LOCAL_00000000_000000.txt",
    ]
    assert (tmp_path / "texts" / names[1]).read_text().split() == (
        SAMPLES / "nccl_all_reduce_h100x2.txt"
    ).read_text().split()


def test_a_result_of_two_nodes_is_named_by_what_was_used(tests: Path, tmp_path: Path) -> None:
    program(tests, "all_reduce_perf_mpi", "nccl_tests_219_mpi.txt", "nccl_log_socket.txt")
    env = {
        "NODE1_PRIVATE": "10.0.0.1",
        "NODE2_PRIVATE": "10.0.0.2",
        "COLLECTIVES": "all_reduce",
        "MIN_SIZE": "1M",
        "MAX_SIZE": "2M",
    }
    status, record = measure("nccl-benchmark-nodes", tests, tmp_path, FABRIC="tcp", **env)
    assert (status, record["valid"]) == ("ok", True), record["runs"]
    assert re.search(r"all_reduce_TCP_\d{8}_\d{6}\.txt$", record["runs"][0]["file"])
    words = (tmp_path / "programs" / "mpirun.words").read_text().splitlines()
    assert words[:6] == ["-np", "4", "-N", "2", "--host", "10.0.0.1:2,10.0.0.2:2"]
    assert "NCCL_NET=Socket" in words
    # NCCL falls back to TCP, and the program exits with 0.
    status, record = measure("nccl-benchmark-nodes", tests, tmp_path, **env)
    assert status == "failed"
    assert record["runs"][0]["doubts"] == ["efa is asked for, but NCCL used tcp (channels: 8 over tcp)"]
    assert "_TCP_" in record["runs"][0]["file"]
    assert "NCCL_NET=AWS Libfabric" in (tmp_path / "programs" / "mpirun.words").read_text().splitlines()


@pytest.mark.parametrize(
    ("table", "log", "status", "doubt"),
    [
        ("nccl_tests_219_no_driver.txt", "", 2, "it ended with status 2"),
        ("nccl_tests_219_wrong.txt", "nccl_log_p2p.txt", 7, "it failed: 4 checks found wrong values"),
        ("nccl_tests_219_bad_option.txt", "", 0, "there is no table in it"),
        ("nccl_tests_219_g4.txt", "nccl_log_p2p.txt", 0, "5 of 25 sizes were measured"),
        ("nccl_all_reduce_h100x2.txt", "nccl_log_socket.txt", 0, "local is asked for, but NCCL used tcp"),
    ],
)
def test_what_is_no_result_says_why(
    tests: Path, tmp_path: Path, table: str, log: str, status: int, doubt: str
) -> None:
    program(tests, "all_reduce_perf", table, log, status)
    ended, record = measure("nccl-benchmark", tests, tmp_path, COLLECTIVES="all_reduce")
    assert (ended, record["valid"]) == ("failed", False)
    assert doubt in "; ".join(record["runs"][0]["doubts"])


def test_a_cause_that_is_on_the_error_output_alone_is_found(tests: Path, tmp_path: Path) -> None:
    table, errors = "nccl_tests_219_too_many.txt", "nccl_tests_219_too_many.err.txt"
    assert "Invalid number of GPUs" not in (SAMPLES / table).read_text()
    program(tests, "all_reduce_perf", table, "nccl_log_p2p.txt", 5, errors)
    status, record = measure("nccl-benchmark", tests, tmp_path, COLLECTIVES="all_reduce")
    assert status == "failed"
    assert "no result: Invalid number of GPUs" in record["runs"][0]["doubts"][1]


def test_one_gpu_uses_no_fabric_whatever_the_log_says(tests: Path, tmp_path: Path) -> None:
    program(tests, "all_reduce_perf", "nccl_tests_219_one_gpu.txt", "nccl_log_net_aws.txt")
    sizes = {"NUM_GPUS": 1, "MIN_SIZE": "1M", "MAX_SIZE": "1M"}
    _, record = measure("nccl-benchmark", tests, tmp_path, COLLECTIVES="all_reduce", **sizes)
    assert "_LOCAL_" in record["runs"][0]["file"]
    assert record["runs"][0]["fabric"]["evidence"] == "one GPU: nothing leaves it"


def test_tests_that_are_not_installed_are_named_with_the_pack_that_builds_them(
    tests: Path, tmp_path: Path
) -> None:
    status, record = measure("nccl-benchmark", tests, tmp_path, COLLECTIVES="broadcast")
    assert status == "failed"
    assert record["runs"][0]["doubts"] == ["broadcast_perf is not installed: run setup-nccl-tests"]


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        ("nccl_tests_mpirun_no_host.err.txt", "ssh: connect to host 192.0.2.9 port 22: No route to host"),
        ("nccl_tests_mpirun_no_slots.err.txt", "There are not enough slots available in the system"),
        (
            "nccl_tests_mpirun_no_binary.err.txt",
            "mpirun was unable to launch the specified application as it could not access or execute",
        ),
        ("nccl_tests_mpirun_root.err.txt", "mpirun has detected an attempt to run as root."),
    ],
)
def test_what_mpirun_says_is_found_between_its_dashes(sample: str, said: str) -> None:
    assert nccl.cause((SAMPLES / sample).read_text()).startswith(said)
    assert nccl.cause("x: libnccl.so.2: cannot open\n" + "-" * 74 + "\nPrimary job terminated\n").startswith(
        "x: "
    )


MAKEFILE = """
%: ; @mkdir -p $(BUILDDIR); cp /bin/true $@; echo "$(@F) $(NVCC_GENCODE) $(MPI)" >> $(BUILDDIR)/made
"""


def test_the_tests_are_built_again_only_when_what_they_are_built_with_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, cuda, home = tmp_path / "source", tmp_path / "cuda", tmp_path / "built"
    (source / "src").mkdir(parents=True)
    (source / "src" / "Makefile").write_text(MAKEFILE)
    for words in (
        "init -q -b main",
        "add .",
        "-c user.name=a -c user.email=a@example.com commit -qm one",
        "tag v2.19.6",
    ):
        assert completed(["git", "-C", str(source), *words.split()]).returncode == 0
    for file, text in (
        ("bin/nvcc", "#!/bin/sh\necho 'Cuda compilation tools, release 12.8, V12.8.1'\n"),
        ("include/nccl.h", "#define NCCL_MAJOR 2\n#define NCCL_MINOR 28\n#define NCCL_PATCH 9\n"),
    ):
        (cuda / file).parent.mkdir(parents=True, exist_ok=True)
        (cuda / file).write_text(text)
        (cuda / file).chmod(0o755)
    env = {
        "NCCL_TESTS_REPOSITORY": f"file://{source}",
        "NCCL_TESTS_DIR": str(home),
        "CUDA_HOME": str(cuda),
        "NCCL_HOME": str(cuda),
        "GENCODE": "-gencode=arch=compute_90,code=sm_90",
        "COLLECTIVES": "all_reduce",
    }
    built = run("setup-nccl-tests", env=env)
    assert built.status == "ok", built.failures
    assert "all_reduce_perf -gencode=arch=compute_90" in (home / "build" / "made").read_text()
    with_what = (home / "build" / "built-with").read_text()
    assert "nccl-tests v2.19.6\nnvcc 12.8\nNCCL 2.28.9 in" in with_what
    stamp = (home / "build" / "built-with").stat().st_mtime_ns
    assert run("setup-nccl-tests", env=env).status == "ok"
    assert (home / "build" / "built-with").stat().st_mtime_ns == stamp
    assert (
        run("setup-nccl-tests", env={**env, "GENCODE": "-gencode=arch=compute_89,code=sm_89"}).status == "ok"
    )
    assert "compute_89" in (home / "build" / "made").read_text()
    # Another NCCL has come by an update.
    (cuda / "include" / "nccl.h").write_text(
        "#define NCCL_MAJOR 2\n#define NCCL_MINOR 29\n#define NCCL_PATCH 0\n"
    )
    assert run("setup-nccl-tests", env=env).status == "ok"
    assert "NCCL 2.29.0 in" in (home / "build" / "built-with").read_text()


def test_a_node_without_nvcc_or_gpu_is_told_what_to_do(tmp_path: Path) -> None:
    result = run(
        "setup-nccl-tests",
        env={"NCCL_TESTS_DIR": str(tmp_path / "t"), "CUDA_HOME": str(tmp_path), "NCCL_HOME": str(tmp_path)},
        only=["01-find-script", "05-build"],
    )
    tail = "".join(result.failures[0]["tail"])
    assert "to do: " in tail


def test_a_key_for_mpirun_is_made_and_let_in_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    assert run("setup-ssh-key").status == "ok"
    key = Path("results/ssh-key.pub").read_text().strip()
    assert key.startswith("ssh-ed25519 ")
    for _ in range(2):
        assert run("authorize-ssh-key", env={"PUBLIC_KEY": key}).status == "ok"
    assert (tmp_path / "home/.ssh/authorized_keys").read_text() == key + "\n"
    # Whoever has lost the public half gets it again.
    Path("results/ssh-key.pub").unlink()
    assert run("setup-ssh-key").status == "ok"
    assert Path("results/ssh-key.pub").read_text().strip() == key
    assert run("authorize-ssh-key", env={"PUBLIC_KEY": "ssh-rsa nonsense"}).status == "failed"
