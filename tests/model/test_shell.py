from __future__ import annotations

import subprocess
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from taskrunner.model import shell


def grouped(*elements: str) -> tuple[list[str], list[int]]:
    groups, errors = shell.group(elements, list(shell.check(elements, shell.Bash())), shell.Bash())
    return [group.text for group in groups], [error.element for error in errors]


@pytest.mark.parametrize(
    "spanning",
    [
        ["cat <<EOF", "hello", "EOF"],
        ["cat <<-'E F' | tr a b", "\tit's", "\tE F"],
        ["python3 - <<'PY'", "print('a')", "if True:", '    print("b")', "PY"],
        ["echo 'a", "b'"],
        ['x="1', '2"'],
        ["if true; then", "echo a", "fi"],
        ["for i in 1 2", "do echo $i", "done"],
        ["echo a &&", "echo b"],
        ["echo a |", "cat"],
        ["echo a \\", "  b"],
        ["f() {", "echo", "}"],
        ["case x in", "x) echo;;", "esac"],
        ["echo $(", "date", ")"],
    ],
)
def test_elements_are_joined_until_bash_can_parse_them(spanning: list[str]) -> None:
    texts, errors = grouped("echo before", *spanning, "echo after")
    assert texts == ["echo before", "\n".join(spanning), "echo after"]
    assert errors == []


def test_two_spans_behind_each_other_are_two_commands() -> None:
    assert grouped("cat <<EOF", "a", "EOF", "cat <<EOF", "b", "EOF")[0] == [
        "cat <<EOF\na\nEOF",
        "cat <<EOF\nb\nEOF",
    ]


@pytest.mark.parametrize(
    "whole",
    [
        "",
        "# it's a comment",
        "echo $((1 << 3))",
        "cat <<< x",
        "a=(1 2)",
        "[[ a =~ ^(b|c) ]]",
        "echo '<<EOF'",
        "cat <<A <<B\n1\nA\n2\nB",
    ],
)
def test_what_is_whole_is_left_alone(whole: str) -> None:
    assert shell.check([whole, "true"], shell.Bash()) == {}


@pytest.mark.parametrize(
    "broken",
    ["echo )", "fi", "echo 'unclosed", "done <x", "}", "a)(b", "cat <<X", "}\n{", "if; then", '" $('],
)
def test_what_is_broken_is_found_among_others(broken: str) -> None:
    good = ["echo ok"] * 5
    assert list(shell.check([*good, broken, *good], shell.Bash())) == [5]
    assert grouped(*good, broken)[1] == [5]


def test_one_process_for_thousands(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    real = subprocess.run

    def counted(*args: Any, **more: Any) -> Any:
        calls.append(args)
        return real(*args, **more)

    monkeypatch.setattr(subprocess, "run", counted)
    assert shell.check(["echo 'a b'", "[ -e x ] || exit 1"] * 2000, shell.Bash()) == {}
    assert len(calls) == 1


def test_nothing_is_run() -> None:
    evil = "}\n) }\ntouch /tmp/should-not-be-there-$PPID; exit 0\nstep() { (\n{"
    shell.check([evil, "$(touch /tmp/should-not-be-there)"], shell.Bash())
    shell.group([evil], [0], shell.Bash())
    from pathlib import Path

    assert not list(Path("/tmp").glob("should-not-be-there*"))


SNIPPETS = st.lists(
    st.sampled_from(
        ["'", '"', "`", "(", ")", "{", "}", "<<E", "E", "\n", " ", "if", "fi", ";", "then", "a", "#", "\\"]
    ),
    max_size=7,
).map(" ".join)


@settings(max_examples=150, deadline=None)
@example([") \n ( E"])
@example(["<<E <<E", "E"])
@example(["a", "( a ) \n } \n { a"])
@given(st.lists(SNIPPETS, min_size=1, max_size=4))
def test_agrees_with_bash_on_each_alone(snippets: list[str]) -> None:
    bad = shell.check(snippets, shell.Bash())
    for index, snippet in enumerate(snippets):
        alone = subprocess.run(["bash", "-n"], input=snippet.encode(), capture_output=True, check=False)
        if alone.returncode or alone.stderr:
            assert index in bad, snippet
