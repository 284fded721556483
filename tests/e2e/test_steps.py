"""Steps that do what steps should not do, and the keys that a step may have; all on a real engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from taskrunner import Result, attach, run
from tests.helpers import left_of

Write = Callable[..., Path]


def log(result: Result, step: str) -> bytes:
    with attach(result.run) as found:
        return found.log(step)


def test_a_daemon_outlives_its_step_and_holds_nothing_up(write: Write, home: Path) -> None:
    began = time.monotonic()
    result = run(write({"id": "a", "commands": ["nohup sleep 3 & echo started"]}))
    assert result.status == "ok"
    assert time.monotonic() - began < 2
    assert any("sleep" in line for line in left_of(home).values())


def test_a_daemon_goes_on_writing_to_the_masked_log(write: Write) -> None:
    path = write(
        {"id": "a", "commands": ['(sleep 0.5; echo "late $TOKEN"; touch finished) & echo now']},
        variables={"TOKEN": {"secret": True, "default": "hunter2hunter2"}},
    )
    result = run(path)
    assert log(result, "a") == b"now\n"
    deadline = time.monotonic() + 5
    while not Path("finished").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)
    assert log(result, "a") == b"now\nlate ***\n"


def test_a_timeout_ends_what_ignores_term(write: Write, home: Path) -> None:
    path = write(
        {"id": "a", "timeout": 0.5, "commands": ["trap '' TERM; (trap '' TERM; sleep 60) & sleep 61"]}
    )
    began = time.monotonic()
    result = run(path)
    assert result.failures[0]["cause"] == "timeout"
    assert "did not end within 0.5 s" in result.failures[0]["detail"]
    assert time.monotonic() - began < 14
    assert not left_of(home)


def test_the_timeout_is_the_steps_not_its_guards(write: Write) -> None:
    path = write({"id": "a", "timeout": 0.6, "skip_if": "sleep 0.5; false", "commands": ["sleep 0.3"]})
    assert run(path).status == "ok"


def test_a_guard_that_hangs_is_an_error_not_a_run(write: Write) -> None:
    path = write({"id": "a", "skip_if": "sleep 60", "skip_if_timeout": 0.3, "commands": ["touch ran"]})
    result = run(path)
    assert (result.failures[0]["cause"], Path("ran").exists()) == ("guard", False)


def test_binary_output_and_ten_megabytes_without_a_newline(write: Write) -> None:
    path = write({"id": "a", "commands": ["head -c 10485760 /dev/zero", "printf '\\xff\\xfe\\n'", "false"]})
    result = run(path)
    assert log(result, "a") == b"\0" * 10485760 + b"\xff\xfe\n"
    assert result.failures[0]["tail"]


def test_a_step_that_changes_its_own_script(write: Write, home: Path) -> None:
    change = 'for f in "$TASKRUNNER_HOME"/runs/*/steps/*; do echo "echo CHANGED" > "$f"; done'
    result = run(
        write({"id": "a", "commands": [change, "echo as written"]}, {"id": "b", "commands": ["echo b"]})
    )
    assert log(result, "a") == b"as written\n"


def test_a_step_that_deletes_its_working_folder(write: Write, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    path = write(
        {"id": "a", "commands": [f"cd {gone} && rmdir {gone}"]},
        {"id": "b", "commands": ["echo fine"]},
        {"id": "c", "cwd": str(gone), "commands": ["true"]},
    )
    result = run(path)
    assert result.ok == 2
    assert f"cannot enter the working directory: {gone}" in "".join(result.failures[0]["tail"])


def test_retries_with_backoff(write: Write) -> None:
    events: list[Any] = []
    path = write(
        {
            "id": "a",
            "retries": {"attempts": 4, "delay": 0.05, "backoff": 2},
            "commands": ["echo x >> tries; [ $(wc -l < tries) -ge 3 ]"],
        }
    )
    assert run(path, on_event=events.append).status == "ok"
    retries = [event for event in events if event["type"] == "step.retrying"]
    assert [(event["attempt"], event["delay"]) for event in retries] == [(2, 0.05), (3, 0.1)]


def test_on_failure_continue_goes_on_and_still_fails(write: Write) -> None:
    result = run(
        write({"id": "a", "on_failure": "continue", "commands": ["false"]}, {"id": "b", "commands": ["true"]})
    )
    assert (result.status, result.exit, result.ok, result.failed) == ("failed", 1, 1, 1)


def test_always_steps_run_after_a_failure_and_are_never_remembered(write: Write) -> None:
    path = write(
        {"id": "a", "commands": ["false"]},
        {"id": "b", "commands": ["touch never"]},
        {"id": "c", "always": True, "commands": ["echo c >> out"]},
    )
    run(path)
    run(path)
    assert Path("out").read_text() == "c\nc\n"
    assert not Path("never").exists()


def test_when_compares_variables_before_anything_runs(write: Write) -> None:
    path = write(
        {"id": "gpu", "when": {"PROFILE": "gpu"}, "commands": ["touch gpu"]},
        {"id": "not", "when": {"PROFILE": {"not": ["gpu", "tpu"]}}, "commands": ["touch not"]},
        {"id": "both", "when": {"PROFILE": ["cpu", "x"], "N": 2}, "commands": ["touch both"]},
        variables={"PROFILE": "cpu", "N": 2},
    )
    assert run(path).skipped == 1
    assert [name for name in ("gpu", "not", "both") if Path(name).exists()] == ["not", "both"]


def test_env_and_variables_are_exported(write: Write) -> None:
    path = write(
        {"id": "a", "env": {"E": "<<V>>-e", "N": 1}, "commands": ['echo "$V|$E|$N" > out']},
        variables={"V": "v $x"},
    )
    run(path)
    assert Path("out").read_text() == "v $x|v $x-e|1\n"


def test_files_and_outputs(write: Write, tmp_path: Path) -> None:
    (tmp_path / "work" / "data dir").mkdir()
    (tmp_path / "work" / "data dir" / "a b").write_text("content")
    path = write(
        {
            "id": "a",
            "files": [{"from": "data dir", "to": str(tmp_path / "there")}],
            "commands": [f"cat '{tmp_path}/there/a b' > result"],
            "outputs": [{"from": "result", "to": str(tmp_path / "back" / "result")}],
        }
    )
    assert run(path).status == "ok"
    assert (tmp_path / "back" / "result").read_text() == "content"


def test_selection(write: Write) -> None:
    path = write(*({"id": name, "commands": [f"echo {name} >> out"]} for name in "abcd"))

    def ran(**options: Any) -> str:
        Path("out").unlink(missing_ok=True)
        run(path, **options)
        return Path("out").read_text().replace("\n", "") if Path("out").exists() else ""

    assert ran(until="b") == "ab"
    assert ran() == "cd"
    assert ran() == ""
    assert ran(start="c") == "cd"
    assert ran(only=["a", "d"]) == "ad"
    assert ran(start="b", until="c") == "bc"
    assert ran(reset=True) == "abcd"


def test_check_finds_what_would_run_again(write: Write) -> None:
    good = write({"id": "a", "skip_if": "[ -e made ]", "commands": ["touch made"]})
    assert run(good, check=True).status == "ok"
    bad = write({"id": "a", "skip_if": "false", "commands": ["true"]}, file="work/bad.json")
    events: list[Any] = []
    assert run(bad, check=True, on_event=events.append).exit == 1
    assert [event["again"][0]["step"] for event in events if event["type"] == "check.finished"] == ["a"]


def test_an_exit_status_that_remote_agents_misread_is_reported_as_it_is(write: Write) -> None:
    for status in (137, 168, 194, 255):
        result = run(write({"id": "a", "commands": [f"exit {status}"]}))
        assert result.failures[0]["exit"] == status


def test_run_as(write: Write, tmp_path: Path) -> None:
    for folder in [tmp_path, *list(tmp_path.parents)[:3]]:
        folder.chmod(folder.stat().st_mode | 0o055)
    path = write(
        {
            "id": "a",
            "run_as": "nobody",
            "cwd": "/",
            "env": {"E": "it's"},
            "skip_if": "[ $(id -un) != nobody ]",
            "commands": ['echo "$(id -un) $V $E $TOKEN"'],
        },
        variables={"V": "v", "TOKEN": {"secret": True, "default": "hunter2hunter2"}},
    )
    assert log(run(path), "a") == b"nobody v it's ***\n"
