"""What is valid, but unwise: shellcheck on every command, and rules that the format suggests.

no-guard          a step without `skip_if` is skipped by its record alone
kill-by-pattern   pkill and killall hit whatever matches; a `service` knows its own processes
sleep-for-server  a fixed sleep after starting a server; `service.ready` or `wait_for` asks it
nested-quotes     <<VAR>> inside the double quotes of a nested shell is expanded twice
short-secret      a secret of fewer than 4 characters cannot be masked
lost-status       without `set -o pipefail`, a pipe succeeds when its last command does
not-replaced      <<VAR>> inside a quoted here-document stays as it is
SC....            shellcheck's own
"""

from __future__ import annotations

import json
import re
import subprocess
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from taskrunner.errors import NotFoundError, Problem, in_order
from taskrunner.model import checks, shell
from taskrunner.model.compile import SHORTEST_SECRET
from taskrunner.model.document import Document, Place
from taskrunner.model.here_documents import literals
from taskrunner.model.variables import (
    TEMPLATE,
    Variables,
    declared,
    render_task,
    resolve,
    text_of,
)

KILL = re.compile(r"(?:^|[;&|(]|\s)(?:sudo\s+)?(pkill\b[^;|&]*\s-\w*f|killall(?=\s|$))")
SLEEP = re.compile(r"(?:^|[;&|]|\s)sleep\s+[0-9.]+")
BACKGROUND = re.compile(r"(?:nohup|setsid|serve|server)\b.*(?<![&>])&\s*(?:$|[;#\n])|\bnohup\b")
NESTED = re.compile(r"\b(?:ba|da|z)?sh\s+-\w*c\s+\"([^\"]*)\"")
PIPEFAIL = re.compile(r"\bpipefail\b")
QUOTED = re.compile(
    r"""'[^']*'|"(?:[^"\\]|\\.)*"|\\.|(?:^|(?<=\s))\#[^\n]*  # quotes and comments
    |\[\[\s.*?\s\]\]|[!@?*+]\([^)]*\)|(?:\bin|;;)\s+[^();\n]*\)  # patterns: of [[ ]], of names, of case
    """,
    re.DOTALL | re.VERBOSE,
)
PIPE = re.compile(r"(?<![|>])\|(?!\|)")
HARMLESS = re.compile(r"(?:^|[;&|\n({])\s*(?:echo|printf|yes|cat\s*<<)\b[^;&|\n]*$|\$\([^)]*$|\|[^;&\n]*$")
"""Before a pipe: what does not fail, is inside a substitution, or is reported with the pipe before it."""
IGNORED = (
    "SC1091",  # a sourced file that is only on the target
    "SC2154",  # variables come from the task file
    "SC2164",  # a failed cd ends the step
    "SC2034",  # a variable may be for a later command of another element
)


def lint(document: Document) -> list[Problem]:
    """Everything unwise in a valid task file, in the order of the file.

    Raises NotFoundError when shellcheck is not installed.
    """
    return in_order([*_own_rules(document), *_shellcheck(document)])


def _own_rules(document: Document) -> Iterator[Problem]:
    for name, entry in declared(document).items():
        default = text_of(entry.get("default", ""))
        if entry.get("secret") and 0 < len(default) < SHORTEST_SECRET:
            message = f"a secret of {len(default)} characters cannot be masked"
            yield document.problem(("variables", name), message, rule="short-secret", key=True)
    yield from checks.kept(document, declared(document))
    for index, task in enumerate(document.data["tasks"]):
        place: Place = ("tasks", index)
        commands = task.get("commands") or []
        if commands and "skip_if" not in task and not task.get("always"):
            message = "the step has no skip_if: once it has succeeded, only --reset runs it again"
            yield document.problem((*place, "id"), message, "add a check that it is done", rule="no-guard")
        yield from _lost_statuses(document, place, commands)
        joined = "\n".join(commands)
        background = BACKGROUND.search(joined)
        for element, text in enumerate(commands):
            where = (*place, "commands", element)
            if match := KILL.search(text):
                message = f"{match[1].split()[0]} hits every process that matches"
                hint = 'stop a service with {"service": {"name": ..., "state": "stopped"}}'
                yield document.problem(where, message, hint, at=match.start(1), rule="kill-by-pattern")
            if background and (match := SLEEP.search(text)):
                message = "a fixed sleep cannot tell when the server is ready"
                hint = "use a service with `ready`, or wait_for"
                yield document.problem(where, message, hint, at=match.start(), rule="sleep-for-server")
            for nested in NESTED.finditer(text):
                for mark in TEMPLATE.finditer(nested[1]):
                    if not (mark["new_q"] or mark["old_q"]):
                        name = mark["new"] or mark["old"]
                        message = f"{mark[0]} inside the quotes of a nested shell is parsed by both shells"
                        at = nested.start(1) + mark.start()
                        hint = f"the variable is exported: write \\${name} there"
                        yield document.problem(where, message, hint, at=at, rule="nested-quotes")


def _lost_statuses(document: Document, place: Place, commands: Sequence[str]) -> Iterator[Problem]:
    """Pipes whose first commands can fail unseen."""
    bodies = literals(commands)
    for element, text in enumerate(commands):
        if PIPEFAIL.search(text):
            return
        # What stands in quotes, comments and here-documents is no pipe; its length stays.
        bare = QUOTED.sub(lambda match: "x" * len(match[0]), text)
        for start, end in bodies[element]:
            bare = bare[:start] + "x" * (end - start) + bare[end:]
        for found in PIPE.finditer(bare):
            if not HARMLESS.search(bare[: found.start()]):
                message = "a failure before this pipe goes unnoticed"
                hint = "put `set -o pipefail` before it"
                where = (*place, "commands", element)
                yield document.problem(where, message, hint, at=found.start(), rule="lost-status")
                break


def _shellcheck(document: Document) -> Iterator[Problem]:
    """Shellcheck's findings on each step's commands, at the elements that they come from."""
    variables, _ = resolve(document, {}, {}, placeholders=True)
    tasks = [render_task(task, _words(variables)) for task in document.data["tasks"]]
    groups, _ = checks.commands(document, tasks)
    program = _program()
    for index, (task, own) in enumerate(zip(tasks, groups, strict=True)):
        if task.get("skip_if"):
            for line, column, code, message in _run(program, task["skip_if"]):
                yield _at(document, ("tasks", index, "skip_if"), task["skip_if"], line, column, code, message)
        # One script for the step, as it is one shell; its lines are found again in the elements.
        lines = [(e, n) for group in own for e, n in _lines_of(task["commands"], group)]
        for line, column, code, message in _run(program, "\n".join(group.text for group in own)):
            element, inner = lines[min(line, len(lines)) - 1]
            place = ("tasks", index, "commands", element)
            yield _at(document, place, task["commands"][element], inner, column, code, message)


def _words(variables: Variables) -> dict[str, str]:
    """Values that are one harmless word, so that shellcheck looks at the text around them."""
    return {
        name: value if re.fullmatch(r"[\w./:-]+", value) else name for name, value in variables.values.items()
    }


def _lines_of(elements: Sequence[str], group: shell.Group) -> Iterator[tuple[int, int]]:
    for element in range(group.first, group.last + 1):
        for number in range(elements[element].count("\n") + 1):
            yield element, number + 1


def _at(
    document: Document, place: Place, text: str, line: int, column: int, code: str, message: str
) -> Problem:
    before = sum(len(part) + 1 for part in text.split("\n")[: line - 1])
    value: Any = document.data
    for part in place:
        value = value[part]
    # Templates have changed the columns; what is beyond the written text is shown at its end.
    return document.problem(place, message, at=min(before + column - 1, max(len(value) - 1, 0)), rule=code)


def _run(program: str, text: str) -> Iterator[tuple[int, int, str, str]]:
    if not text.strip():
        return
    result = subprocess.run(
        [program, "--shell=bash", "--format=json", "--severity=info", f"--exclude={','.join(IGNORED)}", "-"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    for item in json.loads(result.stdout or "[]"):
        yield item["line"], item["column"], f"SC{item['code']}", item["message"]


def _program() -> str:
    path = Path(sysconfig.get_path("scripts")) / "shellcheck"
    if path.exists():
        return str(path)
    import shutil

    elsewhere = shutil.which("shellcheck")
    if elsewhere is None:
        raise NotFoundError("lint needs shellcheck", "pip install 'taskrunner[lint]'")
    return elsewhere
