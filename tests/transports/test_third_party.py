"""A transport of somebody else: found by its entry point, and as good as the built-in ones."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from taskrunner import RunInfo, attach, past_runs, run, start
from taskrunner.transports import TargetError, connect
from tests.helpers import Process
from tests.transports import third_party

Write = Callable[..., Path]


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A target of the transport, which is installed as a package of its own."""
    package = tmp_path / "site"
    info = package / "folders-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: folders\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[taskrunner.transports]\nfolder = folders:connect\n")
    (package / "folders.py").write_text(Path(third_party.__file__).read_text())
    monkeypatch.setenv("HOME", str(tmp_path))  # where the steps of a run elsewhere begin
    monkeypatch.syspath_prepend(str(package))
    monkeypatch.setenv("PYTHONPATH", str(package), prepend=os.pathsep)
    return f"folder://{tmp_path}/elsewhere"


def test_it_needs_what_is_public_only() -> None:
    tree = ast.parse(Path(third_party.__file__).read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {module for module in modules if module and module.startswith("taskrunner")} == {
        "taskrunner.transports"
    }


def test_runs_are_started_followed_and_listed_with_it(write: Write, target: str, home: Path) -> None:
    path = write(
        {"id": "a", "skip_if": "[ -e made ]", "commands": ["echo hello", "touch made"]},
        {"id": "b", "commands": ["echo more"]},
    )
    done = run(path, on=target)
    assert (done.status, done.ok) == ("ok", 2)
    assert run(path, on=target).skipped == 2
    transport = connect(target)
    infos: list[RunInfo] = past_runs(10, transport)
    assert [known.status for known in infos] == ["ok", "ok"]
    with attach(done.run, transport) as begun:
        assert begun.log("a") == b"hello\n"
    transport.close()
    assert not (home / "runs").exists()


def test_a_run_is_cancelled_with_it(write: Write, target: str) -> None:
    path = write({"id": "a", "commands": ["sleep 60"]})
    with start(path, on=target) as begun:
        assert begun.cancel()
        assert begun.result().status == "cancelled"


def test_the_command_knows_it(write: Write, target: str, cli: Callable[..., Process]) -> None:
    path = write({"id": "a", "commands": ["true"]})
    done = cli(path, "--on", target)
    assert done.returncode == 0, done.stderr
    assert "1 ok" in done.stdout
    wrong = cli(path, "--on", "folder://")
    assert wrong.returncode == TargetError.exit_status
    assert wrong.stderr.splitlines()[0].endswith("folder:// names no folder")
