from __future__ import annotations

import json
from typing import Any

import pytest

from taskrunner.model.document import Document
from taskrunner.model.lint import lint


def found(
    *commands: str, variables: dict[str, Any] | None = None, **members: Any
) -> list[tuple[str, int, int]]:
    """The rules that a step breaks, with line and column; the file has an element a line."""
    task = {"id": "a", "skip_if": "true", "commands": list(commands), **members}
    document = Document("f", json.dumps({"variables": variables or {}, "tasks": [task]}, indent=0))
    return [(problem.rule, problem.line, problem.column) for problem in lint(document)]


def rules(*commands: str, **members: Any) -> set[str]:
    return {rule for rule, _, _ in found(*commands, **members)}


def test_a_careful_step_has_no_findings() -> None:
    assert (
        found(
            "cd /tmp",
            'for f in *.txt; do echo "$f"; done',
            "cat <<EOF",
            "$X <<V>>",
            "EOF",
            variables={"V": "1"},
        )
        == []
    )


def test_no_guard() -> None:
    task = {
        "tasks": [
            {"id": "a", "commands": ["true"]},
            {"id": "b", "always": True, "commands": ["true"]},
            {"id": "c", "wait_for": {"file": "x"}},
        ]
    }
    problems = lint(Document("f", json.dumps(task)))
    assert [(problem.rule, problem.path) for problem in problems] == [("no-guard", "tasks[0].id")]


@pytest.mark.parametrize(
    "command",
    ["pkill -f vllm", "sudo pkill -9 -f 'vllm serve'", "true; killall python3", "(killall x || true)"],
)
def test_kill_by_pattern(command: str) -> None:
    assert "kill-by-pattern" in rules(command)


def test_killing_what_is_known_is_fine() -> None:
    assert "kill-by-pattern" not in rules('kill "$PID"', "echo 'do not use killall-me'", "skill list")


def test_sleep_for_server() -> None:
    assert "sleep-for-server" in rules("nohup vllm serve m > log 2>&1 &", "sleep 60")
    assert "sleep-for-server" not in rules("sleep 1")
    assert "sleep-for-server" not in rules("cargo build && echo observer", "sleep 1")


def test_nested_quotes() -> None:
    variables = {"V": "x"}
    assert "nested-quotes" in rules('bash -c "echo <<V>>"', variables=variables)
    assert "nested-quotes" in rules('sudo sh -lc "echo {{V}}"', variables=variables)
    assert "nested-quotes" not in rules("bash -c 'echo \"$V\"'", variables=variables)


def test_short_secret() -> None:
    assert "short-secret" in rules("true", variables={"P": {"secret": True, "default": "abc"}})


def test_shellcheck_points_into_the_element() -> None:
    places = found(
        "echo fine",
        "if true; then",
        '  cat "a" $FOO',
        "fi",
        'x="<<V>>"; echo $x\necho $y',
        variables={"V": "longer than the mark"},
    )
    assert [rule for rule, _, _ in places] == ["SC2086"] * 2
    lines = [line for _, line, _ in places]
    assert lines == [12, 14]
    assert places[0][2] == 1 + '"  cat \\"a\\" $FOO'.index("$")


def test_a_guard_is_looked_at_too() -> None:
    assert "SC2086" in rules("true", skip_if="[ $X = 1 ]")


@pytest.mark.parametrize(
    "command",
    [
        "make install 2>&1 | tee log",
        "installer |& tee log",
        "curl -f http://x | sh",
        "echo a; ./run |\n tee log",
        "a && b | c",
    ],
)
def test_a_pipe_whose_first_command_can_fail_unseen(command: str) -> None:
    assert "lost-status" in rules(command)
    assert "lost-status" not in rules("set -euo pipefail", command)
    assert "lost-status" not in rules(f"set -o pipefail; {command}")


@pytest.mark.parametrize(
    "command",
    [
        "echo x | sudo tee -a /etc/environment",
        "a || b",
        "echo 'a | b'",
        'x="$(a | b)"',
        "true # a | b",
        "echo a >| f",
        "case $x in a|b) true;; c|d) true;; esac",
        "[[ $x =~ ^(a|b)$ ]]",
        "ls !(a|b)",
        "cat <<'E' | sh\na | b\nE",
    ],
)
def test_what_is_no_such_pipe(command: str) -> None:
    assert "lost-status" not in rules(command)


def test_a_template_that_a_quoted_here_document_keeps() -> None:
    commands = ("cat > f <<'EOF'", "port=<<PORT>> {{bos_token}}", "EOF", "echo <<PORT>>")
    assert [hit for hit in found(*commands, variables={"PORT": "1"}) if hit[0] == "not-replaced"] == [
        ("not-replaced", 11, 7)
    ]
