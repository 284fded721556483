"""A step as one bash process: the program it is given and the marks it leaves.

The program reaches bash on standard input, in a file that also takes the marks: never in an
argument, which anyone could read, and whole before it starts, so that a step which changes its own
script changes nothing. It works through sudo, too, which closes every other descriptor.

Marks, one a line behind the program. The engine writes `i<json>` (which step this is) and `p<json>`
(which process) before the program runs. The program writes `g<status>` (its guard does not hold), `s` (it
holds: skip), `c<index>` (a command starts) and `d` (all are done). How the process ended is the business
of its parent, whom no trap, `exec` or closed descriptor can deceive: `x<status>` comes from reaper.py
where the engine is gone, in a place kept free for it, which a full disk cannot take.
"""

from __future__ import annotations

import contextlib
import json
import os
import re

from ..store import fileio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterable, Mapping, NamedTuple

    class Marks(NamedTuple):
        """What is noted of a step's process; None for what it has not reached.

        `end` is its exit status, -N for signal N.
        """

        step: dict[str, Any] | None = None
        process: dict[str, Any] | None = None
        skipped: bool = False
        guard: int | None = None
        command: int | None = None
        done: bool = False
        end: int | None = None

else:
    from collections import namedtuple

    Marks = namedtuple(
        "Marks",
        "step process skipped guard command done end",
        defaults=(None, None, False, None, None, False, None),
    )

MARKS_FD = 198
"""High enough to leave the descriptors that scripts use (`exec 9>lock; flock 9`) alone."""

GO_FD = 199

WAIT = "read -r -u %d || exit 125; exec %d<&-; " % (GO_FD, GO_FD)
BOOT = (
    'IFS= read -r -d "" TASKRUNNER_PROGRAM || exit 125; exec %d<&0 </dev/null; set --; '
    'eval "unset TASKRUNNER_PROGRAM; $TASKRUNNER_PROGRAM"' % MARKS_FD
)
PLACE_FOR_END = b"x     \n"
CHECK = "case $? in 0) ;; *) builtin exit $?;; esac"
XTRACE = r"\bset\s+(?:\S+\s+)*?-\w*x|\bset\s.*\bxtrace\b"
UNTRACED = """{ case ${TASKRUNNER_XTRACE-} in x) set -x;; esac; } 2>/dev/null
%s
{
TASKRUNNER_STATUS=$?; case $- in *x*) TASKRUNNER_XTRACE=x;; *) TASKRUNNER_XTRACE=;; esac; set +x
} 2>/dev/null"""
"""Around a command of a step that uses `set -x`: the trace shows the commands of the task file alone."""


def argv(tag: str, wait: bool = False) -> list[str]:
    """The command line of a step's process. With `wait` it does nothing before it gets a line on GO_FD.

    Nothing of the task file is in it: a step that looks for a process by a pattern must not find itself.
    `tag` tells the process from any other, whatever its pid.
    """
    return ["bash", "--norc", "--noprofile", "-c", WAIT + BOOT if wait else BOOT, "bash", tag]


def as_user(user: str, command: list[str]) -> list[str]:
    """The command line that runs `command` as another user, without asking for a password."""
    if os.geteuid() == 0:
        return ["runuser", "-u", user, "--"] + command
    return ["sudo", "-n", "-H", "-u", user, "--"] + command


def quote(text: str) -> str:
    """`text` as one word for the shell."""
    return "'" + text.replace("'", "'\\''") + "'"


def whole(text: str) -> str:
    """A command without a backslash at its end that continues it on a line which never comes."""
    bare = text.rstrip("\\")
    return text[:-1] if (len(text) - len(bare)) % 2 else text


def program(
    cwd: str, guard: str | None, commands: Iterable[str], exports: Mapping[str, str] | None = None
) -> bytes:
    """The bash program of a step; `exports` are for a user whose environment starts empty."""
    commands = [whole(command) for command in commands]
    traced = any("set" in command and re.search(XTRACE, command) for command in commands)
    lines = ["export %s=%s" % (name, quote(value)) for name, value in (exports or {}).items()]
    lines.append(
        "builtin cd -- %s || { echo %s >&2; builtin exit 1; }"
        % (quote(cwd), quote("cannot enter the working directory: " + cwd))
    )
    if guard is not None:
        lines += [
            "( eval %s )" % quote(whole(guard)),
            "case $? in 0) %s; builtin exit 0;; *) %s;; esac" % (_mark("s"), _mark("g%s", '"$?"')),
        ]
    for index, command in enumerate(commands):
        lines.append(_mark("c%d" % index))
        if traced:
            lines.append("eval %s" % quote(UNTRACED % command))
            lines.append(CHECK.replace("$?", "$TASKRUNNER_STATUS"))
        else:
            lines += ["eval %s" % quote(command), CHECK]
    lines.append("%s; builtin exit 0" % _mark("d"))
    return "\n".join(lines).encode("utf-8", "surrogateescape") + b"\0"


def _mark(text: str, *values: str) -> str:
    """A command that writes a mark, and does no harm where a step has closed the descriptor."""
    words = " ".join([quote(text + "\\n"), *values])
    return "{ builtin printf %s >&%d; } 2>/dev/null || :" % (words, MARKS_FD)


def write(path: str, content: bytes, step: Mapping[str, object] | None = None, named: bool = True) -> int:
    """Write the program and return a descriptor, at its start, to be the process's stdin.

    `step` is what to know of it: at least its `id` and its `key`. Without a name, nothing of it is left
    when the process has ended, in whatever way.
    """
    content += PLACE_FOR_END + mark_line(b"i", step or {})
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    try:
        if not named:
            os.unlink(path)
        fileio.write_all(fd, content)
        os.lseek(fd, 0, os.SEEK_SET)
    except OSError:
        os.close(fd)
        raise
    return fd


def mark_line(kind: bytes, value: Mapping[str, object]) -> bytes:
    return kind + json.dumps(value).encode() + b"\n"


def write_end(path: str, status: int) -> None:
    """Note how the process of a program ended, in the place that is kept free for it. Raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        place = os.pread(fd, os.fstat(fd).st_size, 0).find(b"\0" + PLACE_FOR_END[:1]) + 1
        if place > 0:
            os.pwrite(fd, b"x%-5d" % status, place)
    finally:
        os.close(fd)


def forget(path: str) -> None:
    """Overwrite the program of a process that has ended, and keep its marks. Raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        end = os.pread(fd, os.fstat(fd).st_size, 0).find(b"\0")
        os.pwrite(fd, b" " * end, 0)
    finally:
        os.close(fd)


def read_marks(data: bytes) -> Marks:
    """The marks behind the program in a script file's content."""
    marks: dict[str, Any] = {}
    for line in data[data.find(b"\0") + 1 :].split(b"\n")[:-1]:
        kind, value = line[:1].decode("latin-1"), line[1:].strip()
        if kind == "s":
            marks["skipped"] = True
        elif kind == "d":
            marks["done"] = True
        elif kind in ("i", "p"):
            with contextlib.suppress(ValueError):
                mark = json.loads(value)
                marks["step" if kind == "i" else "process"] = mark if isinstance(mark, dict) else None
        elif kind in NUMBERS:
            with contextlib.suppress(ValueError):
                marks[NUMBERS[kind]] = int(value)
    return Marks(**marks)


NUMBERS = {"g": "guard", "c": "command", "x": "end"}
