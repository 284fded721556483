"""The packs that come with taskrunner."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from taskrunner import load, packs, run, validate
from taskrunner.model.lint import lint
from tests.helpers import Process

Cli = Callable[..., Process]
CHECKOUT = Path(__file__).parent.parent


@pytest.mark.parametrize("pack", list(packs.packs()), ids=lambda pack: pack.name)
def test_every_pack_is_valid_described_and_free_of_findings(pack: packs.Pack) -> None:
    assert validate(pack.path) == []
    assert pack.description
    assert json.loads(pack.path.read_text())["$schema"] == "schema/task-file.schema.json"
    findings = [problem for problem in lint(load(pack.path).document) if problem.rule != "no-guard"]
    assert findings == []


LOCKS = [*CHECKOUT.glob("requirements/*.txt"), *CHECKOUT.glob("tasks/setup-environment/*.txt")]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_lock_files_pin_everything_with_hashes_and_name_no_host(lock: Path) -> None:
    entry = r"[\w.-]+==[^\s;]+( ; [^\\\n]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+\n"
    assert re.fullmatch(f"({entry})+", lock.read_text())


def test_what_is_installed_from_lock_files_must_have_their_hashes() -> None:
    pack = json.loads((CHECKOUT / "tasks/setup-environment.json").read_text())
    lines = [line for task in pack["tasks"] for line in task.get("commands", [])]
    lines += (CHECKOUT / "scripts/setup").read_text().splitlines()
    installs = [line for line in lines if re.search(r"pip\b.* -r ", line)]
    assert len(installs) == 5
    assert all("--require-hashes" in line and "extra-index" not in line for line in installs)
    pinned = (CHECKOUT / "tasks/setup-environment/vllm-gpu.txt").read_text()
    for package in ("vllm", "nixl"):
        version = pack["variables"][f"{package.upper()}_VERSION"]["default"]
        assert f"\n{package}=={version} \\\n" in pinned


def test_quickstart_and_its_resume(cli: Cli, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--env", f"PORT={port}", "--env", f"DIR={tmp_path}/quick start"]
    failed = cli("quickstart", *options, "--env", "FAIL=yes")
    assert failed.returncode == 1
    assert "[OK] 07-stop" not in failed.stdout
    done = cli("tasks/quickstart.json", *options, "-v")
    assert done.returncode == 0, done.stdout
    assert "[SKIP] 03-take-a-while" in done.stdout
    assert "the server says: hello" in done.stdout
    assert "0 failed" in done.stdout


def test_check_environment_goes_on_after_a_failed_check(cli: Cli, tmp_path: Path) -> None:
    done = cli("check-environment", "--env", f"ENV_DIR={tmp_path}/none", "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    end = events[-1]
    assert done.returncode == 1
    assert end["ok"] + end["failed"] == 10
    assert {"03-vllm", "04-nixl", "06-mlflow", "08-gpudirect", "09-nccl-plugin"} <= set(end["failures"])
    for event in events:
        if event["type"] == "step.finished" and event["status"] == "failed":
            assert [line for line in event["tail"] if line.startswith("to do: ")], event


def test_an_arn_is_checked(tmp_path: Path) -> None:
    for arn, good in (
        ("arn:aws:sagemaker:us-east-1:123456789012:mlflow-tracking-server/x", True),
        ("arn:aws:s3:::x", False),
    ):
        fake = tmp_path / "env" / "tools" / "bin" / "python"
        fake.parent.mkdir(parents=True, exist_ok=True)
        fake.write_text("#!/bin/sh\necho mlflow 3\n")
        fake.chmod(0o755)
        result = run(
            "check-environment",
            only=["06-mlflow"],
            env={"ENV_DIR": str(tmp_path / "env"), "MLFLOW_TRACKING_ARN": arn},
        )
        assert (result.status == "ok") is good


def test_a_gpu_without_its_driver_is_refused_before_anything_is_installed(tmp_path: Path) -> None:
    result = run("setup-environment", env={"ENV_DIR": str(tmp_path / "env"), "PROFILE": "gpu"})
    assert [event["step"] for event in result.failures] == ["10-nvidia-driver"]
    assert "Deep Learning AMI" in "".join(result.failures[0]["tail"])


@pytest.mark.slow
def test_packs_and_schema_come_with_an_installed_wheel(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(CHECKOUT)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv", system_site_packages=False, with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", str(wheel)], check=True)

    def taskrunner(*args: str) -> str:
        program = str(tmp_path / "venv" / "bin" / "taskrunner")
        return subprocess.run(
            [program, *args], capture_output=True, text=True, check=True, cwd=tmp_path
        ).stdout

    assert [line.split()[0] for line in taskrunner("packs").splitlines()] == [
        pack.name for pack in packs.packs()
    ]
    assert json.loads(taskrunner("schema")) == json.loads(packs.schema_path().read_text())
    assert "07-stop" in taskrunner("quickstart", "--list")
    assert "07-stop" in taskrunner("tasks/quickstart.json", "--list")
    assert "would run" in taskrunner("setup-environment", "--dry-run", "--env", f"ENV_DIR={tmp_path}/env")


@pytest.mark.slow
def test_setup_environment_for_real(vllm_env: Path) -> None:
    """The CPU profile: real vLLM, NIXL, MLflow and the tiny model; a second run has nothing to do."""
    again = run("setup-environment", env={"ENV_DIR": str(vllm_env), "PROFILE": "cpu"}, check=True)
    assert (again.status, again.ok) == ("ok", 0)
    assert again.duration < 5
    checks = run("check-environment", only=["03-vllm", "04-nixl"], env={"ENV_DIR": str(vllm_env)})
    assert checks.ok == 2
