"""What users write, and where they start it from: files of the bash engine, templates, shown in order."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskrunner import run, validate
from tests.e2e.steps import ran
from tests.helpers import Process, started_with

Write = Callable[..., Path]
Cli = Callable[..., Process]
PACKAGE = Path(__file__).parents[2]


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
        (["echo '\\{{gpu}}' '\\{{end}}' $((1\\<<N>>1)) >> ran", "N=3"], ["{{gpu}}", "{{end}}", "0"]),
        (["echo '\\\\{{X}}' '\\\\\\{{X}}' >> ran"], ["\\\\v", "\\\\{{X}}"]),
        (["# see <<'EOF' below", "echo {{X}} >> ran", "cat >> ran <<EOF", "{{X}}", "EOF"], ["v", "v"]),
    ],
)
def test_texts_reach_bash_as_they_are_meant(write: Write, commands: list[str], output: list[str]) -> None:
    assert run(write({"id": "a", "commands": commands}, variables={"X": "v"})).status == "ok"
    assert ran() == output


def test_a_variable_that_a_quoted_here_document_keeps_is_told(write: Write, cli: Cli) -> None:
    path = write(
        {"id": "a", "commands": ["cat > out <<'EOF'", "<<X>> {{bos_token}}", "EOF"]}, variables={"X": "v"}
    )
    (line,) = [line for line in cli(path).stdout.splitlines() if "[WARN]" in line]
    assert "<<X>> in a quoted here-document is not replaced" in line
    assert Path("out").read_text() == "<<X>> {{bos_token}}\n"


def test_a_command_that_goes_on_nowhere_is_found_before_anything_runs(write: Write) -> None:
    problems = validate(write({"id": "a", "commands": ["echo ok", "echo a && \\"]}))
    assert [(problem.path, "not valid bash" in problem.message) for problem in problems] == [
        ("tasks[0].commands[1]", True)
    ]


def test_the_hint_for_an_undefined_template_names_the_escape(write: Write) -> None:
    (problem,) = validate(write({"id": "a", "commands": ["python3 -c \"print(f'{{gpu}}')\""]}))
    assert "a backslash before it (two in JSON)" in problem.hint


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
    assert out.count("to resume: ") == 1
    assert "--from try" in out
    cycle = write({"id": "a", "commands": ["echo <<A>>"]}, variables={"A": "<<B>>", "B": "<<A>>"})
    assert [problem.message for problem in validate(cycle)] == ["circular reference: A -> B -> A"]
