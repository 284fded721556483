from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from taskrunner import run, start
from taskrunner.engine.run import retention

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
