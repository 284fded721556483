"""A step is done once: never lost, never doubled, never beside itself, and "ok" means done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskrunner import attach, past_runs, run, start
from taskrunner.engine.run import retention, step_script
from taskrunner.engine.store import identity, unsettled
from tests.e2e.test_survival import engine_pid, in_small_home
from tests.helpers import Process, command, completed, kill_all, left_of, wait_for

Write = Callable[..., Path]
Cli = Callable[..., Process]


def kill_engine(home: Path) -> None:
    os.kill(wait_for(lambda: engine_pid(home)), signal.SIGKILL)
    wait_for(lambda: engine_pid(home) is None)


def step_process(home: Path) -> dict[str, Any]:
    """What is known of the process of the step that is under way."""
    (path,) = [
        path
        for path in home.glob("runs/*/steps/*")
        if step_script.read_marks(path.read_bytes()).command is not None
    ]
    known = step_script.read_marks(path.read_bytes()).process
    assert known is not None
    return known


def ledger() -> list[str]:
    return Path("ledger").read_text().split() if Path("ledger").exists() else []


CUT = "echo begun >> ledger; sleep 1; echo done >> ledger"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGKILL])
def test_a_step_that_a_signal_has_cut_is_run_again(write: Write, home: Path, number: int) -> None:
    path = write({"id": "a", "commands": [CUT]})
    start(path).close()
    wait_for(ledger)
    kill_engine(home)
    os.kill(step_process(home)["pid"], number)
    assert run(path).ok == 1
    assert ledger() == ["begun", "begun", "done"]
    assert run(path).skipped == 1


@pytest.mark.parametrize(
    "end",
    [
        "exec true",
        "trap 'exit 0' EXIT; exit 0",
        "trap 'true' EXIT",
        'for fd in /proc/$BASHPID/fd/*; do fd=${fd##*/}; [ $fd -le 9 ] || eval "exec $fd>&-"; done',
        "exit 0",
    ],
)
def test_a_step_whose_engine_was_killed_is_taken_over_however_it_ends(
    write: Write, home: Path, end: str
) -> None:
    path = write({"id": "a", "commands": [CUT, end]}, {"id": "b", "commands": ["echo b >> ledger"]})
    start(path).close()
    wait_for(ledger)
    kill_engine(home)
    assert run(path).status == "ok"
    assert ledger() == ["begun", "done", "b"]


def test_a_step_that_ended_before_anybody_looked_is_not_run_again(write: Write, home: Path) -> None:
    path = write({"id": "a", "commands": [CUT, "exec true"]})
    start(path).close()
    wait_for(ledger)
    kill_engine(home)
    wait_for(lambda: not left_of(home))
    result = run(path)
    assert (result.status, ledger()) == ("ok", ["begun", "done"])


def test_a_step_that_failed_under_nobodys_eyes_is_run_again(write: Write, home: Path) -> None:
    path = write({"id": "a", "commands": [CUT, "[ -e good ]"]})
    start(path).close()
    wait_for(ledger)
    kill_engine(home)
    wait_for(lambda: not left_of(home))
    Path("good").touch()
    assert run(path).ok == 1
    assert ledger() == ["begun", "done"] * 2


def test_what_has_the_pid_of_a_cut_step_now_is_left_alone(write: Write, home: Path) -> None:
    path = write({"id": "a", "commands": [CUT]})
    start(path).close()
    wait_for(ledger)
    (file,) = [found for found in home.glob("runs/*/steps/*") if b"\np" in found.read_bytes()]
    kill_all(str(home))
    other = subprocess.Popen(["bash", "-c", "sleep 60 & wait"], start_new_session=True)
    try:
        marks = step_script.read_marks(file.read_bytes()).process
        assert marks is not None
        for known in (
            {**marks, "pid": other.pid},
            {"pid": other.pid},
            {**identity.of(other.pid), "boot": "x"},
            {**identity.of(other.pid), "machine": "another"},
        ):
            with file.open("ab") as out:
                out.write(step_script.mark_line(b"p", known))
            assert identity.session(known) is None
        assert run(path).ok == 1
        assert other.poll() is None
    finally:
        os.killpg(other.pid, signal.SIGKILL)
        other.wait()


def test_a_run_that_is_not_settled_is_never_forgotten(
    write: Write, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write({"id": "a", "commands": [CUT]})
    with start(path) as begun:
        wait_for(ledger)
        kill_engine(home)
    now = time.time()
    for days in (45, -45):
        with monkeypatch.context() as patched:
            patched.setattr(retention, "KEEP_RUNS", 0)
            patched.setattr(time, "time", lambda days=days: now + days * 86400)
            retention.prune(str(home), "another")
        assert (home / "runs" / begun.id).is_dir()
    assert unsettled.all_runs(str(home)) == {begun.id}
    assert run(path).status == "ok"
    assert ledger() == ["begun", "done"]
    assert not unsettled.all_runs(str(home))


def test_failed_steps_fail_when_pids_come_round(write: Write, tmp_path: Path) -> None:
    count = 150
    write(
        *({"id": f"s{n}", "on_failure": "continue", "commands": ["sleep .01; exit 1"]} for n in range(count)),
        variables={"T": {"secret": True, "default": "hunter2secret"}},
    )
    inside = "echo 420 > /proc/sys/kernel/pid_max; exec " + " ".join(command("tasks.json"))
    before = Path("/proc/sys/kernel/pid_max").read_text()
    try:
        done = completed(["unshare", "-pf", "--mount-proc", "bash", "-c", inside], timeout=120)
    finally:
        if Path("/proc/sys/kernel/pid_max").read_text() != before:  # an older kernel has one for all
            Path("/proc/sys/kernel/pid_max").write_text(before)
    assert f"0 ok, 0 skipped, {count} failed" in done.stdout, done.stdout[-500:] + done.stderr
    assert done.returncode == 1


def test_a_step_that_ends_well_while_it_is_cancelled_is_done(write: Write, home: Path) -> None:
    path = write(
        {"id": "a", "commands": ["trap : TERM; touch here; sleep 0.4 & wait; wait; echo done >> ledger"]},
        {"id": "b", "commands": ["echo b >> ledger"]},
    )
    with start(path) as begun:
        wait_for(Path("here").exists)
        assert begun.cancel()
        assert begun.result().exit == 130
    assert run(path).skipped == 1
    assert ledger() == ["done", "b"]


def test_a_step_that_says_it_ended_well_when_it_was_cut_is_not_done(write: Write) -> None:
    path = write({"id": "a", "commands": ["trap 'exit 0' TERM; touch here; sleep 60 & wait"]})
    with start(path) as begun:
        wait_for(Path("here").exists)
        begun.cancel()
        assert begun.result().exit == 130
    Path("here").unlink()
    with start(path) as begun:
        wait_for(Path("here").exists)
        begun.cancel()
        assert begun.result().exit == 130


@pytest.mark.parametrize("die", ["kill -9 $$", "kill -TERM $$", "exit 1"])
def test_a_retry_never_runs_beside_what_the_attempt_before_has_left(
    write: Write, home: Path, die: str
) -> None:
    beside = "exec 9>>lock; flock -n 9 || echo beside >> beside; echo try >> ledger"
    path = write(
        {"id": "a", "retries": {"attempts": 3, "delay": 0.01}, "commands": [beside, f"sleep 60 & {die}"]}
    )
    result = run(path)
    assert (result.status, ledger()) == ("failed", ["try"] * 3)
    assert not Path("beside").exists()
    assert not left_of(home)
    expected = {
        "kill -9 $$": "ended by signal 9",
        "kill -TERM $$": "ended by signal 15",
        "exit 1": "exit status 1",
    }
    assert result.failures[0]["detail"] == expected[die]


@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"2026", b"\xff\xfe{]", b"../../etc 1 2 3"])
def test_a_lock_file_whose_content_is_lost_loses_no_run(write: Write, home: Path, content: bytes) -> None:
    path = write({"id": "a", "commands": [CUT]})
    start(path).close()
    wait_for(ledger)
    kill_engine(home)
    (lock,) = home.glob("locks/*")
    lock.write_bytes(content)
    assert run(path).status == "ok"
    assert ledger() == ["begun", "done"]


ODD = [
    b"",
    b"\0" * 100,
    b"{",
    b'{"step": 5}\n',
    b'{"type": 7}\n',
    b'{"type": "step.started", "time": 1}\n',
    b"[1]\n",
    b"\xff\n",
]


@pytest.mark.parametrize("name", ["plan.json", "events.jsonl", "engine.json", "steps"])
@pytest.mark.parametrize("content", ODD)
def test_odd_state_is_nothing_to_recover(
    write: Write, home: Path, cli: Cli, name: str, content: bytes
) -> None:
    path = write({"id": "a", "commands": ["echo begun >> ledger; sleep 30; echo done >> ledger"]})
    start(path).close()
    wait_for(ledger)
    (folder,) = home.glob("runs/*")
    kill_all(str(home))
    for file in (folder / "steps").iterdir() if name == "steps" else [folder / name]:
        file.write_bytes(content)
    write({"id": "a", "commands": ["echo other >> ledger"]})
    for options in ([], ["--reset"]):
        done = cli(path, *options)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
    for words in (
        ["status"],
        ["history"],
        ["attach", folder.name],
        ["logs", "a", folder.name],
        ["show", folder.name],
    ):
        assert "Traceback" not in cli(*words).stderr
        assert "internal error" not in cli(*words).stderr
    assert ledger() == ["begun", "other", "other"]


def test_state_of_another_machine_is_not_ours(write: Write, home: Path, tmp_path: Path) -> None:
    """Two machines with one home: each does every step, and neither sees, ends or locks out the other's."""
    other_id = tmp_path / "machine-id"
    other_id.write_text("0123456789abcdef" * 2 + "\n")
    path = write(
        {"id": "a", "commands": ["echo $(hostname) >> ledger; touch here-$(hostname); sleep 0.5"]},
        {"id": "s", "service": {"name": "web", "command": "exec sleep 60", "ready": {"file": "ledger"}}},
    )
    line = " ".join(command(path))
    there = [
        "unshare",
        "-mu",
        "bash",
        "-c",
        f"mount --bind {other_id} /etc/machine-id; hostname other; {line}",
    ]
    with start(path) as begun:
        wait_for(lambda: ledger())
        done = completed(there)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        assert "2 ok, 0 skipped" in done.stdout
        assert begun.result().ok == 2
    assert sorted(ledger()) == sorted([os.uname().nodename, "other"])
    assert len([run for run in past_runs() if run.status == "ok"]) == 1
    again = completed(there)
    assert "0 ok, 2 skipped" in again.stdout
    assert len(left_of(home)) == 2
    stop = write({"id": "x", "service": {"name": "web", "state": "stopped"}}, file="work/stop.json")
    assert run(stop).ok == 1
    assert len(left_of(home)) == 1
    there[-1] = there[-1].replace(line, " ".join(command(stop)))
    assert subprocess.run(there, capture_output=True, timeout=60, check=False).returncode == 0
    assert not left_of(home)


def test_a_full_disk_twice_in_a_row_costs_output_alone(write: Write, tmp_path: Path) -> None:
    fill = 'head -c 4000000 /dev/zero > "$TASKRUNNER_HOME/fill" 2>/dev/null'
    free = 'rm "$TASKRUNNER_HOME/fill"'
    steps: list[dict[str, Any]] = [
        {
            "id": f"{n}{word}",
            "commands": [f"echo {n}{word} >> ran; {what}; sleep 0.2; echo output of {n}{word} || :"],
        }
        for n in range(3)
        for word, what in (("fill", fill), ("free", free))
    ]
    for number, step in enumerate(steps):
        # Full at the end of a step, and free again before the next one's patience ends.
        if step["id"].endswith("fill"):
            step["commands"].append(f"(sleep {0.5 + number / 10}; {free}) > /dev/null 2>&1 &")
            steps[number + 1]["commands"] = [f"echo {steps[number + 1]['id']} >> ran"]
    write(*steps)
    done = in_small_home(tmp_path, "size=1m", 'taskrunner tasks.json; echo "status $?"')
    assert "6 ok, 0 skipped, 0 failed" in done.stdout, done.stdout + done.stderr
    assert done.stdout.endswith("status 0\n")
    assert (tmp_path / "work" / "ran").read_text().split() == [step["id"] for step in steps]


def test_a_full_disk_ends_no_service_and_no_step_with_a_secret(write: Write, tmp_path: Path) -> None:
    talk = "while :; do echo talking $TOKEN; sleep 0.02; [ ! -e stop ] || exit 0; done"
    fill = 'head -c 4000000 /dev/zero > "$TASKRUNNER_HOME/fill" 2>/dev/null; sleep 0.5; rm "$TASKRUNNER_HOME/fill"'
    write(
        {"id": "s", "service": {"name": "talker", "command": talk, "ready": {"log": "talking"}}},
        {"id": "fill", "commands": [f"for i in 1 2 3; do echo $TOKEN; {fill}; done"]},
        {"id": "still", "service": {"name": "talker", "command": talk, "ready": {"log": "talking"}}},
        {"id": "end", "always": True, "service": {"name": "talker", "state": "stopped"}},
        variables={"TOKEN": {"secret": True, "default": "hunter2secret"}},
    )
    done = in_small_home(tmp_path, "size=1m", 'taskrunner tasks.json; echo "status $?"')
    assert "[SKIP] still (already in the wanted state)" in done.stdout, done.stdout + done.stderr
    assert done.stdout.endswith("status 0\n")


def test_what_is_written_on_a_full_disk_has_no_half_line(tmp_path: Path) -> None:
    code = (
        "import os, sys; from taskrunner.engine.store.events import EventLog; from taskrunner.engine.run.masking import Masker\n"
        "folder = sys.argv[1]; log = EventLog(folder, -1, Masker([])); fill = folder + '/fill'\n"
        "for n in range(2000):\n"
        "    if n % 500 == 100: os.system('head -c 9000000 /dev/zero > %s 2>/dev/null' % fill)\n"
        "    if n % 500 == 450: os.unlink(fill)\n"
        "    log.emit('warning', message='m' * 90, step=str(n))\n"
        "    if n % 500 == 490: log.reserve.make()\n"
        "assert log.flush(1)\n"
    )
    small = tmp_path / "small"
    small.mkdir()
    program = tmp_path / "program.py"
    program.write_text(code)
    inside = f"mount -t tmpfs -o size=2m none {small} && {sys.executable} {program} {small} && cat {small}/events.jsonl"
    done = completed(
        ["unshare", "-rm", "bash", "-c", inside],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert [json.loads(line)["step"] for line in done.stdout.splitlines()] == [str(n) for n in range(2000)], (
        done.stderr
    )


def test_the_same_command_after_many_lost_engines(write: Write, home: Path) -> None:
    path = write({"id": "a", "commands": ["echo begun >> ledger; sleep 3; echo done >> ledger"]})
    for _ in range(4):
        start(path).close()
        wait_for(ledger)
        kill_engine(home)
    assert len(unsettled.all_runs(str(home))) == 4
    assert run(path).status == "ok"
    assert ledger() == ["begun", "done"]
    assert not unsettled.all_runs(str(home))


def test_a_cancel_reaches_a_step_that_was_taken_over(write: Write, home: Path) -> None:
    path = write({"id": "a", "commands": ["echo begun >> ledger; sleep 60; echo done >> ledger"]})
    start(path).close()
    wait_for(ledger)
    kill_engine(home)
    with start(path) as begun:
        assert attach(begun.id).cancel()
        assert begun.result().exit == 130
    assert not left_of(home)
    assert ledger() == ["begun"]
