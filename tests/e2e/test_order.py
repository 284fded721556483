"""Order is dependency: what comes after a step that ran is not done because of an earlier time."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from taskrunner import run, runs, start
from tests.e2e.steps import ran, step
from tests.e2e.test_survival import engine_pid
from tests.helpers import Process, left_of, started_with, wait_for
from tests.sshd import free_port

Write = Callable[..., Path]
Cli = Callable[..., Process]


def test_what_comes_after_a_step_that_ran_runs_again(write: Write, cli: Cli) -> None:
    path = write(
        step("before"),
        {"id": "start", "skip_if": "test -e up", "commands": ["touch up; echo start >> ran"]},
        step("check"),
        step("stop", commands=["rm up; echo stop >> ran"]),
    )
    assert run(path).ok == 4
    assert ran() == ["before", "start", "check", "stop"]
    dry = cli(path, "--dry-run").stdout
    assert dry.count("runs again because start ran") == 2
    events: list[Any] = []
    run(path, on_event=events.append)
    assert ran() == ["start", "check", "stop"]
    assert not Path("up").exists()
    assert [event.get("because") for event in events if event["type"] == "step.started"] == [
        None,
        "start",
        "start",
    ]
    assert "[RUN] check (runs again because start ran)" in cli(path).stdout
    ran()
    Path("up").touch()
    assert run(path).skipped == 4
    assert ran() == []


def test_a_kill_between_a_step_and_what_follows_does_not_hide_that_it_ran(write: Write) -> None:
    guarded = {"id": "b", "skip_if": "test -e b", "commands": ["touch b; echo b >> ran"]}
    path = write(step("a"), guarded, step("c", commands=["echo c >> ran; [ -e good ]"]), step("d"))
    Path("good").touch()
    run(path)
    Path("good").unlink()
    Path("b").unlink()
    ran()
    assert run(path).status == "failed"
    assert ran() == ["b", "c"]
    Path("good").touch()
    assert run(path).status == "ok"
    assert ran() == ["c", "d"]


def test_a_service_that_died_makes_the_check_behind_it_run_again(write: Write, home: Path) -> None:
    port = free_port()
    server = {
        "name": "web",
        "command": f"exec {sys.executable} -m http.server {port} --bind 127.0.0.1",
        "ready": {"tcp": f"127.0.0.1:{port}"},
    }
    path = write(
        {"id": "serve", "service": server},
        {"id": "wait", "wait_for": {"tcp": f"127.0.0.1:{port}"}},
        step("check"),
        step("work", commands=["echo work >> ran; [ -e good ]"]),
    )
    assert run(path).status == "failed"
    assert ran() == ["check", "work"]
    for pid in left_of(home):
        os.kill(pid, 9)
    Path("good").touch()
    assert run(path).status == "ok"
    assert ran() == ["check", "work"]
    assert run(path).ok == 1  # the wait alone
    assert ran() == []
    run(write({"id": "x", "service": {"name": "web", "state": "stopped"}}, file="work/stop.json"))


def test_a_changed_file_runs_its_step_and_what_follows(write: Write) -> None:
    path = write(
        step(
            "a",
            files=[{"from": "server.conf", "to": "out/s.conf"}],
            commands=["cp out/s.conf live.conf; echo a >> ran"],
        ),
        step("b"),
    )
    Path("server.conf").write_text("1")
    assert run(path).ok == 2
    assert run(path).skipped == 2
    Path("server.conf").write_text("2")
    ran()
    assert run(path).ok == 2
    assert (Path("live.conf").read_text(), ran()) == ("2", ["a", "b"])


def test_steps_that_were_left_out_by_name_keep_what_they_have_done(write: Write, cli: Cli) -> None:
    path = write(*map(step, "abcde"))
    run(path)
    ran()
    assert run(path, start="b", until="c").ok == 2
    assert ran() == ["b", "c"]
    assert run(path).skipped == 5
    assert run(path, only=["b"]).ok == 1
    assert run(path).skipped == 5
    done = cli(path, "--only", "a", "--from", "b")
    assert (done.returncode, "use --only alone" in done.stderr) == (2, True)


def test_the_same_file_started_in_another_folder_is_not_done_there(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write({"id": "a", "commands": ["touch made"]})
    run(path)
    Path("other").mkdir()
    monkeypatch.chdir("other")
    assert run(path).ok == 1
    assert Path("made").exists()
    monkeypatch.chdir("..")
    assert run(path).skipped == 1


@pytest.mark.parametrize(
    ("guard", "warned"), [("test -e never", True), ("test -e made", False), ("false", False)]
)
def test_a_guard_that_does_not_hold_after_its_step_is_told(
    write: Write, cli: Cli, guard: str, warned: bool
) -> None:
    path = write({"id": "a", "skip_if": guard, "commands": ["touch made"]})
    assert ("its skip_if does not hold afterwards" in cli(path).stdout) is warned
    Path("made").unlink()
    assert cli(path, "--check").returncode == (0 if guard == "test -e made" else 1)


def test_what_the_guard_says_is_the_reason(write: Write, cli: Cli) -> None:
    path = write({"id": "a", "skip_if": "echo 3 GB are missing; false", "commands": ["echo done"]})
    (line,) = (line for line in cli(path).stdout.splitlines() if "does not hold afterwards" in line)
    assert line.endswith("all later steps: 3 GB are missing")


def test_an_earlier_step_that_runs_again_makes_a_step_that_was_taken_over_run_again(
    write: Write, home: Path
) -> None:
    path = write(
        {"id": "start", "skip_if": "test -e up", "commands": ["touch up; echo start >> ran"]},
        step("check"),
        step("work", commands=["touch working; sleep 1; echo work >> ran"]),
        step("stop"),
    )
    start(path).close()
    wait_for(Path("working").exists)
    os.kill(wait_for(lambda: engine_pid(home)), signal.SIGKILL)
    wait_for(lambda: not left_of(home))
    Path("up").unlink()
    assert run(path).ok == 4
    assert ran() == ["start", "check", "work", "start", "check", "work", "stop"]


def test_a_clean_up_that_was_cut_is_waited_for_and_runs_again(write: Write, home: Path) -> None:
    path = write(
        step("work", commands=["echo work >> ran; [ -e good ]"]),
        {"id": "clean", "always": True, "commands": ["touch cleaning; sleep 0.7; echo clean >> ran"]},
    )
    start(path).close()
    wait_for(Path("cleaning").exists)
    os.kill(wait_for(lambda: engine_pid(home)), signal.SIGKILL)
    Path("good").touch()
    assert run(path).ok == 2
    assert ran() == ["work", "clean", "work", "clean"]


def test_a_clean_up_in_the_middle_makes_nothing_run_again(write: Write, cli: Cli) -> None:
    path = write(step("a"), step("b", always=True), step("c"))
    run(path)
    ran()
    assert "runs again" not in cli(path, "--dry-run").stdout
    assert (run(path).ok, ran()) == (1, ["b"])


@pytest.mark.parametrize("more", [{}, {"files": [{"from": "tasks.json", "to": "copy"}]}])
def test_a_guard_that_did_not_hold_is_not_a_step_that_is_done(
    write: Write, home: Path, more: dict[str, Any]
) -> None:
    path = write(
        {
            "id": "a",
            "skip_if": "test -e done",
            "commands": ["echo a >> ran; touch at; sleep 1; touch done"],
            **more,
        },
        step("b"),
    )
    run(path)
    Path("done").unlink()
    Path("at").unlink()
    ran()
    start(path).close()
    wait_for(Path("at").exists)
    for pid in started_with(str(home)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not started_with(str(home)))
    assert run(path).ok == 2
    assert ran() == ["a", "a", "b"]
    assert Path("done").exists()


def test_what_is_reset_is_not_taken_over(write: Write, home: Path) -> None:
    path = write(step("a", commands=["echo a >> ran; sleep 0.5; echo done >> ran"]))
    for options in ({"reset": True}, {"start": "a"}, {"only": ["a"]}):
        start(path, reset=True).close()
        wait_for(Path("ran").exists)
        os.kill(wait_for(lambda: engine_pid(home)), signal.SIGKILL)
        wait_for(lambda: not left_of(home))
        assert run(path, **options).ok == 1
        assert ran() == ["a", "done"] * 2


def test_a_file_that_changes_under_its_step_counts_as_it_was(write: Write) -> None:
    path = write(
        step("a", files=[{"from": "conf", "to": "copy"}], commands=["cat copy >> ran; echo new > conf"])
    )
    Path("conf").write_text("old\n")
    assert run(path).ok == 1
    assert run(path).ok == 1
    assert ran() == ["old", "new"]
    assert run(path).skipped == 1


def _waits(run: runs.Run) -> bool:
    return any(event["type"] == "waiting" for event in run.so_far())


def test_commands_that_were_done_stay_done_while_their_step_waits_through_lost_engines(
    write: Write, home: Path
) -> None:
    path = write(
        step("a", commands=["sleep 0.3; echo a >> ran"], wait_for={"file": "there", "timeout": 30}), step("b")
    )
    for _ in range(3):
        begun = start(path)
        wait_for(partial(_waits, begun))
        os.kill(wait_for(lambda: engine_pid(home)), signal.SIGKILL)
        begun.close()
    Path("there").touch()
    assert run(path).ok == 2
    assert ran() == ["a", "b"]
    assert run(path).ok == 1


def test_what_was_done_after_a_step_that_was_taken_over_stays_done(write: Write, home: Path) -> None:
    """Engines are lost one after the other, each a step further on."""
    more: list[dict[str, Any]] = [
        {},
        {"wait_for": {"file": "tasks.json"}},
        {"outputs": [{"from": "ran", "to": "copy"}]},
        {},
    ]
    names = "abcd"
    path = write(
        *(
            step(n, commands=[f"echo {n} >> ran; touch at-{n}; sleep 0.6"], **m)
            for n, m in zip(names, more, strict=True)
        )
    )
    for name in names:
        start(path).close()
        wait_for(Path(f"at-{name}").exists)
        os.kill(wait_for(lambda: engine_pid(home)), signal.SIGKILL)
    assert run(path).status == "ok"
    assert ran() == list(names)
    assert run(path).skipped >= 3
