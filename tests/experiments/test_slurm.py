"""Sweeps as jobs of a real Slurm; the servers compute nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.experiments.conftest import Bed
from tests.experiments.test_sweep import PLAN, index, write
from tests.helpers import completed, runner_command, started, started_with, wait_for
from tests.slurm import Cluster, cluster

SLOW = {**PLAN, "common_settings": {**PLAN["common_settings"], "measurement_iterations": 40}}


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    with cluster() as made:
        yield made


@pytest.fixture(autouse=True)
def submitted_there(slurm: Cluster, bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", str(slurm.conf))
    # All nodes of this cluster are one machine.
    monkeypatch.setenv("NODE1_PRIVATE", "127.0.0.1")
    monkeypatch.setenv("NODE2_PRIVATE", "127.0.0.1")
    bed.env["RENDEZVOUS_PORT"] = bed.rendezvous


def submit(bed: Bed, *more: object) -> str:
    done = bed.experiment("tiny", "run", "--on", "slurm", *more)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"submitted: (\d+)", done.stdout)
    assert found, done.stdout
    return found[1]


def ended(slurm: Cluster, job: str) -> None:
    wait_for(lambda: not slurm.ask("squeue", "-h", "-j", job, "-o", "%T").strip(), 120, f"the end of {job}")


def log(job: str) -> str:
    return "".join(path.read_text() for path in Path("results/tiny").glob(f"slurm-{job}-*.log"))


def measured() -> dict[str, str]:
    return {str(path): path.read_text() for path in Path("results/tiny").glob("*/*/result.json")}


def go_on(slurm: Cluster, job: str) -> None:
    """A job that is requeued waits for two minutes."""

    def started() -> bool:
        slurm.ask("scontrol", "update", f"JobId={job}", "StartTime=now")
        shown = slurm.ask("scontrol", "show", "job", job)
        return "Restarts=1" in shown and "JobState=RUNNING" in shown

    wait_for(started, 120, "requeue")


def measures_the_rest_once(bed: Bed, slurm: Cluster, job: str, before: dict[str, str]) -> None:
    """The job goes on to its end, and leaves the results of `before` as they are."""
    go_on(slurm, job)
    ended(slurm, job)
    done = bed.experiment("tiny", "status", "--on", "slurm")
    assert (done.returncode, "8 of 8 measured" in done.stdout) == (0, True), log(job)
    assert [path for path, text in before.items() if Path(path).read_text() != text] == []


def test_a_job_measures_everything_on_two_nodes(bed: Bed, slurm: Cluster) -> None:
    write()
    job = submit(bed)
    second = bed.experiment("tiny", "run", "--on", "slurm")
    assert (second.returncode, f"job {job} of tiny is" in second.stderr) == (4, True), second.stderr
    assert f"as job {job}" in bed.experiment("tiny", "status", "--on", "slurm").stdout
    wait_for(lambda: started("CUDA_VISIBLE_DEVICES=0"), 60, "a step with the devices of the job")
    ended(slurm, job)
    done = bed.experiment("tiny", "collect", "--on", "slurm")
    assert (done.returncode, "8 of 8 measured" in done.stdout) == (0, True), log(job)
    assert [row["valid"] for row in index()] == [True] * 8


def test_a_job_that_is_requeued_goes_on_at_the_next_pattern(bed: Bed, slurm: Cluster) -> None:
    write(SLOW)
    job = submit(bed)
    wait_for(lambda: len(measured()) > 2, 90, "two results")
    slurm.ask("scontrol", "requeue", job)
    before = measured()
    measures_the_rest_once(bed, slurm, job, before)


def test_a_job_that_is_preempted_stops_its_servers_and_goes_on_afterwards(bed: Bed, slurm: Cluster) -> None:
    write(SLOW)
    job = submit(bed)
    wait_for(lambda: len(measured()) > 1, 90, "a result")
    urgent = ["sbatch", "--parsable", "-p", "urgent", "-N", "4", "--exclusive", "-o", "/dev/null"]
    other = slurm.ask(*urgent, "--wrap", "sleep 2").strip()
    ended(slurm, other)
    # Slurm ends all that the job has started, at the latest after KillWait.
    wait_for(lambda: not started_with(os.environ["TASKRUNNER_HOME"]), 30, "the end of its servers")
    before = measured()
    measures_the_rest_once(bed, slurm, job, before)


def test_a_job_whose_node_goes_down_goes_on_at_the_next_pattern_on_another(bed: Bed, slurm: Cluster) -> None:
    write(SLOW)
    job = submit(bed)
    wait_for(lambda: len(measured()) > 2, 90, "two results")
    nodes = slurm.ask("squeue", "-h", "-j", job, "-o", "%N").strip()
    lost = slurm.ask("scontrol", "show", "hostnames", nodes).split()[1]
    slurm.kill_node(lost)
    try:
        before = measured()
        measures_the_rest_once(bed, slurm, job, before)
    finally:
        slurm.start_node(lost)


def test_a_job_that_reaches_its_time_limit_requeues_itself(bed: Bed, slurm: Cluster) -> None:
    # The signal comes two minutes before the end of three.
    slow = {**SLOW["common_settings"], "measurement_iterations": 4000}
    write({**SLOW, "common_settings": slow, "requests": {"per_start": 4000, "per_concurrency": 1}})
    job = submit(bed, "U", "--time", "2", "--blocks", 1)
    wait_for(lambda: "BeginTime" in slurm.ask("squeue", "-h", "-j", job, "-o", "%r"), 120, "requeue")
    assert "cancelled: " in log(job)
    cancelled = bed.experiment("tiny", "cancel", "--on", "slurm")
    assert f"cancelled: {job}" in cancelled.stdout
    ended(slurm, job)


def test_a_job_that_is_cancelled_leaves_nothing_running(bed: Bed, slurm: Cluster) -> None:
    write(SLOW)
    job = submit(bed)
    wait_for(lambda: len(measured()) > 1, 90, "a result")
    assert bed.experiment("tiny", "cancel", "--on", "slurm").returncode == 0
    ended(slurm, job)
    wait_for(lambda: not started_with(os.environ["TASKRUNNER_HOME"]), 30, "the end of its servers")
    kept = {path for path, text in measured().items() if json.loads(text)["results"]["valid"]}
    assert kept
    resumed = submit(bed)
    ended(slurm, resumed)
    assert "8 of 8 measured" in bed.experiment("tiny", "status", "--on", "slurm").stdout, log(resumed)


def test_a_sweep_on_the_nodes_of_a_job_that_is_held_goes_on_without_its_controller(
    bed: Bed, slurm: Cluster, tmp_path: Path
) -> None:
    job = slurm.allocate()
    nodes = [
        f'[nodes.node{number}]\naddress = "node{number}"\nprivate = "127.0.0.1"\njob = "{job}"\nstate = "{tmp_path}/{number}"\n'
        for number in (1, 2)  # one machine here: each needs a state of its own
    ]
    Path("nodes.toml").write_text("".join(nodes))
    write()
    words = runner_command("experiment", "tiny", "run", "-q", *bed.words)
    try:
        with subprocess.Popen(words, start_new_session=True) as controller:
            wait_for(lambda: bool(measured_there(bed)), 60, "the first result")
            os.kill(controller.pid, signal.SIGKILL)
        wait_for(lambda: len(measured_there(bed)) == 8, 120, "all results")
        assert len(measured()) < 8
        done = completed(runner_command("experiment", "tiny", "attach", *bed.words), timeout=120)
        assert (done.returncode, "8 of 8 measured" in done.stdout) == (0, True), done.stdout + done.stderr
        assert len(index()) == len(measured()) == 8
        assert sorted(bed.starts()) == sorted(["unified", "producer", "consumer"] * 2)
    finally:
        slurm.ask("scancel", job)
        ended(slurm, job)


def measured_there(bed: Bed) -> list[Path]:
    return list((bed.env_dir / "results" / "tiny").rglob("result.json"))
