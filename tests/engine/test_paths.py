"""Names in a state root that several machines share."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from taskrunner.engine.store import identity, lock, paths, runs, unsettled

ONE, TWO = "1" * 12, "2" * 12


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> object:
    def on(machine: str) -> None:
        monkeypatch.setattr(identity, "_machine", machine)

    return on


def test_a_run_that_is_started_on_several_machines_has_a_directory_on_each(
    tmp_path: Path, on: object
) -> None:
    root, run = str(tmp_path), "20261125-183839-422689"
    directories = []
    for machine in (ONE, TWO, ONE, TWO):
        on(machine)  # type: ignore[operator]
        assert paths.claim(root, run) == paths.run_dir(root, run)
        directories.append(runs.create(root, run, {}))
    assert directories[:2] == directories[2:]
    assert directories[0] != directories[1]
    assert runs.runs(root) == [run]


def test_locks_journals_and_unsettled_runs_are_a_machines_own(tmp_path: Path, on: object) -> None:
    root = str(tmp_path)
    found = []
    for machine in (ONE, TWO):
        on(machine)  # type: ignore[operator]
        held, holder = lock.take(root, "key", "run-" + machine)
        assert held is not None, holder
        assert lock.take(root, "key", "another") == (None, "run-" + machine)
        unsettled.note(root, "key", "run-" + machine)
        found.append(
            (
                held,
                paths.journal_path(root, "key"),
                paths.service_dir(root, "p", "s"),
                unsettled.of(root, "key"),
            )
        )
    assert [entry[3] for entry in found] == [["run-" + ONE], ["run-" + TWO]]
    assert unsettled.all_runs(root) == {"run-" + ONE, "run-" + TWO}
    assert all(one != two for one, two in zip(*found, strict=True))


def test_names_of_services_that_look_alike_are_told_apart(tmp_path: Path) -> None:
    names = ["web", "a b", "a_b", "a/b", "..", ".", "é", "x" * 100, "x" * 101]
    assert len({paths.service_dir(str(tmp_path), "p", name) for name in names}) == len(names)
    assert paths.service_dir(str(tmp_path), "p", "web") != paths.service_dir(str(tmp_path), "q", "web")


def test_the_lock_of_format_1_is_respected_and_its_runs_are_looked_after(tmp_path: Path) -> None:
    import fcntl

    root = str(tmp_path)
    (tmp_path / "locks").mkdir()
    (tmp_path / "runs" / "20261101-000000-000000").mkdir(parents=True)
    old = tmp_path / "locks" / "key"
    old.write_text("20261101-000000-000000 ../../etc 20261031-000000-000000")
    with old.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert lock.take(root, "key", "new")[0] is None
    held, _ = lock.take(root, "key", "new")
    assert held is not None
    assert unsettled.of(root, "key") == ["20261101-000000-000000"]
    assert not old.exists()


def test_who_follows_from_elsewhere_and_is_not_heard_of_does_not_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, run = str(tmp_path), "20261125-183839-422689"
    directory = runs.create(root, run, {})
    monkeypatch.setattr(runs, "HEARD_WITHIN", 1.0)
    held = runs.join(root, run, paths.FOLLOWERS_AWAY)
    threading.Timer(0.3, runs.heard, (root, run)).start()
    assert runs.followed(root, run)
    assert not runs.followed(root, run)
    for odd in (1, 2**33):  # as a clock that jumps leaves it
        os.utime(f"{directory}/{paths.FOLLOWERS_AWAY}", (odd, odd))
        assert not runs.followed(root, run)
    os.close(held)
    here = runs.join(root, run)
    assert runs.followed(root, run)
    os.close(here)
    assert not runs.followed(root, run)
