"""What a run, a log or a task file may take of this machine; and what a dry run does not do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskrunner import run, validate
from taskrunner.engine.node import bootstrap
from taskrunner.engine.run import patterns
from taskrunner.engine.store import paths, runs
from tests.helpers import Process, command, completed
from tests.sshd import Sshd

Write = Callable[..., Path]
Cli = Callable[..., Process]


def most(*argv: object) -> tuple[int, int]:
    """The exit status of a command, and the most memory that it has taken, in KiB."""
    script = "import os, subprocess, sys; done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL);"
    script += (
        " import resource; print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, argv)], capture_output=True, text=True, check=True
    )
    status, kib = done.stdout.split()
    return int(status), int(kib)


def test_a_long_log_is_not_kept_in_memory(write: Write, home: Path, sshd: Sshd) -> None:
    path = write({"id": "a", "commands": ["head -c 300000000 /dev/zero | tr '\\0' x"]})
    for where in ((), ("--on", sshd.target)):
        assert subprocess.run([*command(path, *where, "-q")], check=True).returncode == 0
        for options in (("a",), ()):
            status, kib = most(*command("logs", *options, *where))
            assert status == 0
            assert kib < 100_000, (where, options)


def test_a_run_of_many_steps_is_told_and_stopped(
    home: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first event alone is more than a megabyte."""
    directory = Path(paths.run_dir(str(home), "20260101-000000-000000"))
    directory.mkdir(parents=True)
    steps = [{"id": f"step-{number:05}-{'x' * 40}", "name": f"step {number}"} for number in range(20_000)]
    events: list[dict[str, Any]] = [
        {"type": "run.started", "time": 1.0, "name": "n", "file": "f", "steps": steps}
    ]
    for number, step in enumerate(steps):
        events.append({"type": "step.started", "time": 2.0 + number, "step": step["id"], "index": number})
        events.append(
            {
                "type": "step.finished",
                "time": 2.5 + number,
                "step": step["id"],
                "index": number,
                "status": "ok",
                "duration": 0.5,
            }
        )
    text = "".join(json.dumps(event) + "\n" for event in events[:-1])
    (directory / "events.jsonl").write_text(text)
    known = runs.info(str(home), "20260101-000000-000000", is_alive=True)
    assert known is not None
    assert (known["status"], known["steps"], known["step"]["index"]) == ("running", 20_000, 19_999)
    assert "20260101-000000-000000" in cli("history").stdout


@pytest.mark.parametrize(
    "file",
    [
        {
            "variables": {"v0": "x" * 20, **{f"v{n}": f"<<v{n - 1}>><<v{n - 1}>>" for n in range(1, 26)}},
            "commands": ["echo <<v25>>"],
        },
        {"variables": {f"v{n}": f"<<v{n + 1}>>" for n in range(5000)}, "commands": ["true"]},
        {"commands": ["if true; then"] * 400},
        {"commands": ["echo )"] * 1500},
        {"commands": ["cat <<A\n" * 20_000]},
        {"variables": {"a": "b" * 100_000}, "commands": ["<<a>>" * 100_000]},
        {"commands": ["echo '"] * 2000},
        {"commands": [f"echo {{{{u{n}}}}}" for n in range(20_000)]},
        {"commands": ["true"], "when": {f"k{n}": "x" for n in range(20_000)}},
        {"service": {"name": "s", "command": "true", "fail_on": ["(" * 5000 + ")" * 5000]}},
    ],
    ids=["nested", "chain", "open", "broken", "here", "large", "quotes", "undefined", "when", "pattern"],
)
def test_whatever_a_file_says_it_is_looked_at_within_seconds(file: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    variables = file.pop("variables", {})
    path.write_text(json.dumps({"name": "x", "variables": variables, "tasks": [{"id": "a", **file}]}))
    assert path.stat().st_size < 1 << 20
    script = "import sys; from taskrunner import validate; print(len(validate(sys.argv[1])))"
    before = os.times()
    status, kib = most(sys.executable, "-c", script, path)
    after = os.times()
    assert status == 0
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert spent < 15  # 5 on a machine that has nothing else to do
    assert kib < 300_000
    assert 0 < len(validate(path)) <= 2001


def test_a_pattern_that_takes_for_ever_ends_the_wait_for_its_service(write: Write) -> None:
    service = {
        "name": "s",
        "command": "echo aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!; sleep 60",
        "fail_on": ["(a+)+$"],
        "ready": {"file": "never", "timeout": 50},
    }
    began = time.monotonic()
    result = run(write({"id": "a", "service": service}))
    assert "takes more than 1 s" in result.failures[0]["detail"]
    assert time.monotonic() - began < 20


def test_a_search_is_the_same_over_blocks(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"x" * (patterns.BLOCK - 5) + b"\nit is ready\n" + b"y" * 100)
    assert patterns.found_in("^it is ready$", str(log))
    assert not patterns.found_in("^is ready$", str(log))
    log.write_bytes(b"x" * (patterns.BLOCK - 3) + b"ready")
    assert patterns.found_in("ready", str(log))
    log.write_bytes(b"")
    assert patterns.found_in("^", str(log))


def test_a_dry_run_runs_guards_alone_and_stages_nothing(write: Write, cli: Cli, sshd: Sshd) -> None:
    Path("private.key").write_text("-----BEGIN")
    path = write(
        {
            "id": "a",
            "files": [{"from": "private.key", "to": "k"}],
            "skip_if": "touch ~/guard; false",
            "commands": ["touch ran"],
        }
    )
    done = cli(path, "--dry-run", "--on", sshd.target)
    assert done.returncode == 0, done.stderr
    assert "would run" in done.stdout
    kept = [found for folder in (sshd.home, sshd.state) for found in folder.rglob("*") if found.is_file()]
    assert (sshd.home / "guard") in kept
    assert not [found for found in kept if b"-----BEGIN" in found.read_bytes()]
    assert "only guards" in cli("run", "--help").stdout


@pytest.mark.parametrize("module", ["taskrunner.cli.main", "taskrunner.cli.arguments", "taskrunner.api"])
def test_ctrl_c_while_the_command_is_being_loaded(module: str, write: Write) -> None:
    script = f"""
import os, signal, sys
class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupted())
from taskrunner.cli.start import command
sys.argv[1:] = [{str(write({"id": "a", "commands": ["true"]}))!r}]
command()
"""
    done = completed([sys.executable, "-c", script])
    assert (done.returncode, done.stderr) == (130, "")


def test_an_engine_that_others_could_have_written_is_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "engine" / "digest"
    folder.mkdir(parents=True)
    (folder / "evil.py").write_text("")
    folder.chmod(0o777)
    assert not bootstrap._ours(str(folder))
    folder.chmod(0o755)
    assert bootstrap._ours(str(folder))
    (folder / "evil.py").chmod(0o666)
    assert not bootstrap._ours(str(folder))


def test_folders_of_the_state_are_private(write: Write, home: Path) -> None:
    run(write({"id": "a", "commands": ["true"]}, {"id": "b", "service": {"name": "s", "state": "stopped"}}))
    assert {path.stat().st_mode & 0o777 for path in [home, *home.rglob("*")] if path.is_dir()} == {0o700}
