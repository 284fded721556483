"""A task file as text: parsed JSON that knows where in the file each of its values stands."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from taskrunner.errors import NotFoundError, Problem, TaskFileError, in_order

Place = tuple[str | int, ...]
"""The way to a value: names of members and indices of elements, from the top."""

SHARED = ("include", "services", "steps")
"""Members of a file that say what it shares with others (see `include`)."""
MOST_PROBLEMS = 2000
TOKEN = re.compile(r'[ \t\n\r]*("(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+)', re.DOTALL)
ESCAPE = re.compile(r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u.{4}|.)|.", re.DOTALL)


class Document:
    """The text of a task file and the JSON value in it.

    `name` is the file as the user called it, for messages. Raises TaskFileError when the text is
    not JSON that can be used: syntax, duplicate keys, NaN, lone surrogates.
    """

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self._told: list[Problem] = []
        self.included: list[Document] = []
        self.origins: dict[Place, tuple[Document, Place]] = {}
        """What in `data` is written in another place (see `include`)."""
        self.written = self.data = accepted(self._parse())

    @classmethod
    def read(cls, path: Path, name: str = "") -> Document:
        """Read a file. Raises NotFoundError, TaskFileError."""
        name = name or str(path)
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise NotFoundError(f"{name}: {error.strerror}") from error
        try:
            return cls(name, raw.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            before = raw[: error.start]
            line = before.count(b"\n") + 1
            column = error.start - (before.rfind(b"\n") + 1) + 1
            message = f"byte 0x{raw[error.start]:02x} is not UTF-8"
            hint = "save the file as UTF-8"
            raise TaskFileError([Problem(name, line, column, "", message, hint)]) from error

    @property
    def shares(self) -> bool:
        """Whether it includes or extends something (see include.py)."""
        return isinstance(self.data, dict) and ("include" in self.data or '"extends"' in self.text)

    @property
    def identity(self) -> str:
        """The text, with those of the files that it includes."""
        return "\0".join([self.text, *(other.text for other in self.included)])

    def _parse(self) -> Any:
        duplicates = False

        def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            nonlocal duplicates
            table = dict(pairs)
            duplicates = duplicates or len(table) < len(pairs)
            return table

        try:
            data = json.loads(self.text, object_pairs_hook=members, parse_constant=_refuse)
        except json.JSONDecodeError as error:
            raise TaskFileError([self._syntax_problem(error)]) from error
        except RecursionError as error:
            raise TaskFileError([Problem(self.name, 1, 1, "", "nested too deeply")]) from error
        except ValueError as error:
            raise TaskFileError([Problem(self.name, 1, 1, "", f"not valid JSON: {error}")]) from error
        if duplicates:
            twice = islice(self._scan[1], MOST_PROBLEMS)
            raise TaskFileError([self._duplicate(place, first) for place, first in twice])
        if "\\u" in self.text:
            problems = [
                self.problem(place, "a lone surrogate escape is not a character")
                for place, value in strings(data)
                if re.search("[\ud800-\udfff]", value)
            ]
            if problems:
                raise TaskFileError(problems)
        return data

    @cached_property
    def _scan(self) -> tuple[dict[Place, tuple[int, int]], list[tuple[int, int]]]:
        """Offsets of each member's name and value, and of each duplicate name and its first."""
        places: dict[Place, tuple[int, int]] = {}
        duplicates: list[tuple[int, int]] = []
        stack: list[list[Any]] = []  # [kind, current key or index, offset of the key]
        for match in TOKEN.finditer(self.text):
            token, offset = match[1], match.start(1)
            top = stack[-1] if stack else None
            if token in ("]", "}"):
                stack.pop()
            elif token == ",":
                if top is not None:
                    top[1] = top[1] + 1 if top[0] == "[" else None
            elif token == ":":
                continue
            elif top is not None and top[0] == "{" and top[1] is None:
                top[1], top[2] = json.loads(token), offset
                place = tuple(level[1] for level in stack)
                if place in places:
                    duplicates.append((offset, places[place][0]))
            else:
                place = tuple(level[1] for level in stack)
                key = top[2] if top is not None and top[0] == "{" else offset
                places.setdefault(place, (key, offset))
                if token in ("[", "{"):
                    stack.append([token, 0 if token == "[" else None, offset])
        return places, duplicates

    @cached_property
    def _lines(self) -> list[int]:
        return [0, *(match.end() for match in re.finditer("\n", self.text))]

    def line_column(self, offset: int) -> tuple[int, int]:
        line = bisect_right(self._lines, offset)
        return line, offset - self._lines[line - 1] + 1

    def source(self, place: Place) -> tuple[Document, Place]:
        """The document in which a value of `data` is written, and its place there."""
        for end in range(len(place), 0, -1):
            if place[:end] in self.origins:
                document, origin = self.origins[place[:end]]
                return document, (*origin, *place[end:])
        return self, place

    def line(self, place: Place) -> int:
        """The line of a value, from 1; of the nearest value around it when it is not there."""
        document, place = self.source(place)
        return document.line_column(document._offset(place, key=False))[0]

    def _offset(self, place: Place, key: bool) -> int:
        places = self._scan[0]
        while place and place not in places:
            place, key = place[:-1], False
        return places.get(place, (0, 0))[0 if key else 1]

    def problem(
        self, place: Place, message: str, hint: str = "", *, at: int = 0, key: bool = False, rule: str = ""
    ) -> Problem:
        """A problem with a value: `at` characters into a string, or with the member's name.

        Raises TaskFileError when there are very many, as in a file that is something else.
        """
        document, place = self.source(place)
        if document is not self:
            return document.problem(place, message, hint, at=at, key=key, rule=rule)
        offset = self._offset(place, key)
        if at:
            # Each character of the string may be written as an escape of several.
            for match in islice(ESCAPE.finditer(self.text, offset + 1), at):
                offset = match.end()
        line, column = self.line_column(offset)
        reported = Problem(self.name, line, column, show(place), message, hint, rule)
        if not rule:
            self._told.append(reported)
            if len(self._told) > MOST_PROBLEMS:
                rest = Problem(self.name, line, column, "", "more problems exist; these are the first")
                raise TaskFileError([*in_order(self._told[:-1]), rest])
        return reported

    def _duplicate(self, offset: int, first: int) -> Problem:
        line, column = self.line_column(offset)
        name = TOKEN.match(self.text, offset)
        text = name[1] if name else ""
        message = f"duplicate key {text}, first used on line {self.line_column(first)[0]}"
        return Problem(self.name, line, column, "", message, "only one of them would apply")

    def _syntax_problem(self, error: json.JSONDecodeError) -> Problem:
        offset, message, hint = error.pos, error.msg, ""
        before = self.text[:offset].rstrip()
        after = self.text[offset:].lstrip()
        if after[:2] in ("//", "/*") or after[:1] == "#":
            message, hint = "JSON has no comments", 'put it in a member like "_comment"'
            offset = len(self.text) - len(after)
        elif "trailing comma" in message.lower() or (before.endswith(",") and after[:1] in ("}", "]")):
            message, hint = "a comma before the closing bracket", "remove it"
            offset = offset if self.text[offset : offset + 1] == "," else len(before) - 1
        elif after[:1] == "'":
            message, hint = "strings are written in double quotes", ""
        elif "Invalid control character" in message:
            message, hint = "a line break or control character inside a string", "write it as \\n"
        elif "Invalid \\escape" in message:
            message, hint = "an unknown escape in a string", "a backslash is written as \\\\"
        elif not self.text.strip():
            message = "the file is empty"
        elif not after:
            message = "the file ends too early: a bracket or quote is not closed"
        line, column = self.line_column(min(offset, len(self.text)))
        return Problem(self.name, line, column, "", message, hint)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a JSON number")


OPTIONAL_PARTS = ("service", "wait_for", "retries")


def accepted(data: Any) -> Any:
    """The JSON value of a task file, where another spelling has the same meaning as that of the schema:
    an optional member that is null is not there, and a number as an id is its text. Other values are left
    as they are.
    """
    if not isinstance(data, dict) or not isinstance(data.get("tasks"), list):
        return data
    data = _without_nulls(data)
    data["tasks"] = [_accepted_task(task) if isinstance(task, dict) else task for task in data["tasks"]]
    if isinstance(data.get("metadata"), dict):
        data["metadata"] = _without_nulls(data["metadata"])
    if isinstance(data.get("variables"), dict):
        data["variables"] = {
            name: _without_nulls(value) if isinstance(value, dict) else {} if value is None else value
            for name, value in data["variables"].items()
        }
    return data


def _accepted_task(task: dict[str, Any]) -> dict[str, Any]:
    if "commands" in task and task["commands"] is None:
        task = {**task, "commands": []}
    task = _without_nulls(task)
    if isinstance(task.get("id"), (int, float)) and not isinstance(task["id"], bool):
        task["id"] = str(task["id"])
    for name in OPTIONAL_PARTS:
        if isinstance(task.get(name), dict):
            task[name] = _accepted_part(task[name])
    return task


def _accepted_part(part: dict[str, Any]) -> dict[str, Any]:
    part = _without_nulls(part)
    if isinstance(part.get("ready"), dict):
        part["ready"] = _without_nulls(part["ready"])
    return part


def _without_nulls(part: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in part.items() if value is not None}


def strings(value: Any, place: Place = ()) -> Iterator[tuple[Place, str]]:
    """Every string in a JSON value, with its place; members whose name starts with _ are left out."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from strings(item, (*place, index))
    elif isinstance(value, dict):
        for name, item in value.items():
            if not name.startswith("_"):
                yield from strings(item, (*place, name))


def show(place: Place) -> str:
    """A place as a path: tasks[2].commands[0]."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
