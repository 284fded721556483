"""Runs on the nodes of a job of a real Slurm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from taskrunner import SlurmTransport, TargetError, UsageError, attach, run, start
from taskrunner.transports import connect
from tests.helpers import Process, runner_command, started, wait_for
from tests.slurm import Cluster, cluster

Write = Callable[..., Path]
LOGS = ".local/state/taskrunner/runs/*/logs/*ticks*"
TICKS = {
    "id": "ticks",
    "commands": ["for i in $(seq 60); do echo tick $i; [ -e go ] && exit; sleep 0.2; done; exit 1"],
}


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    with cluster() as made:
        yield made


@pytest.fixture
def job(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A job that holds two nodes and runs nothing; they share a home."""
    monkeypatch.setenv("SLURM_CONF", str(slurm.conf))
    monkeypatch.setenv("HOME", str(tmp_path))
    allocated = slurm.allocate()
    yield allocated
    slurm.ask("scancel", allocated)
    wait_for(lambda: not slurm.ask("squeue", "-h", "-j", allocated).strip(), 60, "the end of the job")


def step_processes(slurm: Cluster) -> list[int]:
    """The srun processes that hold the steps of runs, on this machine."""
    clients = started(f"SLURM_CONF={slurm.conf}")
    return [pid for pid, line in clients.items() if "--output=/dev/null" in line]


def test_steps_run_on_the_node_and_once(write: Write, job: str, tmp_path: Path) -> None:
    (tmp_path / "work" / "given").write_text("content")
    path = write(
        {
            "id": "a",
            "commands": ["echo $SLURMD_NODENAME $WORD $CUDA_VISIBLE_DEVICES > made"],
            "outputs": [{"from": "made", "to": "got"}],
        },
        {"id": "b", "files": [{"from": "given", "to": "there"}], "commands": ["cat there"]},
        variables={"WORD": "w"},
    )
    target = f"slurm://{job}/node2"
    assert run(path, on=target).ok == 2
    assert (tmp_path / "work" / "got").read_text() == "node2 w 0\n"
    assert run(path, on=target).skipped == 2


def test_a_run_outlives_the_command_and_its_machine(
    write: Write, job: str, slurm: Cluster, tmp_path: Path
) -> None:
    path = write(TICKS)
    target = f"slurm://{job}/node1"
    words = [sys.executable, "-m", "taskrunner", str(path), "--on", target]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as killed:
        wait_for(lambda: any("tick 5" in log.read_text() for log in tmp_path.glob(LOGS)), 30, "ticks")
        killed.kill()
    holders = wait_for(lambda: step_processes(slurm))
    # As when this machine goes down: srun's second process would end the step of one that dies alone.
    for sign in (signal.SIGSTOP, signal.SIGKILL):
        for pid in holders:
            os.kill(pid, sign)
    (tmp_path / "go").touch()
    (found,) = (tmp_path / ".local/state/taskrunner/runs").iterdir()
    again = attach(found.name, connect(target))
    assert (again.result().ok, again.id) == (1, found.name)
    again.transport.close()


def test_the_same_command_attaches(
    write: Write, job: str, cli: Callable[..., Process], tmp_path: Path
) -> None:
    path = write(TICKS)
    target = f"slurm://{job}/node1"
    assert cli(path, "--on", target, "--detach").returncode == 0
    words = [sys.executable, "-m", "taskrunner", str(path), "--on", target]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as second:
        assert second.stdout is not None
        assert "attached to run" in second.stdout.readline()
        (tmp_path / "go").touch()
        assert "[OK] ticks" in second.stdout.read()
    assert second.returncode == 0


def test_a_service_outlives_its_run_and_ends_with_the_job(write: Write, job: str, slurm: Cluster) -> None:
    path = write({"id": "a", "service": {"name": "s", "command": "echo up; exec sleep 1234.5"}})
    target = f"slurm://{job}/node1"

    def serving() -> list[str]:
        found = subprocess.run(["pgrep", "-f", "^sleep 1234.5"], capture_output=True, text=True, check=False)
        return found.stdout.split()

    assert run(path, on=target).ok == 1
    before = serving()
    assert len(before) == 1
    assert run(path, on=target).skipped == 1
    assert serving() == before
    slurm.ask("scancel", job)
    wait_for(lambda: not serving(), 60, "the end of the server")


def test_a_run_that_is_cancelled_cleans_up(write: Write, job: str, tmp_path: Path) -> None:
    path = write(TICKS, {"id": "clean", "always": True, "commands": ["touch cleaned"]})
    with start(path, on=f"slurm://{job}/node1") as begun:
        for event in begun.events():
            if event["type"] == "step.started" and event["step"] == "ticks":
                begun.cancel()
        assert begun.result().status == "cancelled"
    begun.transport.close()
    assert (tmp_path / "cleaned").exists()


def test_a_lost_connection_is_made_again(write: Write, job: str, tmp_path: Path) -> None:
    node = SlurmTransport(f"slurm://{job}/node1")
    with start(write(TICKS), on=node) as begun:
        seen = []
        for event in begun.events():
            seen.append(event["type"])
            if event["type"] == "step.started":
                process = node.dialer._process
                assert process is not None
                process.kill()
            if event["type"] == "connection" and event["state"] == "back":
                (tmp_path / "go").touch()
        assert begun.result().ok == 1
    assert seen.count("connection") == 2
    node.close()


def test_files_go_and_come(job: str, tmp_path: Path) -> None:
    node = SlurmTransport(f"slurm://{job}/node1")
    data = os.urandom(3 << 20)
    (tmp_path / "a file").write_bytes(data)
    assert node.put(tmp_path / "a file", "copies/") == 1
    assert node.put(tmp_path / "a file", "copies/") == 0
    assert node.get("copies/a file", tmp_path / "back") == 1
    assert (tmp_path / "back").read_bytes() == data
    assert "node1" in node.name
    node.close()


def test_verbs_of_runner(job: str, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE1_IP", "node1")
    monkeypatch.setenv("NODE1_JOB", job)

    def runner(*words: str) -> Process:
        return subprocess.run(runner_command(*words), capture_output=True, text=True, timeout=60, check=False)

    path = write({"id": "a", "commands": ["echo here"]})
    assert runner("run-node1", str(path)).returncode == 0
    listed = runner("nodes")
    assert (listed.returncode, "Python 3" in listed.stdout) == (0, True), listed.stdout
    assert "ok" in runner("status").stdout
    assert runner("shell", "node1", "--", "echo", "$HOME").stdout == "$HOME\n"


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("slurm://{job}/node4", "node4 of job {job}: not a node of it"),
        ("slurm://999/node1", "node1 of job 999: the job has ended, or never was"),
    ],
)
def test_a_node_that_is_not_there(job: str, target: str, said: str) -> None:
    began = time.monotonic()
    with pytest.raises(TargetError, match=said.format(job=job)):
        connect(target.format(job=job)).open()
    assert time.monotonic() - began < 10  # it is not tried again


@pytest.mark.parametrize(
    "target", ["slurm://1", "slurm://a/b", "slurm://1/a/b", "slurm://1/--output=x", "slurm://"]
)
def test_what_is_no_target(target: str) -> None:
    with pytest.raises(UsageError, match="is not a target"):
        connect(target)


def test_a_job_that_waits(job: str, slurm: Cluster, tmp_path: Path) -> None:
    words = ["sbatch", "--parsable", "--begin=now+1hour", "--output=/dev/null", "--wrap", "true"]
    waiting = slurm.ask(*words).strip()
    with pytest.raises(TargetError, match=f"node1 of job {waiting}: the job is pending"):
        connect(f"slurm://{waiting}/node1", connect_timeout=1).open()
    slurm.ask("scancel", waiting)


def test_no_python(job: str) -> None:
    with pytest.raises(TargetError, match="there is no /no/such/python3 on the node"):
        connect(f"slurm://{job}/node1", python="/no/such/python3").open()


def test_no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match="there is no squeue on this machine"):
        connect("slurm://1/node1").open()


def test_a_job_that_ends_under_a_run(write: Write, job: str, slurm: Cluster) -> None:
    with start(write(TICKS), on=f"slurm://{job}/node1") as begun, pytest.raises(TargetError) as caught:  # noqa: PT012
        for event in begun.events():
            if event["type"] == "step.started":
                slurm.ask("scancel", job)
    assert "the job has ended" in str(caught.value)
