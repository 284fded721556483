"""Everything that can go wrong, as one small hierarchy.

TaskrunnerError                exit status
├── UsageError                 2  an option or argument makes no sense
│   └── NotFoundError          2  no such task file, pack, step or run
├── TaskFileError              2  the task file has problems; all of them are listed
├── StateError                 2  the state folder cannot be read or written
├── TargetError                3  the target cannot be reached, or cannot run the engine
│   ├── HostKeyError           3  the target is not known, or not who it was
│   └── NeverRanError          130  the run was cancelled before the target has heard of it
├── LockHeldError              4  another run of the same task file is under way
└── EngineDiedError            1  the engine ended without saying how the run ended
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple


class Problem(NamedTuple):
    """One thing that is wrong with a task file, and where: `line` and `column` start at 1."""

    file: str
    line: int
    column: int
    path: str
    message: str
    hint: str = ""
    rule: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}: "
        path = f"{self.path}: " if self.path else ""
        hint = f" ({self.hint})" if self.hint else ""
        rule = f" [{self.rule}]" if self.rule else ""
        return where + path + self.message + hint + rule

    def as_dict(self) -> dict[str, Any]:
        return self._asdict()


class TaskrunnerError(Exception):
    """The base of all errors of this package. `hint` says what to do about it."""

    exit_status = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(TaskrunnerError):
    """An option or argument makes no sense."""


class NotFoundError(UsageError):
    """There is no such task file, pack, step or run."""


class TaskFileError(TaskrunnerError):
    """A task file has problems; `problems` holds every one of them."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = list(problems)


class StateError(TaskrunnerError):
    """The state folder cannot be read or written."""


class NoSuchFileError(StateError):
    """A file or folder is not on its node."""


class TargetError(TaskrunnerError):
    """The target cannot be reached, or cannot run the engine."""

    exit_status = 3


class HostKeyError(TargetError):
    """The target is not known, or not who it was."""


class NeverRanError(TargetError):
    """The run was cancelled before the target has heard of it."""

    exit_status = 130


class LockHeldError(TaskrunnerError):
    """Another run of the same task file is under way; `run` is its id."""

    exit_status = 4

    def __init__(self, run: str, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.run = run


class EngineDiedError(TaskrunnerError):
    """The engine ended without saying how the run ended."""

    exit_status = 1


class Detached(Exception):
    """The user has stopped following; the run goes on."""


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """The problems as they stand in the files, each once."""
    unique = dict.fromkeys(problems)
    files = list(dict.fromkeys(problem.file for problem in unique))
    return sorted(unique, key=lambda problem: (files.index(problem.file), problem.line, problem.column))


def closest(name: str, choices: Iterable[str]) -> str:
    """A "did you mean" for a name that is not known, or ""."""
    import difflib

    names = list(dict.fromkeys(islice(choices, 1000)))
    if len(names) > 300:
        # To compare with all of very many takes longer than a reader would.
        names = [other for other in names if other[:1] == name[:1]][:50]
    matches = difflib.get_close_matches(name, names, n=3, cutoff=0.55)
    return "did you mean " + " or ".join(matches) + "?" if matches else ""
