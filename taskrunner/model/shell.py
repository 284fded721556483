"""What bash makes of the texts of a task file, without running any of them (`bash -n`).

A step's `commands` are elements of an array, and one command may span several of them: a
here-document, a quoted script. Elements are joined until bash can parse them.
"""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Sequence
from typing import NamedTuple

from taskrunner.engine.run.step_script import whole
from taskrunner.model.here_documents import HERE_DOCUMENT

INCOMPLETE = re.compile(r"unexpected end of file|unexpected EOF|delimited by end-of-file")
WANTED = re.compile(r"delimited by end-of-file \(wanted `(.+)'\)")
PATIENCE = 2.5
"""Seconds of processor time for which bash is asked about one file."""
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


class Exhausted(Exception):
    """Bash was asked for too long about one file."""


class Bash:
    """Asks bash, for a while."""

    def __init__(self) -> None:
        self._began = _spent()

    def complaint(self, text: str) -> str:
        """What bash says against a text, "" when nothing. Raises Exhausted."""
        if _spent() - self._began > PATIENCE:
            raise Exhausted
        return _complaint(text)


def _spent() -> float:
    """Seconds of processor time that the processes have used which this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def check(snippets: Sequence[str], bash: Bash) -> dict[int, str]:
    """Which snippets are not valid bash, and what bash says of each.

    All go through one bash process; only when it refuses them are the culprits looked for, by
    halves. Raises Exhausted.
    """
    bad: dict[int, str] = {}

    def visit(low: int, high: int) -> None:
        if low >= high:
            return
        if not bash.complaint("".join(map(_fenced, snippets[low:high]))):
            return
        if high - low == 1:
            bad[low] = bash.complaint(snippets[low]) or "the brackets or quotes are not balanced"
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
    A snippet that closes the bracket and opens one of its own meets braces the second time. (What is
    nested deeper can still slip through here; bash refuses it when the step runs.)
    """
    matches = HERE_DOCUMENT.finditer(snippet)
    delimiters = [match["double"] or match["single"] or match["bare"] for match in matches]
    closers = "".join(f": '\n{delimiter}\n'\n" for delimiter in delimiters)
    traps = "#' ;; ;;\n#\" ;; ;;\n#` ;; ;;\n"
    inner = f"\n:\n{snippet}\n{closers}{traps}"
    braces = f"step() {{ {{{inner}}} }}\n{traps}" if ")" in snippet else ""
    return f"step() {{ ({inner}) }}\n{traps}{braces}"


def group_of(elements: Sequence[str], first: int, last: int) -> Group:
    """The command that some of the elements make together."""
    return Group(whole("\n".join(elements[first : last + 1])), first, last)


def group(elements: Sequence[str], bad: Sequence[int], bash: Bash) -> tuple[list[Group], list[ShellError]]:
    """The commands that the elements make; `bad` are the elements that `check` refused alone.

    Raises Exhausted.
    """
    groups: list[Group] = []
    errors: list[ShellError] = []
    first = 0
    while first < len(elements):
        last, text = first, elements[first]
        complaint = bash.complaint(text) if first in bad else ""
        refused = first in bad
        while last + 1 < len(elements) and (_incomplete(complaint, refused) or UNFINISHED_LINE.search(text)):
            more = _until_delimiter(elements, last + 1, complaint)
            text = "\n".join([text, *elements[last + 1 : more + 1]])
            last = more
            complaint = bash.complaint(text)
            refused = bool(complaint)
        if not refused and UNFINISHED_LINE.search(text):
            # It continues on a line that never comes: is it whole without that?
            complaint = bash.complaint(whole(text))
            refused = bool(complaint)
        if refused:
            alone = bash.complaint(elements[first]) or complaint
            errors.append(ShellError(first, alone or "the brackets or quotes are not balanced"))
            last = first
        groups.append(group_of(elements, first, last))
        first = last + 1
    return groups, errors


def _incomplete(complaint: str, refused: bool) -> bool:
    return refused and bool(INCOMPLETE.search(complaint))


def _until_delimiter(elements: Sequence[str], start: int, complaint: str) -> int:
    """The element up to which an incomplete command must go at least: where the here-document ends that
    bash misses the end of.
    """
    wanted = WANTED.search(complaint)
    if wanted is not None:
        for number in range(start, len(elements)):
            if any(line.lstrip("\t") == wanted[1] for line in elements[number].split("\n")):
                return number
    return start


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
    complaint = result.stderr.decode("utf-8", "replace").strip()
    if result.returncode == 0 and not complaint:
        return ""
    line = next((line for line in complaint.splitlines() if line.strip()), f"exit {result.returncode}")
    return re.sub(r"^bash: (?:warning: )?(?:line \d+: )?(?:warning: )?", "", line)
