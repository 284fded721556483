from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from taskrunner.engine.run import step_script


def run(tmp_path: Path, guard: str | None, *commands: str) -> tuple[int, str, step_script.Marks]:
    """Run a step's program as the engine does; its status, output and marks."""
    path = tmp_path / "program"
    program = step_script.program(str(tmp_path), guard, commands)
    stdin = step_script.write(str(path), program, {"id": "the-step", "key": "the-key"})
    try:
        done = subprocess.run(
            step_script.argv("tag"),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=20,
            check=False,
            env={"PATH": os.environ["PATH"]},
        )
    finally:
        os.close(stdin)
    return done.returncode, done.stdout.decode(), step_script.read_marks(path.read_bytes())


def test_commands_share_one_shell(tmp_path: Path) -> None:
    commands = ("x=1; f() { echo f$x; }", "cd /usr", "declare -A m=([k]=v)", 'f; pwd; echo "${m[k]}"')
    status, output, marks = run(tmp_path, None, *commands)
    assert (status, output) == (0, "f1\n/usr\nv\n")
    assert (marks.command, marks.done, marks.guard) == (3, True, None)
    assert marks.step == {"id": "the-step", "key": "the-key"}


def test_the_first_command_that_fails_ends_the_step(tmp_path: Path) -> None:
    status, output, marks = run(tmp_path, None, "echo a", "false; (exit 7)", "echo never")
    assert (status, output, marks.command, marks.done) == (7, "a\n", 1, False)


def test_a_failure_inside_a_command_counts_only_at_its_end(tmp_path: Path) -> None:
    assert run(tmp_path, None, "false\ntrue")[0] == 0


@pytest.mark.parametrize(("command", "status"), [("exit 0", 0), ("exit 5", 5)])
def test_exit_ends_the_step(tmp_path: Path, command: str, status: int) -> None:
    done, output, marks = run(tmp_path, None, command, "echo never")
    assert (done, output, marks.done) == (status, "", False)


def test_standard_input_is_empty(tmp_path: Path) -> None:
    assert run(tmp_path, None, "cat", "read x || echo empty", "echo SECOND")[1] == "empty\nSECOND\n"


@pytest.mark.parametrize("guard", ["true", "cd /; x=9; exit 0"])
def test_a_guard_that_holds_skips(tmp_path: Path, guard: str) -> None:
    status, output, marks = run(tmp_path, guard, "echo never")
    assert (status, output, marks.skipped, marks.command) == (0, "", True, None)


@pytest.mark.parametrize("guard", ["false", "exit 3", "no-such-command 2>/dev/null", "kill -9 $BASHPID"])
def test_any_other_guard_runs_and_changes_nothing(tmp_path: Path, guard: str) -> None:
    status, output, marks = run(tmp_path, f"cd /; x=9; {guard}", 'echo "$PWD ${x:-unset}"')
    assert (status, marks.skipped) == (0, False)
    assert output.splitlines()[-1] == f"{tmp_path} unset"
    assert marks.guard


def test_an_exit_trap_of_the_step_is_kept(tmp_path: Path) -> None:
    status, output, marks = run(tmp_path, None, "trap 'echo bye' EXIT", "echo work")
    assert (status, output, marks.done) == (0, "work\nbye\n", True)


def test_set_e_and_set_u_of_the_step_work(tmp_path: Path) -> None:
    assert run(tmp_path, None, "set -eu", "false\necho never")[:2] == (1, "")
    assert run(tmp_path, None, "set -u", "echo $nope")[0] != 0


def test_dollar_dollar_is_the_process_of_the_step(tmp_path: Path) -> None:
    one, other = run(tmp_path, None, "echo $$ $BASHPID")[1].split()
    assert one == other


def test_low_descriptors_are_free(tmp_path: Path) -> None:
    assert run(tmp_path, None, "exec 9>lock 3>x", "flock 9", "echo ok")[:2] == (0, "ok\n")


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    path = tmp_path / "program"
    stdin = step_script.write(str(path), step_script.program("/no/such/folder", None, ["echo never"]))
    done = subprocess.run(step_script.argv("t"), stdin=stdin, capture_output=True, check=False)
    os.close(stdin)
    assert done.returncode == 1
    assert b"cannot enter the working directory: /no/such/folder" in done.stderr


def test_waits_for_its_turn_and_dies_with_the_engine() -> None:
    wait, go = os.pipe()
    process = subprocess.Popen(
        [
            "bash",
            "-c",
            f'exec {step_script.GO_FD}<&{wait}; exec "$@"',
            "_",
            *step_script.argv("t", wait=True),
        ],
        stdin=subprocess.DEVNULL,
        pass_fds=[wait],
    )
    os.close(wait)
    assert process.poll() is None
    os.close(go)
    assert process.wait(10) == 125


def test_nothing_of_the_file_is_in_the_arguments() -> None:
    assert step_script.argv("20261125-183839-422689/3.1")[-1] == "20261125-183839-422689/3.1"
    assert step_script.argv("t")[:-1] == ["bash", "--norc", "--noprofile", "-c", step_script.BOOT, "bash"]


def test_half_a_program_does_nothing(tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(step_script.program(str(tmp_path), None, ["touch ran"])[:-1])
    with path.open("rb") as stdin:
        assert subprocess.run(step_script.argv("t"), stdin=stdin, check=False).returncode == 125
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("ends", ["exec true", "trap 'exit 0' EXIT; exit 3", "exec 198>&-"])
def test_a_step_that_hides_its_end_says_nothing_false_of_it(tmp_path: Path, ends: str) -> None:
    status, output, marks = run(tmp_path, None, ends, "exit 0")
    assert (status, output, marks.done, marks.end) == (0, "", False, None)


@pytest.mark.parametrize("status", [0, 7, 255, -9, -15])
def test_the_end_is_noted_in_its_place(tmp_path: Path, status: int) -> None:
    path = tmp_path / "program"
    os.close(
        step_script.write(str(path), step_script.program("/", None, ["true"]), {"id": "é\n", "key": "k"})
    )
    size = path.stat().st_size
    step_script.write_end(str(path), status)
    assert path.stat().st_size == size
    marks = step_script.read_marks(path.read_bytes())
    assert (marks.end, marks.step) == (status, {"id": "é\n", "key": "k"})


def test_a_trace_shows_the_commands_of_the_file_alone(tmp_path: Path) -> None:
    commands = ("set -x", "x=1", "false || true", "set +x", "echo after")
    status, output, _ = run(tmp_path, None, *commands)
    assert status == 0
    assert [line.lstrip("+ ") for line in output.splitlines()] == ["x=1", "false", "true", "set +x", "after"]
    assert run(tmp_path, None, "set -x; (exit 4)", "echo never")[0] == 4


@pytest.mark.parametrize(
    ("text", "bare"), [("a \\", "a "), ("a \\\\", "a \\\\"), ("\\", ""), ("a", "a"), ("", "")]
)
def test_a_backslash_that_continues_nothing_is_dropped(tmp_path: Path, text: str, bare: str) -> None:
    assert step_script.whole(text) == bare
    assert run(tmp_path, None, "echo x \\", "echo y")[1] == "x\ny\n"
