"""The controller's log: silent unless asked for, and without secrets."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from taskrunner import log, run
from tests.helpers import Process
from tests.sshd import Sshd
from tests.test_house import loaded

Write = Callable[..., Path]
Cli = Callable[..., Process]


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    yield
    log.close()


def events(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_nothing_is_logged_and_structlog_is_not_loaded_unless_asked(write: Write) -> None:
    path = write({"id": "a", "commands": ["true"]})
    assert "structlog" not in loaded(str(path))


def test_a_run_over_ssh_logs_its_connection_and_what_is_shipped(write: Write, sshd: Sshd, cli: Cli) -> None:
    path = write({"id": "a", "commands": ["true"]})
    done = cli(path, "--on", sshd.target, "--log-file", "log.jsonl", "--log-format", "json")
    assert (done.returncode, done.stderr) == (0, "")
    assert [event["event"] for event in events(Path("log.jsonl"))] == ["ssh.connected", "engine.shipped"]
    assert stat.S_IMODE(Path("log.jsonl").stat().st_mode) == 0o600
    again = cli(path, "--on", sshd.target, "--log-level", "debug")
    assert all(word in again.stderr for word in ("ssh.connect ", "ssh.key_offered", "ssh.connected"))
    assert "engine.shipped" not in again.stderr


def test_secrets_and_escapes_do_not_reach_the_log(tmp_path: Path, write: Write) -> None:
    file = tmp_path / "log"
    log.configure("debug", file, as_json=True)
    secret = "correct-horse-battery"
    path = write({"id": "a", "commands": ["true"]}, variables={"TOKEN": {"secret": True, "default": "none"}})
    run(path, env={"TOKEN": secret})
    log.warning("node.printed", text=f"\x1b[2J{secret}\n", url="https://me:pass-word-1@host/")
    (event,) = events(file)
    assert (event["text"], event["url"]) == (r"\x1b[2J***\n", "https://me:***@host/")


def test_a_log_that_cannot_be_written_is_an_error(write: Write, cli: Cli) -> None:
    path = write({"id": "a", "commands": ["true"]})
    done = cli(path, "--log-file", "/nowhere/log")
    assert done.returncode == 2
    assert done.stderr == "taskrunner: cannot write the log /nowhere/log: No such file or directory\n"


def test_the_level_decides(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("warning")
    log.info("ssh.connected", host="h")
    log.warning("connection.lost", node="h")
    shown = capsys.readouterr().err
    assert "connection.lost" in shown
    assert "ssh.connected" not in shown


def test_a_full_disk_costs_the_log_and_not_the_run(write: Write) -> None:
    log.configure("debug", "/dev/full")
    log.info("ssh.connected", host="h")
    assert run(write({"id": "a", "commands": ["true"]})).status == "ok"


def test_secrets_of_a_plan_before_the_log_are_masked(tmp_path: Path, write: Write) -> None:
    secret = "another-horse-battery"
    path = write({"id": "a", "commands": ["true"]}, variables={"T": {"secret": True, "default": "none"}})
    run(path, env={"T": secret})
    log.configure("info", tmp_path / "log", as_json=True)
    log.info("node.printed", text=secret)
    assert events(tmp_path / "log")[0]["text"] == "***"
