"""Where a task file and its values come from, and where it is started: pipes, env files, closed streams, no home."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskrunner import TaskFileError, UsageError, run
from taskrunner.api import read_env_file
from tests.e2e.steps import ran, step
from tests.helpers import command, completed

Write = Callable[..., Path]
PACKAGE = Path(__file__).parents[2]


def test_env_files_as_a_shell_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_text(
        '\ufeffA="hf_abc" # read only\nexport B=\'it is # no comment\'\n\n# comment\nC=plain # comment\nD=\nE="two\nlines"\n'
        "F=$A${B}\nG='$A'\nH=a=b\n"
    )
    assert read_env_file(path) == {
        "A": "hf_abc",
        "B": "it is # no comment",
        "C": "plain",
        "D": "",
        "E": "two\nlines",
        "F": "$A${B}",
        "G": "$A",
        "H": "a=b",
    }
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
    done = completed(["bash", "-c", f"{line} {closed}"])
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
    homeless = completed(line, env=env)
    assert homeless.returncode == 2
    assert homeless.stderr.splitlines() == [
        "taskrunner: this user has no home folder, and HOME is not set",
        "  set HOME or TASKRUNNER_HOME to a folder that you own",
    ]
    done = completed(line, env={**env, "HOME": str(tmp_path / "work")})
    assert (done.returncode, ran()) == (0, ["12345"]), done.stderr


@pytest.mark.parametrize("file", ["-", "/dev/stdin", "<(cat tasks.json)", "pipe"])
def test_a_task_file_that_comes_through_a_pipe(write: Write, file: str) -> None:
    write(step("a"), {"id": "b", "commands": ["exit 1"]})
    os.mkfifo("pipe")
    line = f"cat tasks.json | {' '.join(command())} {file} --quiet"
    if file == "pipe":
        line = f"cat tasks.json > pipe & {' '.join(command())} pipe --quiet"
    for expected in (["a"], []):  # the second time it is known by its name
        done = completed(["bash", "-c", line])
        assert (done.returncode, ran()) == (1, expected), done.stderr


@pytest.mark.parametrize(
    ("members", "says"),
    [
        (
            {"variables": {"BIG": "x" * 200_000}},
            "BIG has 200000 bytes; the system limits its value to",
        ),
        ({"variables": {f"V{n}": "x" * 100_000 for n in range(20)}}, "the variables have 20000"),
        ({"variables": {"PATH": "/nowhere"}}, "no bash in this PATH"),
        ({"env": {"PATH": "/nowhere"}}, "no bash in this PATH"),
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


def test_mistyped_options_of_the_library_are_refused(write: Write) -> None:
    path = write({"id": "a", "commands": ["touch ran"]})
    with pytest.raises(UsageError, match="unknown option 'onnly'") as caught:
        run(path, onnly=["a"])  # type: ignore[call-arg]
    assert caught.value.hint == "did you mean only?"
    assert not Path("ran").exists()
