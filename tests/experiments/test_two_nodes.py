"""A sweep on two nodes, each with an engine of its own, that meet in a rendezvous."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.experiments.conftest import Bed
from tests.experiments.test_sweep import PLAN, index, write
from tests.fleet.conftest import nodes  # noqa: F401 - a fixture
from tests.helpers import Process, completed, runner_command, started_with, wait_for
from tests.relay import Relay
from tests.sshd import Sshd

ONE_BLOCK = {**PLAN, "replicates": {"blocks": 1}}


def words(bed: Bed) -> list[str]:
    own = {"RENDEZVOUS_PORT": bed.rendezvous, "NODE1_PRIVATE": "127.0.0.1", "NODE2_PRIVATE": "127.0.0.1"}
    return [*bed.words, *(f"--env={name}={value}" for name, value in own.items())]


def experiment(bed: Bed, *more: str) -> Process:
    return completed(runner_command("experiment", "tiny", *more, *words(bed)), timeout=300)


@pytest.fixture(autouse=True)
def two(nodes: Sshd) -> Sshd:  # noqa: F811
    text = Path("nodes.toml").read_text()
    text = text[: text.index("[nodes.node3]")]
    Path("nodes.toml").write_text(text + '[groups.both]\nnodes = ["node1", "node2"]\n')
    return nodes


def test_both_nodes_do_their_side_and_everything_is_measured_once(bed: Bed) -> None:
    write()
    done = experiment(bed, "run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 of 8 measured" in done.stdout
    assert "WARN" not in done.stdout
    assert sorted(bed.starts()) == sorted(["unified", "producer", "consumer"] * 2)
    again = experiment(bed, "run", "-q")
    assert (again.returncode, len(bed.starts())) == (0, 6), again.stdout + again.stderr


def test_tools_measure_between_both_nodes_before_any_server(bed: Bed) -> None:
    ping = {"id": "ping", "tool": "fi_pingpong", "provider": "tcp", "message_size": 64, "iterations": 100}
    write({**ONE_BLOCK, "layers": [{"id": "T", "patterns": [ping]}]})
    done = experiment(bed, "run", "-q")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 measured" in done.stdout
    (row,) = index()
    assert row["latency_us"] > 0
    assert experiment(bed, "run", "-q").returncode == 0
    assert index() == [row]


def test_blocks_are_dealt_out_to_pairs_of_nodes(bed: Bed, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.mkdir()
    other = Bed(second)
    text = Path("nodes.toml").read_text()
    for number, one in enumerate((bed, other), 1):
        env = {**one.env, "NODE1_PRIVATE": "127.0.0.1"}
        values = ", ".join(f'{name} = "{value}"' for name, value in env.items())
        text = text.replace(f"{{ N = {number} }}", f"{{ {values} }}")
    Path("nodes.toml").write_text(text)
    write({**PLAN, "layers": PLAN["layers"][:1]})
    words = ("experiment", "tiny", "run", "--pairs", "node1,node2", "-q")
    done = completed(runner_command(*words), timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 of 4 measured" in done.stdout
    assert (bed.starts(), other.starts()) == (["unified"], ["unified"])
    # The blocks of one pair are no blocks of the other.
    assert {path.parent.name for path in bed.env_dir.rglob("result.json")} == {"1"}
    assert {path.parent.name for path in other.env_dir.rglob("result.json")} == {"2"}
    # Nothing is measured on the first two nodes of another plan.
    write({**PLAN, "layers": PLAN["layers"][:1]}, "other.json")
    other_plan = completed(runner_command("experiment", "other", "collect"))
    assert (other_plan.returncode, "0 of 4 measured" in other_plan.stdout) == (1, True), other_plan.stderr
    mistyped = completed(runner_command("experiment", "tiny", "run", "--pairs", "node1:nod2", "-q"))
    assert (mistyped.returncode, "no node 'nod2'" in mistyped.stderr) == (2, True), mistyped.stderr


def test_a_decode_server_that_cannot_start_is_known_at_once_and_the_rest_goes_on(bed: Bed) -> None:
    write(ONE_BLOCK)
    (bed.faults / "consumer").write_text("refuse always")
    began = time.monotonic()
    done = experiment(bed, "run", "-q")
    assert (done.returncode, time.monotonic() - began < 90) == (1, True), done.stdout + done.stderr
    assert "2 of 4 measured" in done.stdout
    assert "runner experiment tiny run pt-cpu-32-c1 pt-cpu-64-c1 --env" in done.stderr


def test_the_sweep_goes_on_without_its_controller_and_is_collected_afterwards(bed: Bed) -> None:
    write(ONE_BLOCK)
    with subprocess.Popen(
        runner_command("experiment", "tiny", "run", *words(bed)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as controller:
        wait_for(lambda: bool(bed.starts()), 60)
        os.killpg(controller.pid, signal.SIGKILL)
        controller.communicate()
    results = bed.env_dir / "results" / "tiny"
    wait_for(lambda: len(list(results.rglob("result.json"))) == 4, seconds=60)
    wait_for(lambda: "nothing is running" in completed(runner_command("status", "both")).stdout, seconds=60)
    assert len(list(Path("results").rglob("result.json"))) < 4
    done = experiment(bed, "collect")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 of 4 measured" in done.stdout
    assert [row["valid"] for row in index()] == [True] * 4


def test_a_node_whose_engine_is_killed_is_started_again_and_nothing_is_measured_twice(
    bed: Bed, two: Sshd
) -> None:
    write()
    controller = subprocess.Popen(
        runner_command("experiment", "tiny", "run", *words(bed)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    results = bed.env_dir / "results" / "tiny"
    wait_for(lambda: len(list(results.rglob("result.json"))) > 2, 60)
    # The engine, and whatever else runs from its folder.
    for pid, line in started_with(f"{two.state}/2").items():
        if "engine" in line:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    controller.send_signal(signal.SIGINT)
    time.sleep(0.5)
    controller.kill()
    controller.communicate()
    assert experiment(bed, "cancel").returncode == 0
    before = {path: path.stat().st_mtime_ns for path in results.rglob("result.json") if counts(path)}
    done = experiment(bed, "run", "-q")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 of 8 measured" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before


def counts(path: Path) -> bool:
    results = json.loads(path.read_text())["results"]
    return bool(results["valid"] and not results["doubtful"])


def test_a_cut_between_the_nodes_is_waited_out(bed: Bed) -> None:
    relay = Relay(bed.rendezvous)
    text = Path("nodes.toml").read_text()
    for number, port in ((1, bed.rendezvous), (2, relay.port)):
        text = text.replace(f"{{ N = {number} }}", f"{{ RENDEZVOUS_PORT = {port} }}")
    Path("nodes.toml").write_text(text)
    write(ONE_BLOCK)
    own = [f"--env=NODE{number}_PRIVATE=127.0.0.1" for number in (1, 2)]
    results = bed.env_dir / "results" / "tiny"
    with subprocess.Popen(
        runner_command("experiment", "tiny", "run", "-q", *bed.words, *own),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as controller:
        try:
            wait_for(lambda: list(results.glob("*/1/result.json")), 60, "a result")
            # Longer than a request to the rendezvous waits.
            relay.swallow = True
            relay.cut()
            time.sleep(7)
            relay.swallow = False
            shown, _ = controller.communicate(timeout=120)
        finally:
            relay.close()
            controller.kill()
    assert (controller.returncode, "4 of 4 measured" in shown) == (0, True), shown
    assert sorted(bed.starts()) == ["consumer", "producer", "unified"]


def test_a_second_sweep_of_the_same_plan_is_refused_while_one_is_under_way(bed: Bed) -> None:
    write()
    assert experiment(bed, "run", "--detach", "-q").returncode == 0
    second = experiment(bed, "run", "-q")
    assert (second.returncode, "a sweep of tiny is under way" in second.stderr) == (4, True), second.stderr
    attached = experiment(bed, "attach")
    assert attached.returncode == 0, attached.stdout + attached.stderr
    assert "8 of 8 measured" in attached.stdout
