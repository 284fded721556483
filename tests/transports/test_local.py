from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from taskrunner import run, start
from taskrunner.engine.run import launch, retention
from taskrunner.errors import EngineDiedError

Write = Callable[..., Path]


def test_old_runs_are_forgotten_by_count_and_age(
    write: Write, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "KEEP_RUNS", 3)
    live = start(
        write({"id": "a", "commands": ["until [ -e go ]; do sleep 0.05; done"]}, file="work/live.json")
    )
    (home / "runs" / "20200101-000000-000000").mkdir()
    path = write({"id": "a", "skip_if": "false", "commands": ["true"]})
    results = [run(path).run for _ in range(5)]
    kept = {folder.name for folder in (home / "runs").iterdir()}
    assert kept == {live.id, *results[-3:]}
    Path("go").touch()
    with live:
        assert live.result().status == "ok"


def test_an_engine_that_cannot_come_up_says_why(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = ["/bin/sh", "-c", "echo 'no such interpreter here'; exit 3"], dict[str, str]()
    monkeypatch.setattr(launch, "command", lambda *_: broken)
    with pytest.raises(EngineDiedError, match="no such interpreter here"):
        run(write({"id": "a", "commands": ["true"]}))
