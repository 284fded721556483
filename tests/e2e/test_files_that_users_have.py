"""What users write, and where they start it from: files of the bash engine, odd inputs, closed streams."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskrunner import TaskFileError, UsageError, run, validate
from taskrunner.api import read_env_file
from tests.conftest import Process, command, left_of, started_with
from tests.sshd import Sshd, free_port

Write = Callable[..., Path]
Cli = Callable[..., Process]
PACKAGE = Path(__file__).parents[2]


def ran() -> list[str]:
    found = Path("ran").read_text().split() if Path("ran").exists() else []
    Path("ran").unlink(missing_ok=True)
    return found


def step(name: str, **members: Any) -> dict[str, Any]:
    return {"id": name, "commands": [f"echo {name} >> ran"], **members}


# Order is dependency


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
    assert dry.count("runs again: start ran") == 2
    events: list[Any] = []
    run(path, on_event=events.append)
    assert ran() == ["start", "check", "stop"]
    assert not Path("up").exists()
    assert [event.get("because") for event in events if event["type"] == "step.started"] == [
        None,
        "start",
        "start",
    ]
    assert "[RUN] check (runs again: start ran)" in cli(path).stdout
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
    server = {"name": "web", "command": f"exec {sys.executable} -m http.server {port} --bind 127.0.0.1",
              "ready": {"tcp": f"127.0.0.1:{port}"}}  # fmt: skip
    path = write({"id": "serve", "service": server}, {"id": "wait", "wait_for": {"tcp": f"127.0.0.1:{port}"}}, step("check"),
                 step("work", commands=["echo work >> ran; [ -e good ]"]))  # fmt: skip
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
    assert (done.returncode, "give --only alone" in done.stderr) == (2, True)


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
    assert ("its skip_if does not hold after it" in cli(path).stdout) is warned
    Path("made").unlink()
    assert cli(path, "--check").returncode == (0 if guard == "test -e made" else 1)


# Files of the bash engine


def test_what_has_one_meaning_is_accepted(write: Write) -> None:
    path = write(
        {"id": 1, "skip_if": "", "commands": ["echo one >> ran"], "description": None, "timeout": None},
        {
            "id": 2.5,
            "skip_if": "  \n",
            "name": None,
            "commands": ["echo two >> ran"],
            "retries": None,
            "service": None,
        },
        {"id": "3", "commands": [], "when": {"_why": "a comment", "X": 1}},
        {"id": "4", "commands": None, "skip_if": None},
        variables={"X": 1, "Y": {"default": None, "description": None}},
        description=None,
    )
    assert run(path).ok == 4
    assert ran() == ["one", "two"]
    assert run(path, start="2.5").skipped == 1


@pytest.mark.parametrize(
    ("commands", "output"),
    [
        (["x=foo", 'grep -q foo <<< "$x" &&', "echo yes >> ran"], ["yes"]),
        (["cat <<< 'a' >> ran", "cat <<<b >> ran"], ["a", "b"]),
        (["echo one >> ran \\"], ["one"]),
        (["echo one \\", "two >> ran"], ["one", "two"]),
        (["cat >> ran <<'EOF'", "{{bos_token}}<<X>>\\{{X}}", "EOF"], ["{{bos_token}}<<X>>\\{{X}}"]),
        (["cat >> ran <<EOF", "<<X>>", "EOF"], ["v"]),
        (["cat >> ran <<-\\EOF\n\t{{X}}\n\tEOF", "echo {{X}} >> ran"], ["{{X}}", "v"]),
        (["echo '\\{{gpu}}' $((1\\<<N>>1)) >> ran", "N=3"], ["{{gpu}}", "0"]),
    ],
)
def test_texts_reach_bash_as_they_are_meant(write: Write, commands: list[str], output: list[str]) -> None:
    assert run(write({"id": "a", "commands": commands}, variables={"X": "v"})).status == "ok"
    assert ran() == output


def test_a_command_that_goes_on_nowhere_is_found_before_anything_runs(write: Write) -> None:
    problems = validate(write({"id": "a", "commands": ["echo ok", "echo a && \\"]}))
    assert [(problem.path, "not valid bash" in problem.message) for problem in problems] == [
        ("tasks[0].commands[1]", True)
    ]


def test_the_hint_for_an_undefined_template_names_the_escape(write: Write) -> None:
    (problem,) = validate(write({"id": "a", "commands": ["python3 -c \"print(f'{{gpu}}')\""]}))
    assert "a backslash before it (in JSON two)" in problem.hint


@pytest.mark.parametrize(
    "entry", [{"secret": True, "default": ""}, {"secret": True}, {"default": "file", "from_env": True}]
)
def test_the_callers_environment_stands_behind_an_empty_secret(
    write: Write, cli: Cli, monkeypatch: pytest.MonkeyPatch, entry: dict[str, Any]
) -> None:
    path = write({"id": "a", "commands": ['echo "$HF_TOKEN" >> ran']}, variables={"HF_TOKEN": entry})
    listed = cli(path, "--list").stdout
    assert "from the environment ($HF_TOKEN is not set), else " in listed
    monkeypatch.setenv("HF_TOKEN", "hf_of-the-caller <<X>>")
    assert "($HF_TOKEN is set)" in cli(path, "--list").stdout
    assert run(path).status == "ok"
    assert ran() == ["hf_of-the-caller", "<<X>>"]
    run(path, env={"HF_TOKEN": "given"})
    assert ran() == ["given"]
    other = write(
        {"id": "a", "commands": ['echo "$OTHER" >> ran']}, variables={"OTHER": ""}, file="work/other.json"
    )
    monkeypatch.setenv("OTHER", "ambient")
    run(other)
    assert ran() == []


def test_a_step_that_looks_for_processes_by_name_does_not_find_ours(write: Write, home: Path) -> None:
    word = "server" + os.urandom(4).hex()
    path = write(
        {"id": f"start-{word}", "skip_if": f"pgrep -f {word}", "commands": ["touch started"]},
        {"id": f"stop-{word}", "name": word, "commands": [f"pkill -f {word} || :", "touch stopped"]},
        {
            "id": f"serve-{word}",
            "service": {"name": word, "command": "sleep 30 & wait", "ready": {"file": "stopped"}},
        },
        {
            "id": "look",
            "commands": [
                "for pid in $(pgrep -f python); do tr '\\0' ' ' < /proc/$pid/cmdline; echo; done >> ran"
            ],
        },
        file=f"work/{word}.json",
    )
    assert run(path).status == "ok"
    assert Path("started").exists()
    assert Path("stopped").exists()
    for pid in started_with(str(home)):
        line = Path(f"/proc/{pid}/cmdline").read_text()
        assert word not in line
        assert "engine.main" not in line or str(PACKAGE) not in line
    run(write({"id": "x", "service": {"name": word, "state": "stopped"}}, file="work/stop.json"))


def test_a_trace_of_a_step_shows_its_own_commands(write: Write, cli: Cli) -> None:
    out = cli(write({"id": "a", "commands": ["set -x", "echo one", "echo two"]}), "-v").stdout
    assert [line.lstrip("+ ") for line in out.splitlines() if line.startswith("+")] == [
        "echo one",
        "echo two",
    ]


def test_what_is_shown_is_in_order_and_points_at_the_real_failure(write: Write, cli: Cli) -> None:
    path = write(
        {"id": "try", "skip_if": "false", "retries": {"attempts": 2, "delay": 0.01}, "commands": ["exit 3"]},
        {"id": "clean", "always": True, "commands": ["exit 4"]},
    )
    out = cli(path).stdout
    assert out.index("[RUN] try") < out.index("attempt 2 of 2")
    assert out.count("to go on from here: ") == 1
    assert "--from try" in out
    cycle = write({"id": "a", "commands": ["echo <<A>>"]}, variables={"A": "<<B>>", "B": "<<A>>"})
    assert [problem.message for problem in validate(cycle)] == ["variables need each other: A -> B -> A"]


# Services


def test_a_service_whose_program_does_not_exist_fails(write: Write) -> None:
    for line in (["/no/such/program"], "no-such-program --port 1", "exit 0"):
        result = run(write({"id": "a", "service": {"name": "s", "command": line}}))
        assert "exited before it was ready" in result.failures[0]["detail"]


def test_ready_is_told_by_a_port_of_the_services_own(write: Write, home: Path) -> None:
    port = free_port()
    other = f"exec {sys.executable} -m http.server {port} --bind 127.0.0.1"
    path = write(
        {"id": "b", "commands": [f"(sleep 0.5; {other}) > /dev/null 2>&1 &"]},
        {"id": "a", "service": {"name": "s", "command": "sleep 60", "stop_timeout": 1,
                                "ready": {"http": f"http://127.0.0.1:{port}/", "timeout": 2}}},
    )  # fmt: skip
    result = run(path)
    assert f"port {port} is answered by another process, by pid" in result.failures[0]["detail"]
    for pid in left_of(home):
        os.kill(pid, 9)


def test_two_projects_have_services_of_the_same_name(write: Write, home: Path) -> None:
    for name in ("one", "two"):
        service = {"name": "web app", "command": f"echo {name} >> ran; sleep 60", "ready": {"log": "^"}}
        assert run(write({"id": "s", "service": service}, file=f"work/{name}/serve.json")).ok == 1
        assert run(write({"id": "s", "service": service}, file=f"work/{name}/again.json")).skipped == 1
    assert ran() == ["one", "two"]
    alive = len(left_of(home))
    run(write({"id": "x", "service": {"name": "web app", "state": "stopped"}}, file="work/one/stop.json"))
    assert 0 < len(left_of(home)) < alive
    run(write({"id": "x", "service": {"name": "web app", "state": "stopped"}}, file="work/two/stop.json"))
    assert not left_of(home)


def test_a_server_is_what_it_is_started_with(write: Write, home: Path) -> None:
    def served(**other: Any) -> str:
        service = {
            "name": "s",
            "command": "echo started >> ran; sleep 60",
            "cwd": "here",
            "ready": {"log": "^"},
            **other,
        }
        run(write({"id": "a", "service": service}))
        return " ".join(ran())

    Path("here").mkdir()
    assert served(command="echo started >> ../ran; sleep 60") == "started"
    assert served(command="echo started >> ../ran; sleep 60", cwd=str(Path("here").absolute())) == ""
    assert (
        served(
            command="echo started >> ../ran; sleep 61",
            keep_if='[ -d "$TASKRUNNER_SERVICE" ] && [[ $TASKRUNNER_COMMAND == *61 ]]',
        )
        == ""
    )
    assert served(command="echo started >> ../ran; sleep 61", keep_if="false") == "started"
    assert served(command="echo started >> ../ran; sleep 61", env={"A": 1}) == "started"
    run(write({"id": "x", "service": {"name": "s", "state": "stopped"}}))


def test_two_projects_on_one_node_do_not_meet(write: Write, sshd: Sshd) -> None:
    def project(name: str, file: str, git: str = "") -> Path:
        path = write({"id": "a", "commands": ["echo ran >> ran"]}, file=f"work/{name}/{file}")
        if git:
            config = path.parents[file.count("/")] / ".git" / "config"
            config.parent.mkdir(exist_ok=True)
            config.write_text(f'[core]\n\tbare = false\n[remote "origin"]\n\turl = {git}\n')
        return path

    for name in ("one", "two"):
        assert run(project(name, "tasks/setup.json"), on=sshd.target).ok == 1
    assert run(project("one", "tasks/setup.json"), on=sshd.target).skipped == 1
    # Two checkouts of one repository are one project.
    assert run(project("mine", "tasks/t.json", "git@host:testbed.git"), on=sshd.target).ok == 1
    assert run(project("yours", "tasks/t.json", "git@host:testbed.git"), on=sshd.target).skipped == 1
    assert run(project("fork", "tasks/t.json", "git@host:other.git"), on=sshd.target).ok == 1


# Inputs and streams


def test_env_files_as_a_shell_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_text(
        '\ufeffA="hf_abc" # read only\nexport B=\'it is # no comment\'\n\n# comment\nC=plain # comment\nD=\nE="two\nlines"\n'
        "F=$A${B}\nG='$A'\nH=a=b\n"
    )
    assert read_env_file(path) == {
        "A": "hf_abc", "B": "it is # no comment", "C": "plain", "D": "", "E": "two\nlines", "F": "$A${B}", "G": "$A",
        "H": "a=b",
    }  # fmt: skip
    for text, line in (
        ("A=1\n\nno value\n", 3),
        ("A=1\nB='open\n", 2),
        ("A-B=1\n", 1),
        ("A=1\n9=2\n", 2),
        ("A\n", 1),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=rf"env:{line}:1: expected NAME=value"):
            read_env_file(path)


@pytest.mark.parametrize(
    "closed", [">&-", "2>&-", ">&- 2>&-", "<&-", "<&- >&- 2>&-", "> /dev/full", "2> /dev/full"]
)
@pytest.mark.parametrize(("end", "status"), [("true", 0), ("false", 1)])
def test_closed_streams_and_full_ones_change_no_status(
    write: Write, closed: str, end: str, status: int
) -> None:
    path = write({"id": "a", "commands": ["echo a >> ran; cat", end]})
    line = " ".join(command(path, "-v"))
    done = subprocess.run(
        ["bash", "-c", f"{line} {closed}"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, ran()) == (status, ["a"]), done.stderr
    assert "Traceback" not in done.stderr


def test_a_user_without_a_name_and_without_a_home(write: Write, tmp_path: Path) -> None:
    for folder in [tmp_path, *list(tmp_path.parents)[:3]]:
        folder.chmod(0o755)
    (tmp_path / "work").chmod(0o777)
    write({"id": "a", "commands": ["id -u >> ran"]})
    python = "/usr/bin/python3" if os.access("/usr/bin/python3", os.X_OK) else sys.executable
    path = os.pathsep.join([str(PACKAGE), *(entry for entry in sys.path if entry.endswith("site-packages"))])
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": path, "TASKRUNNER_TESTS": os.environ["TASKRUNNER_TESTS"]}
    line = ["setpriv", "--reuid", "12345", "--clear-groups", python, "-m", "taskrunner", "tasks.json"]
    homeless = subprocess.run(line, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert homeless.returncode == 2
    assert homeless.stderr.splitlines() == [
        "taskrunner: this user has no home folder, and HOME is not set",
        "  set HOME or TASKRUNNER_HOME to a folder of yours",
    ]
    done = subprocess.run(
        line, env={**env, "HOME": str(tmp_path / "work")}, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, ran()) == (0, ["12345"]), done.stderr


@pytest.mark.parametrize("file", ["-", "/dev/stdin", "<(cat tasks.json)", "pipe"])
def test_a_task_file_that_comes_through_a_pipe(write: Write, file: str) -> None:
    write(step("a"), {"id": "b", "commands": ["exit 1"]})
    os.mkfifo("pipe")
    line = f"cat tasks.json | {' '.join(command())} {file} --quiet"
    if file == "pipe":
        line = f"cat tasks.json > pipe & {' '.join(command())} pipe --quiet"
    for expected in (["a"], []):  # the second time it is known by its name
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, ran()) == (1, expected), done.stderr


@pytest.mark.parametrize(
    ("members", "says"),
    [
        (
            {"variables": {"BIG": "x" * 200_000}},
            "BIG has 200000 bytes; the system starts no program with a variable",
        ),
        ({"variables": {f"V{n}": "x" * 100_000 for n in range(20)}}, "the variables have 20000"),
        ({"variables": {"PATH": "/nowhere"}}, "there is no bash in this PATH"),
        ({"env": {"PATH": "/nowhere"}}, "there is no bash in this PATH"),
        ({"env": {"BIG": "é" * 70_000}}, "BIG has 140000 bytes"),
    ],
)
def test_variables_that_bash_cannot_be_started_with_are_refused(
    write: Write, members: dict[str, Any], says: str
) -> None:
    path = write(step("a", env=members.get("env", {})), variables=members.get("variables", {}))
    with pytest.raises(TaskFileError, match=says):
        run(path)
    assert ran() == []


def test_the_largest_variables_are_fine(write: Write) -> None:
    variables = {"BIG": "x" * (131_072 - len("BIG=") - 1), "PATH": os.environ["PATH"]}
    assert run(write({"id": "a", "commands": ["echo ${#BIG} >> ran"]}, variables=variables)).status == "ok"
    assert ran() == ["131067"]
