"""A step as one bash process: the program it is given and the marks it leaves.

The program reaches bash on standard input, in a file that also takes the marks: never in an
argument, which anyone could read, and whole before it starts, so that a step which changes its own
script changes nothing. It works through sudo, too, which closes every other descriptor.

Marks, one a line behind the program: `p<pid>`, `s` (the guard holds: skip), `g<status>` (it does
not), `c<index>` (a command starts), `e<status>` (the end). They outlive the engine, so the next one
can tell a step that finished from one that was cut.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterable, Mapping, NamedTuple

    class Marks(NamedTuple):
        """What a step's process has noted of itself; None for what it has not reached."""

        pid: int | None
        skipped: bool
        guard: int | None
        command: int | None
        end: int | None

else:
    from collections import namedtuple

    Marks = namedtuple("Marks", "pid skipped guard command end")

MARKS_FD = 198
"""High enough to leave the descriptors that scripts use (`exec 9>lock; flock 9`) alone."""

GO_FD = 199

WAIT = "read -r -u %d || exit 125; exec %d<&-; " % (GO_FD, GO_FD)
BOOT = (
    'IFS= read -r -d "" TASKRUNNER_PROGRAM; exec %d<&0 </dev/null; set --; '
    'eval "unset TASKRUNNER_PROGRAM; $TASKRUNNER_PROGRAM"' % MARKS_FD
)


def argv(name: str, tag: str, wait: bool = False) -> list[str]:
    """The command line of a step's process.

    `name` is what bash calls itself in its messages; `tag` tells the process from any other,
    whatever its pid. With `wait` it does nothing before it gets a line on GO_FD.
    """
    return ["bash", "--norc", "--noprofile", "-c", WAIT + BOOT if wait else BOOT, name, tag]


def as_user(user: str, command: list[str]) -> list[str]:
    """The command line that runs `command` as another user, without asking for a password."""
    if os.geteuid() == 0:
        return ["runuser", "-u", user, "--"] + command
    return ["sudo", "-n", "-H", "-u", user, "--"] + command


def quote(text: str) -> str:
    """`text` as one word for the shell."""
    return "'" + text.replace("'", "'\\''") + "'"


def program(
    cwd: str, guard: str | None, commands: Iterable[str], exports: Mapping[str, str] | None = None
) -> bytes:
    """The bash program of a step; `exports` are for a user whose environment starts empty."""
    mark = "builtin printf '%s\\n'"
    lines = ["%s p$$ >&%d" % (mark, MARKS_FD)]
    lines += ["export %s=%s" % (name, quote(value)) for name, value in (exports or {}).items()]
    lines.append(
        "builtin cd -- %s || { echo %s >&2; builtin exit 1; }"
        % (quote(cwd), quote("the working directory cannot be entered: " + cwd))
    )
    # An explicit `exit 0` ends the step as done, so the end is marked by the shell's own exit.
    lines.append("trap %s EXIT" % quote('%s "e$?" >&%d' % (mark, MARKS_FD)))
    if guard is not None:
        lines += [
            "( eval %s )" % quote(guard),
            'case $? in 0) %s s >&%d; builtin exit 0;; *) %s "g$?" >&%d;; esac'
            % (mark, MARKS_FD, mark, MARKS_FD),
        ]
    for index, command in enumerate(commands):
        lines += [
            "%s c%d >&%d" % (mark, index, MARKS_FD),
            "eval %s" % quote(command),
            "case $? in 0) ;; *) builtin exit;; esac",
        ]
    # Also where a command has set an EXIT trap of its own.
    lines.append("%s e0 >&%d; builtin exit 0" % (mark, MARKS_FD))
    return "\n".join(lines).encode("utf-8", "surrogateescape") + b"\0"


def write(path: str, content: bytes) -> int:
    """Write the program and return a descriptor, at its start, to be the process's stdin."""
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def read_marks(data: bytes) -> Marks:
    """The marks behind the program in a script file's content."""
    pid = guard = command = end = None
    skipped = False
    for line in data[data.find(b"\0") + 1 :].split(b"\n")[:-1]:
        kind, value = line[:1], line[1:]
        if kind == b"s":
            skipped = True
        elif value.isdigit():
            number = int(value)
            if kind == b"p":
                pid = number
            elif kind == b"g":
                guard = number
            elif kind == b"c":
                command = number
            elif kind == b"e":
                end = number
    return Marks(pid, skipped, guard, command, end)
