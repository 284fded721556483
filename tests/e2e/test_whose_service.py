"""Which server is meant, whose it is, and when it is ready."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskrunner import run, start
from taskrunner.engine.run import ports
from tests.e2e.steps import ran
from tests.helpers import left_of
from tests.sshd import Sshd, free_port

Write = Callable[..., Path]


def test_a_service_whose_program_does_not_exist_fails(write: Write) -> None:
    for line in (["/no/such/program"], "no-such-program --port 1", "exit 0"):
        result = run(write({"id": "a", "service": {"name": "s", "command": line}}))
        assert "exited before it was ready" in result.failures[0]["detail"]


def test_ready_is_told_by_a_port_of_the_services_own(write: Write, home: Path) -> None:
    port = free_port()
    other = f"exec {sys.executable} -m http.server {port} --bind 127.0.0.1"
    path = write(
        {"id": "b", "commands": [f"(sleep 0.5; {other}) > /dev/null 2>&1 &"]},
        {
            "id": "a",
            "service": {
                "name": "s",
                "command": "sleep 60",
                "stop_timeout": 1,
                "ready": {"http": f"http://127.0.0.1:{port}/", "timeout": 2},
            },
        },
    )
    result = run(path)
    assert f"port {port} does not belong to the service: it is in use by pid" in result.failures[0]["detail"]
    for pid in left_of(home):
        os.kill(pid, 9)


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("", True),
        ("localhost", True),
        ("0.0.0.0", True),
        ("127.0.0.2", True),
        ("192.0.2.1", False),
        ("no such host", False),
    ],
)
def test_a_host_is_this_machine_when_its_address_can_be_bound(host: str, here: bool) -> None:
    assert ports.is_local(host) is here


def test_two_projects_have_services_of_the_same_name(write: Write, home: Path) -> None:
    for name in ("one", "two"):
        command = f"echo {name} >> ran; echo up; sleep 60"
        service = {"name": "web app", "command": command, "ready": {"log": "^up"}}
        assert run(write({"id": "s", "service": service}, file=f"work/{name}/serve.json")).ok == 1
        assert run(write({"id": "s", "service": service}, file=f"work/{name}/again.json")).skipped == 1
    assert ran() == ["one", "two"]
    alive = len(left_of(home))
    run(write({"id": "x", "service": {"name": "web app", "state": "stopped"}}, file="work/one/stop.json"))
    assert 0 < len(left_of(home)) < alive
    run(write({"id": "x", "service": {"name": "web app", "state": "stopped"}}, file="work/two/stop.json"))
    assert not left_of(home)


def test_a_server_is_what_it_is_started_with(write: Write, home: Path) -> None:
    def served(seconds: int, **other: Any) -> str:
        service = {
            "name": "s",
            "command": f"echo started >> ../ran; echo up; sleep {seconds}",
            "cwd": "here",
            "ready": {"log": "^up"},
            **other,
        }
        run(write({"id": "a", "service": service}))
        return " ".join(ran())

    Path("here").mkdir()
    assert served(60) == "started"
    assert served(60, cwd=str(Path("here").absolute())) == ""
    assert served(61, keep_if='[ -d "$TASKRUNNER_SERVICE" ] && [[ $TASKRUNNER_COMMAND == *61 ]]') == ""
    assert served(61, keep_if="false") == "started"
    assert served(61, env={"A": 1}) == "started"
    run(write({"id": "x", "service": {"name": "s", "state": "stopped"}}))


def test_two_projects_on_one_node_do_not_meet(write: Write, sshd: Sshd) -> None:
    def project(name: str, file: str, git: str = "") -> Path:
        path = write({"id": "a", "commands": ["echo ran >> ran"]}, file=f"work/{name}/{file}")
        if git:
            config = path.parents[file.count("/")] / ".git" / "config"
            config.parent.mkdir(exist_ok=True)
            config.write_text(f'[core]\n\tbare = false\n[remote "origin"]\n\turl = {git}\n')
        return path

    for name in ("one", "two"):
        assert run(project(name, "tasks/setup.json"), on=sshd.target).ok == 1
    assert run(project("one", "tasks/setup.json"), on=sshd.target).skipped == 1
    # Two checkouts of one repository are one project.
    assert run(project("mine", "tasks/t.json", "git@host:testbed.git"), on=sshd.target).ok == 1
    assert run(project("yours", "tasks/t.json", "git@host:testbed.git"), on=sshd.target).skipped == 1
    assert run(project("fork", "tasks/t.json", "git@host:other.git"), on=sshd.target).ok == 1


def test_two_runs_that_want_one_service_start_it_once(write: Write, home: Path) -> None:
    service = {
        "name": "web",
        "command": "echo started >> ran; sleep 0.5; touch up; sleep 60",
        "ready": {"file": "up"},
    }
    paths = [write({"id": "s", "service": service}, file=f"work/{name}.json") for name in "ab"]
    begun = [start(path) for path in paths]
    assert sorted(each.result().ok for each in begun) == [0, 1]
    assert ran() == ["started"]
    run(write({"id": "x", "service": {"name": "web", "state": "stopped"}}, file="work/stop.json"))
    assert not left_of(home)


def test_a_service_of_a_large_command_starts(write: Write) -> None:
    service = {"name": "s", "command": f": {'x' * 140_000}; sleep 60", "ready": {"log": "^"}}
    assert (
        run(
            write(
                {"id": "s", "service": service},
                {"id": "x", "always": True, "service": {"name": "s", "state": "stopped"}},
            )
        ).ok
        == 2
    )
