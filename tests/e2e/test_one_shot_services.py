"""Servers for one client: looked at without a connection, started anew, ended by themselves."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskrunner import Result, run
from tests.helpers import left_of
from tests.sshd import free_port

Write = Callable[..., Path]
CLOSES = """
import pathlib, socket, sys, time
port, status = map(int, sys.argv[1:])
server = socket.create_server(("127.0.0.1", port))
connection, _ = server.accept()
server.close()
time.sleep(2)
sys.exit(status)
"""
SERVER = """
import pathlib, socket, sys
port, status = map(int, sys.argv[1:])
with socket.create_server(("127.0.0.1", port)) as server:
    connection, _ = server.accept()
    with connection, pathlib.Path("served").open("a") as served:
        served.write((connection.recv(9) or b"nothing").decode() + chr(10))
sys.exit(status)
"""
CLIENT = "import socket; socket.create_connection(('127.0.0.1', {})).sendall(b'hello')"


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def tasks(write: Write, port: int) -> Callable[..., Path]:
    Path("server.py").write_text(SERVER)
    Path("client.py").write_text(CLIENT.format(port))

    def tasks(status: int = 0, client: str = f"{sys.executable} client.py", within: float = 10) -> Path:
        command = f"exec {sys.executable} server.py {port} {status}"
        service = {"name": "one", "command": command, "one_shot": True, "ready": {"listen": port}}
        end = {"name": "one", "state": "ended", "stop_timeout": within}
        return write(
            {"id": "serve", "service": service},
            {"id": "measure", "skip_if": "false", "commands": [client]},
            {"id": "end", "service": end},
        )

    return tasks


def detail(result: Result) -> str:
    return str(result.failures[0]["detail"])


def test_its_client_is_the_first_to_connect_and_each_run_has_a_server_of_its_own(
    tasks: Callable[..., Path], home: Path
) -> None:
    for count in (1, 2):
        assert run(tasks()).ok == 3
        assert Path("served").read_text() == "hello\n" * count
    assert not left_of(home)


def test_the_end_of_a_server_that_failed_fails_with_its_status(tasks: Callable[..., Path]) -> None:
    assert "one ended with status 7" in detail(run(tasks(status=7)))


def test_a_server_that_nobody_asked_is_stopped_when_its_end_is_awaited(
    tasks: Callable[..., Path], home: Path
) -> None:
    assert "one did not end by itself within 0.3 s, and was stopped" in detail(
        run(tasks(client="true", within=0.3))
    )
    assert not left_of(home)


def test_a_server_whose_run_was_cut_off_is_started_anew(tasks: Callable[..., Path], write: Write) -> None:
    assert run(tasks(client="false")).status == "failed"
    assert run(tasks()).ok == 3
    assert Path("served").read_text() == "hello\n"


def test_a_server_that_has_served_before_anybody_looked_is_ready(write: Write, port: int) -> None:
    service = {"name": "quick", "command": "true", "one_shot": True, "ready": {"listen": port}}
    assert (
        run(
            write(
                {"id": "a", "service": service}, {"id": "b", "service": {"name": "quick", "state": "ended"}}
            )
        ).ok
        == 2
    )
    service["command"] = "exit 3"
    assert "exited before it was ready" in detail(run(write({"id": "a", "service": service})))


def test_a_server_that_closes_its_socket_when_its_client_has_come_is_ready(
    tasks: Callable[..., Path], write: Write, port: int
) -> None:
    """Its client comes before anybody has looked, and stays."""
    path = tasks(client="true")
    Path("server.py").write_text(CLOSES)
    loop = f"""
import socket, time
while True:
    try:
        connection = socket.create_connection(("127.0.0.1", {port}))
        break
    except OSError:
        time.sleep(0.001)
time.sleep(3)
"""
    with subprocess.Popen([sys.executable, "-c", loop]):
        assert run(path).ok == 3


def test_a_port_that_somebody_else_listens_on_is_refused_without_a_connection(
    tasks: Callable[..., Path], port: int
) -> None:
    import socket

    with socket.create_server(("127.0.0.1", port)) as other:
        assert f"port {port} is already in use by pid" in detail(run(tasks()))
        other.settimeout(0)
        with pytest.raises(BlockingIOError):
            other.accept()


def test_an_earlier_status_is_not_that_of_the_next_server(write: Write) -> None:
    end = {"id": "end", "service": {"name": "s", "state": "ended"}}
    assert run(write({"id": "a", "service": {"name": "s", "command": "true", "one_shot": True}}, end)).ok == 2
    path = write(
        {"id": "a", "service": {"name": "s", "command": "sleep 1.5; exit 3"}}, end, file="work/b.json"
    )
    assert "was killed" in detail(run(path))


def test_what_was_never_started_cannot_end(write: Write) -> None:
    path = write({"id": "a", "service": {"name": "none", "state": "ended"}})
    assert "none has not been started" in detail(run(path))


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"wait_for": {"listen": 80}}, '"listen" asks a service'),
        (
            {"service": {"name": "s", "command": "true", "ready": {"listen": "<<P>>"}}},
            'expected a port, got "0"',
        ),
        ({"service": {"name": "s", "command": "true", "state": "ended"}}, "not allowed"),
        (
            {"run_as": "nobody", "service": {"name": "s", "command": "true", "one_shot": True}},
            "runs as the user",
        ),
    ],
)
def test_a_probe_that_cannot_be_asked_is_refused(
    write: Write, cli: Callable[..., Any], members: dict[str, Any], says: str
) -> None:
    done = cli(write({"id": "a", **members}, variables={"P": 0}))
    assert done.returncode == 2
    assert says in done.stderr
