"""What bash makes of the texts of a task file, without running any of them (`bash -n`).

A step's `commands` are elements of an array, and one command may span several of them: a
here-document, a quoted script. Elements are joined until bash can parse them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from taskrunner.engine.script import whole
from taskrunner.model.variables import HERE_DOCUMENT

INCOMPLETE = re.compile(r"unexpected end of file|unexpected EOF|delimited by end-of-file")
UNFINISHED_LINE = re.compile(r"(?:^|[^\\])(?:\\\\)*\\$")
"""Ends in a backslash that continues the line."""


class Group(NamedTuple):
    """Elements of `commands` that make one command: `text`, and which of them it starts with."""

    text: str
    first: int
    last: int


class ShellError(NamedTuple):
    """A snippet that is not valid bash: the index of its element, and what bash says."""

    element: int
    message: str


def check(snippets: Sequence[str]) -> dict[int, str]:
    """Which snippets are not valid bash, and what bash says of each.

    All go through one bash process; only when it refuses them are the culprits looked for, by
    halves.
    """
    bad: dict[int, str] = {}

    def visit(low: int, high: int) -> None:
        if low >= high:
            return
        if not _complaint("".join(map(_fenced, snippets[low:high]))):
            return
        if high - low == 1:
            bad[low] = _complaint(snippets[low]) or "the brackets or quotes are not balanced"
            return
        middle = (low + high) // 2
        visit(low, middle)
        visit(middle, high)

    visit(0, len(snippets))
    return bad


def _fenced(snippet: str) -> str:
    """The snippet between lines that mean nothing behind a whole one, and are an error behind an
    open one: what one snippet opens must not be closed by the next.

    An open bracket or keyword meets the brackets around. An open quote is closed by its like in one
    of the comments, and meets there what is an error anywhere, in a `case` at the second time. An
    open here-document is closed by its delimiter, which otherwise is inside a string, and opens a
    quote at the end of that. The comments stand there again for a quote around an open substitution.
    (What is nested deeper can still slip through here; bash refuses it when the step runs.)
    """
    found = HERE_DOCUMENT.finditer(snippet)
    delimiters = {match["double"] or match["single"] or match["bare"] for match in found}
    closers = "".join(f": '\n{delimiter}\n'\n" for delimiter in sorted(delimiters))
    traps = "#' ;; ;;\n#\" ;; ;;\n#` ;; ;;\n"
    return f"step() {{ (\n:\n{snippet}\n{closers}{traps}) }}\n{traps}"


def group_of(elements: Sequence[str], first: int, last: int) -> Group:
    """The command that some of the elements make together."""
    return Group(whole("\n".join(elements[first : last + 1])), first, last)


def group(elements: Sequence[str], bad: Sequence[int]) -> tuple[list[Group], list[ShellError]]:
    """The commands that the elements make; `bad` are the elements that `check` refused alone."""
    groups: list[Group] = []
    errors: list[ShellError] = []
    first = 0
    while first < len(elements):
        last, text = first, elements[first]
        complaint = _complaint(text) if first in bad else ""
        refused = first in bad
        while last + 1 < len(elements) and (_incomplete(complaint, refused) or UNFINISHED_LINE.search(text)):
            last += 1
            text += "\n" + elements[last]
            complaint = _complaint(text)
            refused = bool(complaint)
        if not refused and UNFINISHED_LINE.search(text):
            # It continues on a line that never comes: is it whole without that?
            complaint = _complaint(whole(text))
            refused = bool(complaint)
        if refused:
            alone = _complaint(elements[first]) or complaint
            errors.append(ShellError(first, alone or "the brackets or quotes are not balanced"))
            last = first
        groups.append(group_of(elements, first, last))
        first = last + 1
    return groups, errors


def _incomplete(complaint: str, refused: bool) -> bool:
    return refused and bool(INCOMPLETE.search(complaint))


def _complaint(text: str) -> str:
    """What bash says against a text, "" when nothing. The text is parsed, never run."""
    import subprocess

    result = subprocess.run(
        ["bash", "--norc", "--noprofile", "-O", "extglob", "-n"],
        input=text.encode("utf-8", "surrogateescape"),
        capture_output=True,
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        check=False,
    )
    said = result.stderr.decode("utf-8", "replace").strip()
    if result.returncode == 0 and not said:
        return ""
    line = next((line for line in said.splitlines() if line.strip()), f"exit {result.returncode}")
    return re.sub(r"^bash: (?:warning: )?(?:line \d+: )?(?:warning: )?", "", line)
