from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskrunner.engine.run import processes
from taskrunner.engine.store import identity


@pytest.fixture
def null() -> Iterator[int]:
    fd = os.open(os.devnull, os.O_RDWR)
    yield fd
    os.close(fd)


def start(null: int, tag: str, command: str) -> int:
    return processes.spawn(["bash", "-c", command], {**os.environ, processes.TAG: tag}, null, null)


def reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass


def test_ends_a_whole_tree_also_what_has_left_it(null: int) -> None:
    tag = f"test/{os.getpid()}/tree"
    pid = start(null, tag, "sleep 60 & setsid sleep 61 & (setsid nohup sleep 62 &) ; wait")
    deadline = time.monotonic() + 5
    while len(members := processes.tree(tag, pid)) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(members) >= 4
    assert processes.end_tree(tag, pid, 5, lambda: reap(pid)) == set()
    assert processes.tree(tag, pid) == set()


def test_a_process_that_replaces_its_program_all_the_time_is_never_missed(null: int, tmp_path: Path) -> None:
    script = tmp_path / "again.py"
    script.write_text("import os, sys; os.execv(sys.executable, [sys.executable, '-SIE', __file__])\n")
    tag = f"test/{os.getpid()}/again"
    pid = start(null, tag, f"exec {sys.executable} -SIE {script}")
    try:
        assert [pid in processes.tree(tag) for _ in range(400)].count(False) == 0
    finally:
        assert processes.end_tree(tag, pid, 5, lambda: reap(pid)) == set()


def test_a_shell_that_is_ended_does_not_begin_its_next_command(
    null: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slowly the processes of a tree are told, and in whatever order they were found."""
    tag, never, kill = f"test/{os.getpid()}/next", tmp_path / "never", os.kill
    pid = start(null, tag, f"sleep 60; touch '{never}'")
    deadline = time.monotonic() + 5
    while len(members := processes.tree(tag, pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    child = max(members - {pid})

    def slow(member: int, sign: int) -> None:
        kill(member, sign)
        time.sleep(0.2)

    monkeypatch.setattr(os, "kill", slow)
    processes._signal([child, pid], signal.SIGTERM)
    monkeypatch.undo()
    assert processes.end_tree(tag, pid, 5, lambda: reap(pid)) == set()
    assert not never.exists()


def test_kills_what_ignores_term(null: int) -> None:
    tag = f"test/{os.getpid()}/deaf"
    pid = start(null, tag, "trap '' TERM; while :; do sleep 0.1; done")
    time.sleep(0.2)
    began = time.monotonic()
    assert processes.end_tree(tag, pid, 0.5, lambda: reap(pid)) == set()
    assert 0.4 < time.monotonic() - began < 3


def test_a_pid_taken_over_by_another_process_is_not_taken_for_it() -> None:
    other = subprocess.Popen(["sleep", "30"])
    try:
        known = identity.of(other.pid)
        assert identity.alive(known)
        assert not identity.alive({**known, "start": int(str(known["start"])) - 1})
        assert not identity.alive({**known, "boot": "of yesterday"})
        assert not processes.tagged(other.pid, "some/tag")
    finally:
        other.kill()
        other.wait()
    assert not identity.alive(known)


def test_only_the_standard_streams_reach_a_step(null: int) -> None:
    secret = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(secret, False)
    pid = start(null, "t", f"[ ! -e /proc/self/fd/{secret} ]")
    assert os.waitpid(pid, 0)[1] == 0
    os.close(secret)


def test_signals_that_python_ignores_have_their_meaning_in_a_step(null: int) -> None:
    pid = start(null, "t", "set -o pipefail; yes | head -1 >/dev/null; [ ${PIPESTATUS[0]} = 141 ]")
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({"machine-id": "a" * 32}, "a" * 12),
        ({"machine-id": "a" * 32, "board_asset_tag": "Not Specified"}, "a" * 12),
        ({"machine-id": "a" * 32, "board_asset_tag": "i-0abc"}, "a" * 12 + "-0abc"),
        ({"machine-id": "uninitialized"}, f"bbbbbbbb-{os.uname().nodename}"),
        ({}, f"bbbbbbbb-{os.uname().nodename}"),
    ],
)
def test_a_machine_is_known_by_its_id_else_by_its_boot_and_name(
    monkeypatch: pytest.MonkeyPatch, texts: dict[str, str], expected: str
) -> None:
    found = {"boot_id": "b" * 36, **texts}
    monkeypatch.setattr(identity, "_text_of", lambda path: found.get(os.path.basename(path), ""))
    monkeypatch.setattr(identity, "_machine", "")
    monkeypatch.setattr(identity, "_boot", "")
    assert identity.machine() == expected


def test_a_session_whose_number_has_come_round_is_not_ours(null: int) -> None:
    tag = f"test/{os.getpid()}/session"
    other = subprocess.Popen(["bash", "-c", "sleep 60 & exec sleep 61"], start_new_session=True)
    try:
        time.sleep(0.2)
        assert len(processes.tree(tag, other.pid)) == 2
        other.kill()
        other.wait()
        # Its leader is gone, and no member has the tag: it may be anybody's, unless it was there when ours was.
        assert processes.tree(tag, other.pid) == set()
        assert len(processes.tree(tag, other.pid, processes.ticks())) == 1
    finally:
        processes.end_tree(tag, other.pid, 1.0, seen=processes.ticks())
