"""An engine that was started and has not written yet who it is."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from taskrunner.engine.store import paths, runs


@pytest.mark.parametrize(("age", "expected"), [(0, True), (20, True), (40, False), (-3600, False)])
def test_it_may_come_up_for_a_while(tmp_path: Path, age: float, expected: bool) -> None:
    directory = Path(paths.run_dir(str(tmp_path), "r"))
    directory.mkdir(parents=True)
    then = time.time() - age
    os.utime(directory, (then, then))
    assert runs.coming_up(str(tmp_path), "r") is expected
    (directory / paths.ENGINE).write_text("{}")
    assert not runs.coming_up(str(tmp_path), "r")
    assert not runs.coming_up(str(tmp_path), "another")
