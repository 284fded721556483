"""Services: started once, kept while they are well, stopped as a whole; real servers, real ports."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taskrunner import Result, run
from taskrunner.engine.run import ports
from tests.helpers import left_of, wait_for

Write = Callable[..., Path]


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def serve(write: Write, port: int, home: Path) -> Iterator[Callable[..., tuple[Result, list[Any]]]]:
    def serve(**members: Any) -> tuple[Result, list[Any]]:
        service = {
            "name": "web",
            "command": f"exec python3 -m http.server {port} --bind 127.0.0.1",
            "ready": {"http": f"http://127.0.0.1:{port}/", "timeout": 20},
            **members,
        }
        events: list[Any] = []
        result = run(
            write({"id": "serve", "service": service}, file="work/serve.json"), on_event=events.append
        )
        return result, [event["state"] for event in events if event["type"] == "service"]

    yield serve
    run(write({"id": "stop", "service": {"name": "web", "state": "stopped"}}, file="work/stop.json"))


def test_started_kept_replaced_stopped(serve: Any, write: Write, port: int, home: Path) -> None:
    assert serve()[1] == ["starting", "ready"]
    result, states = serve()
    assert (states, result.skipped) == (["kept"], 1)
    assert serve(env={"X": "1"})[1] == ["stopping", "stopped", "starting", "ready"]
    stop = write({"id": "stop", "service": {"name": "web", "state": "stopped"}}, file="work/stop.json")
    assert run(stop).ok == 1
    assert port not in ports.listening(None)
    assert not left_of(home)
    assert run(stop).skipped == 1


def test_a_server_that_exits_fails_at_once_with_its_log(serve: Any) -> None:
    result, _ = serve(command="echo loading; echo 'no such model' >&2; exit 3")
    detail = result.failures[0]["detail"]
    assert "exited before it was ready" in detail
    assert "no such model" in detail
    assert result.duration < 5


def test_fail_on_ends_the_wait_at_once(serve: Any, home: Path) -> None:
    result, _ = serve(
        command="echo 'torch: CUDA out of memory. Tried'; sleep 60", fail_on=["CUDA out of memory", "x{2}"]
    )
    assert "CUDA out of memory. Tried" in result.failures[0]["detail"]
    assert result.duration < 5


def test_the_cause_is_told_not_what_is_logged_first(serve: Any) -> None:
    """The first of `fail_on` that matches, though others were logged before it; nobody waits for its end."""
    result, _ = serve(
        command="trap '' TERM; echo 'engine failed to start'; sleep 0.3; echo 'ValueError: too little memory'; sleep 77",
        fail_on=["ValueError: .*", "failed to start"],
        stop_timeout=60,
    )
    assert "ValueError: too little memory" in result.failures[0]["detail"]
    assert result.duration < 15


def test_a_server_that_is_not_ready_in_time_is_ended(serve: Any, home: Path, port: int) -> None:
    result, _ = serve(command="sleep 60", ready={"tcp": f"127.0.0.1:{port}", "timeout": 0.5})
    assert "was not ready" in result.failures[0]["detail"]
    assert not left_of(home)


def test_a_port_of_somebody_else_is_not_taken_for_readiness(serve: Any, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        result, _ = serve(ready={"tcp": f"127.0.0.1:{port}"})
    assert f"port {port} is already in use by pid" in result.failures[0]["detail"]


def test_a_tree_with_a_process_that_has_left_the_session_is_stopped(serve: Any, home: Path) -> None:
    serve(command="setsid sleep 77 & touch up; sleep 78", ready={"log": "never", "timeout": 0.5})
    assert not left_of(home)


@pytest.mark.parametrize("wanted", [{"file": "there"}, {"log": {"path": "there", "pattern": "re.dy$"}}])
def test_wait_for(write: Write, wanted: dict[str, Any]) -> None:
    path = write(
        {"id": "a", "commands": ["(sleep 0.3; echo ready > there) &"], "wait_for": {**wanted, "timeout": 10}}
    )
    assert run(path).status == "ok"
    assert run(path).status == "ok"
    Path("there").unlink()
    late = write({"id": "a", "wait_for": {**wanted, "timeout": 0.2}})
    assert run(late).failures[0]["cause"] == "wait_for"


def test_what_a_killed_server_has_left_is_stopped(serve: Any, home: Path, port: int) -> None:
    """A child without the tag in its environment holds the port after its parent's death."""
    import json
    import os

    line = f"env -i {sys.executable} -m http.server {port} --bind 127.0.0.1 & wait"
    assert serve(command=line)[1] == ["starting", "ready"]
    record = json.loads(next(home.glob("services/web.*/service.json")).read_text())
    os.kill(record["pid"], 9)
    wait_for(lambda: not Path(f"/proc/{record['pid']}").exists())
    assert serve(command=f"{line} # anew")[1] == ["stopping", "stopped", "starting", "ready"]
