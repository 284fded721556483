"""No secret is left in the clear, however a run ends, and none is printed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from taskrunner import compile, run, start
from taskrunner.engine.store import runs
from tests.e2e.test_survival import engine_pid
from tests.helpers import Process, command, wait_for

Write = Callable[..., Path]
Cli = Callable[..., Process]
SECRET = "hunter2-hunter3"
VARIABLES = {"TOKEN": {"secret": True, "default": SECRET}}


def left(home: Path) -> list[Path]:
    """The files that hold it, or have it in their name."""
    return [
        path
        for path in home.rglob("*")
        if SECRET in path.name or (path.is_file() and SECRET.encode() in path.read_bytes())
    ]


def test_after_the_engine_was_killed(write: Write, home: Path) -> None:
    path = write({"id": "a", "commands": ["echo $TOKEN; touch started; sleep 60"]}, variables=VARIABLES)
    begun = start(path)
    wait_for(lambda: Path("started").exists())
    os.kill(wait_for(lambda: engine_pid(home)), signal.SIGKILL)
    wait_for(lambda: not left(home))
    begun.close()
    assert run(write({"id": "a", "commands": ["true"]}, variables=VARIABLES)).status == "ok"
    assert not left(home)


def test_after_a_service_whose_engine_was_killed_before_it_was_ready(write: Write, home: Path) -> None:
    service = {
        "name": "server",
        "command": "touch up; sleep 60 # $TOKEN <<TOKEN>>",
        "ready": {"file": "never", "timeout": 50},
    }
    begun = start(write({"id": "a", "service": service}, variables=VARIABLES))
    wait_for(lambda: Path("up").exists())
    os.kill(wait_for(lambda: engine_pid(home)), signal.SIGKILL)
    wait_for(lambda: not left(home))
    begun.close()
    stopped = write({"id": "a", "service": {"name": "server", "state": "stopped"}})
    assert run(stopped).status == "ok"


def test_after_a_run_that_nobody_has_begun(write: Write, home: Path) -> None:
    """Both the engine and what looks after it went down, or the machine."""
    plan = compile(write({"id": "a", "commands": ["echo $TOKEN"]}, variables=VARIABLES))
    directory = runs.create(str(home), "20260101-000000-000000", {**plan, "run": "20260101-000000-000000"})
    assert left(home)
    for note in (home / "secrets").iterdir():
        os.utime(note, (1, 1))
    assert run(write({"id": "b", "commands": ["true"]}, name="other.json")).status == "ok"
    assert not left(home)
    assert os.listdir(home / "secrets") == []
    assert os.path.isdir(directory)


@pytest.mark.parametrize(
    "change",
    [{"format": 0}, {"variables": {"TOKEN": SECRET, "T": "ssm-parameter:///x"}, "references": ["T"]}],
)
def test_after_a_run_that_could_not_begin(write: Write, home: Path, change: dict[str, object]) -> None:
    plan = compile(write({"id": "a", "commands": ["echo $TOKEN"]}, variables=VARIABLES))
    directory = runs.create(str(home), "20260101-000000-000000", {**plan, "run": "x", **change})
    environ = {**os.environ, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "nowhere"}
    script = f"from taskrunner.engine import main; raise SystemExit(main.main(['run', {directory!r}]))"
    done = subprocess.run([*command()[:1], "-c", script], env=environ, capture_output=True)
    assert done.returncode == 70
    assert not left(home)


def test_passwords_in_urls_are_secrets(
    write: Write, home: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELSEWHERE", "http://me:other-password@host/")
    monkeypatch.setenv("DATABASE", "postgres://postgres:postgres@localhost/x")
    done = cli(
        write(
            {
                "id": "a-postgres",
                "commands": ["echo $TRACKING $ELSEWHERE", "echo <<TRACKING>>; echo $DATABASE; exit 3"],
            },
            variables={"TRACKING": "https://svc:p%40ss-word@host:5000/x"},
        ),
        "-v",
    )
    said = done.stdout + done.stderr
    assert "https://svc:***@host:5000/x http://me:***@host/\n" in said
    assert "p%40ss-word" not in said
    assert "other-password" not in said
    assert "postgres:postgres@" not in said
    assert "a-postgres" in said


def test_json_stays_json_whatever_is_secret(write: Write, cli: Cli) -> None:
    path = write(
        {"id": "a", "commands": ["echo <<PIN>>; exit 1"]},
        variables={"PIN": {"secret": True, "default": "1795"}, "WORD": {"secret": True, "default": "type"}},
    )
    done = cli(path, "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["type"] for event in events][-1] == "run.finished"
    assert "1795" not in json.dumps([event.get("tail") for event in events])


def test_what_the_controller_says_holds_no_secret(write: Write, cli: Cli, home: Path) -> None:
    """Names of files and of services come from variables, too."""
    path = write(
        {"id": "a", "files": [{"from": "no/<<TOKEN>>.txt", "to": "x"}]},
        {"id": "b", "service": {"name": "s-<<TOKEN>>", "command": "exit 1", "ready": {"file": "never"}}},
        variables=VARIABLES,
    )
    for options in ([], ["--only", "b"], ["--dry-run"], ["--json", "--only", "b"]):
        done = cli(path, *options)
        assert SECRET not in done.stdout + done.stderr, options
    assert not left(home)


def test_nothing_that_is_printed_moves_the_cursor(write: Write, cli: Cli) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\x9b31m\x85\u202e"
    path = write(
        {"id": "a", "name": f"name{evil}", "commands": [f"printf '%s\\n' 'out{evil}'; exit 1"]},
        name=f"t{evil[:12]}.json",
    )
    for options in ([], ["--list"], ["--dry-run"], ["validate"]):
        words = ["validate", path] if options == ["validate"] else [path, *options]
        done = cli(*words)
        said = done.stdout + done.stderr
        assert not any(c in said for c in "\x1b\x07\x9b\x85\u202e"), options
