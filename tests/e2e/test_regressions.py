"""What once went wrong in ways that no other test had thought of."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskrunner import Task, TaskFile, past_runs, run, start, validate
from tests.e2e.test_survival import controller, engine_pid
from tests.helpers import Process, command, left_of, wait_for

Write = Callable[..., Path]
Cli = Callable[..., Process]
SECRET = {"T": {"secret": True, "default": "hunter2secret"}}


def test_many_commands_that_span_elements(write: Write) -> None:
    path = write(
        *({"id": f"s{i}", "commands": [f"cat > h{i} <<EOF", f"touch 'executed{i}", "EOF"]} for i in range(60))
    )
    assert run(path).ok == 60
    assert not list(Path().glob("executed*"))
    assert Path("h59").read_text() == "touch 'executed59\n"


def test_a_step_is_taken_over_through_two_lost_engines(write: Write, home: Path) -> None:
    path = write(
        {"id": "a", "commands": ["echo begin >> log; sleep 2; echo end >> log"]},
        {"id": "b", "commands": ["true"]},
    )
    for _ in range(2):
        first = controller(path)
        pid = wait_for(lambda: engine_pid(home))
        wait_for(lambda: Path("log").exists())
        time.sleep(0.3)
        os.kill(pid, signal.SIGKILL)
        first.wait()
    assert run(path).status == "ok"
    assert Path("log").read_text() == "begin\nend\n"
    assert run(path).skipped == 2


def test_outputs_of_a_step_that_was_taken_over(write: Write, home: Path) -> None:
    step = {
        "id": "a",
        "commands": ["touch started; sleep 1; echo result > made"],
        "outputs": [{"from": "made", "to": "back"}],
    }
    first = controller(write(step))
    wait_for(lambda: Path("started").exists())
    os.kill(wait_for(lambda: engine_pid(home)), signal.SIGKILL)
    first.wait()
    assert run(write(step)).ok == 1
    assert Path("back").read_text() == "result\n"
    step["outputs"] = [{"from": "made", "to": "elsewhere"}]
    run(write(step))
    assert Path("elsewhere").exists()


@pytest.mark.parametrize("end", ["echo 'CUDA error'; sleep 60", "sleep 60 & exit 1"])
def test_a_retry_starts_a_failed_service_anew_and_leaves_nothing(write: Write, home: Path, end: str) -> None:
    service = {
        "name": "s",
        "command": f"echo start >> starts; {end}",
        "fail_on": ["^CUDA"],
        "ready": {"file": "never", "timeout": 20},
        "stop_timeout": 1,
    }
    result = run(write({"id": "a", "service": service, "retries": {"attempts": 2, "delay": 0.01}}))
    assert result.status == "failed"
    assert Path("starts").read_text() == "start\nstart\n"
    assert not left_of(home)
    assert not list(home.glob("services/*/script"))


def test_patterns_match_line_by_line(write: Write) -> None:
    Path("log").write_text("first\nsecond line\nthird\n")
    assert (
        run(
            write({"id": "a", "wait_for": {"log": {"path": "log", "pattern": "^second.*$"}, "timeout": 1}})
        ).status
        == "ok"
    )


def test_no_secret_in_an_error_message(write: Write, cli: Cli) -> None:
    Path("bad.env").write_text("A=1\nhunter2secret\n")
    broken = write(
        {"id": "a", "skip_if": "fi <<T>>", "commands": ["true"]}, variables=SECRET, file="work/a.json"
    )
    chosen = write(
        {"id": "a", "commands": ["true"]},
        variables={"T": {"secret": True, "choices": ["x"]}},
        file="work/b.json",
    )
    short = write(
        {"id": "a", "commands": ["echo <<T>>"]},
        variables={"T": {"secret": True, "default": "987"}},
        file="work/c.json",
    )
    shapeless = write({"id": "a", "skip_if": "fi <<T>>", "oops": 1}, variables=SECRET, file="work/d.json")
    for args in (
        [broken],
        [shapeless],
        [chosen, "--env", "T=hunter2secret"],
        [short, "--env-file", "bad.env"],
    ):
        done = cli(*args)
        assert done.returncode == 2
        assert "hunter2" not in done.stdout + done.stderr
    assert '"T": "***"' in cli("compile", short).stdout


def test_a_background_process_that_never_stops_writing(write: Write, home: Path) -> None:
    began = time.monotonic()
    result = run(
        write(
            {"id": "a", "commands": ["timeout 4 yes hunter2secret & sleep 0.2; echo started"]},
            variables=SECRET,
        )
    )
    assert result.status == "ok"
    assert time.monotonic() - began < 2.5
    wait_for(lambda: not left_of(home))


def test_the_command_ends_when_the_engine_is_lost_whatever_is_left_behind(write: Write, home: Path) -> None:
    path = write(
        {"id": "a", "commands": ["sleep 4 & echo x"]},
        {"id": "b", "commands": ["touch started; sleep 3"]},
        variables=SECRET,
    )
    first = controller(path)
    wait_for(lambda: Path("started").exists())
    os.kill(wait_for(lambda: engine_pid(home)), signal.SIGKILL)
    began = time.monotonic()
    assert first.wait(20) == 1
    assert time.monotonic() - began < 2.5
    assert run(path).status == "ok"


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"wait_for": {"tcp": "127.0.0.1:<<P>>"}}, 'expected "host:port"'),
        ({"wait_for": {"http": "http://127.0.0.1:<<P>>/"}}, "expected a URL"),
        ({"commands": ["true"], "timeout": "99999999999999d"}, "at most a year"),
        ({"commands": ["true"], "timeout": "0s"}, "more than 0"),
        ({"commands": ["true"], "retries": {"attempts": 2, "delay": "900d"}}, "at most a year"),
    ],
)
def test_what_only_the_values_make_wrong_is_found_before_the_run(
    write: Write, cli: Cli, members: dict[str, Any], says: str
) -> None:
    path = write({"id": "first", "commands": ["touch ran"]}, {"id": "a", **members}, variables={"P": "80"})
    for _ in range(2):
        done = cli(path, "--env", "P=abc")
        assert done.returncode == 2
        assert says in done.stderr
    assert not Path("ran").exists()


def test_an_unreadable_log_does_not_end_the_run(write: Write) -> None:
    path = write(
        {"id": "a", "wait_for": {"log": {"path": "/tmp", "pattern": "x"}, "timeout": 0.2}},
        {"id": "z", "always": True, "commands": ["touch cleaned"]},
    )
    assert "Is a directory" in run(path).failures[0]["detail"]
    assert Path("cleaned").exists()


def test_the_resume_line_keeps_the_choice_and_the_values(write: Write, cli: Cli) -> None:
    write(
        {"id": "a", "commands": ["[ -e ok ]"]},
        {"id": "b", "commands": ["touch b"]},
        {"id": "c", "commands": ["true"]},
        variables={"X": "1", **SECRET},
    )
    failed = cli("tasks.json", "--only", "a", "--only", "c", "--env", "X=2", "--env", "T=other-secret")
    line = "to resume: taskrunner tasks.json --env X=2 --env T --only a --only c"
    assert line in failed.stdout
    assert line in cli("attach").stdout
    assert cli("tasks.json", "--from", "c", "--until", "a").returncode == 2


def test_a_clock_set_back_does_not_cost_the_run_that_starts(write: Write, home: Path) -> None:
    for number in range(510):
        (home / "runs" / f"2099{number:04d}-000000-000000").mkdir(parents=True)
    path = write({"id": "a", "skip_if": "false", "commands": ["true"]})
    for _ in range(5):
        assert run(path).status == "ok"


def test_text_of_other_tools_is_left_alone(write: Write) -> None:
    path = write(
        {
            "id": "a",
            "commands": [
                "echo '{{range .X}}{{.Y}}{{else}}{{end}}' > out",
                "shopt -s extglob",
                "ls !(zzz) >/dev/null",
            ],
        }
    )
    assert run(path).status == "ok"
    assert Path("out").read_text() == "{{range .X}}{{.Y}}{{else}}{{end}}\n"


def test_a_thousand_problems_are_found_quickly(write: Write) -> None:
    path = write(*({"id": f"s{i}", "commands": ["echo a <<NOPE>>"]} for i in range(1500)))
    began = time.monotonic()
    assert len(validate(path)) == 1500
    assert time.monotonic() - began < 5


def test_a_wrong_shape_of_choices_is_a_problem_not_a_crash(cli: Cli) -> None:
    Path("t.json").write_text('{"variables": {"A": {"required": true, "choices": 5}}, "tasks": []}')
    done = cli("validate", "t.json")
    assert (done.returncode, "internal error" in done.stderr) == (2, False)


def test_a_folder_to_come_is_told_by_its_slash(write: Write) -> None:
    Path("src.txt").write_text("x")
    assert run(write({"id": "a", "files": [{"from": "src.txt", "to": "new/folder/"}]})).status == "ok"
    assert Path("new/folder/src.txt").read_text() == "x"


def test_ctrl_c_in_a_dry_run_ends_the_guard(write: Write, home: Path) -> None:
    write({"id": "a", "skip_if": "touch asked; sleep 60", "commands": ["true"]})
    process = subprocess.Popen(command("tasks.json", "--dry-run"), stdout=subprocess.DEVNULL)
    wait_for(lambda: Path("asked").exists())
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert not left_of(home)
    assert past_runs() == []


def test_a_live_run_is_seen_behind_many_short_ones(write: Write, home: Path, cli: Cli) -> None:
    live = start(write({"id": "a", "commands": ["sleep 30"]}, file="work/live.json"))
    for number in range(60):
        (home / "runs" / f"2099{number:04d}-000000-000000").mkdir()
    assert live.id in cli("status").stdout
    assert "stopping run" in cli("cancel").stdout
    live.close()


def test_files_built_in_python_without_a_name_are_told_apart() -> None:
    for word in ("one", "two"):
        assert run(TaskFile(tasks=[Task(id="a", commands=["echo same >> out", f"true {word}"])])).ok == 1
    assert Path("out").read_text() == "same\nsame\n"


def test_a_ctrl_c_right_after_the_start_is_heard(write: Write, home: Path) -> None:
    path = write({"id": "a", "commands": ["sleep 60"]})
    for pause in (0.05, 0.08, 0.1, 0.12, 0.14, 0.16, 0.2, 0.25):
        process = controller(path)
        time.sleep(pause)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) in (130, -signal.SIGINT)
        wait_for(lambda: not left_of(home), what="the end of the step")
