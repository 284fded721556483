"""Variables: where their values come from, and how they get into a step's texts."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from taskrunner.engine.run.step_script import quote
from taskrunner.errors import Problem, TaskFileError, closest
from taskrunner.model.document import Document, Place, strings
from taskrunner.model.here_documents import Following, Span, literals

TEMPLATE = re.compile(
    r"(?P<escape>(?<!\\)\\(?:\\\\)*(?!\\))?"
    r"(?:(?<!<)<<(?P<new>[A-Za-z_][A-Za-z0-9_]*)(?P<new_q>:q)?>>(?!>)"
    r"|\{\{(?P<old>[A-Za-z_][A-Za-z0-9_]*)(?P<old_q>:q)?\}\})"
)
"""A backslash before it says that the text itself is meant; two are two."""
NODE = re.compile(r"NODE[0-9]+_[A-Z0-9_]+")
"""Variables that describe nodes, taken from the environment of the controller."""

GO_WORDS = {"end", "else", "break", "continue"}
"""In double braces these are Go's, as in `docker inspect -f`."""

LARGEST = 16 << 20
"""Characters of all steps together, with the values of their variables."""
LARGEST_VARIABLE = 131_072
"""Bytes of NAME=value with its end: MAX_ARG_STRLEN of execve(2)."""
DEEPEST = 100
LINE = re.compile("^.*$", re.MULTILINE)
NOT_TEMPLATED = {"id", "name", "description", "when", "on_failure", "always"}


class Template(NamedTuple):
    """A `<<NAME>>` or `{{NAME}}` in a text; `escaped` where the text itself is meant."""

    name: str
    quoted: bool
    start: int
    end: int
    escaped: bool = False


class Variables(NamedTuple):
    """The resolved variables of a run, as text, and which of them are secret."""

    values: dict[str, str]
    secrets: frozenset[str]
    declared: dict[str, dict[str, Any]]


class TooLong(Exception):
    """With the values of its variables, a text grows to more than `LARGEST` characters."""


def templates(text: str, rest: Container[str] = (), literal: Sequence[Span] = ()) -> Iterator[Template]:
    """The templates in a text; `rest` has the lines that follow in the same shell, `literal` says where
    nothing is one.

    `<<EOF>>file` is a here-document, not a template, when a line with the delimiter follows.
    """
    for mark in _marks(text, rest, literal):
        if not mark.escaped:
            yield mark


def _marks(text: str, rest: Container[str], literal: Sequence[Span]) -> Iterator[Template]:
    begins: dict[str, int] = {}
    """Of each line the last place where it begins."""
    for match in TEMPLATE.finditer(text):
        name = match["new"] or match["old"]
        inside = bisect_right(literal, (match.start(), len(text))) - 1
        if inside >= 0 and match.start() < literal[inside][1]:
            continue
        if match["escape"]:
            pass
        elif match["new"]:
            if not begins and "\n" in text:
                for line in LINE.finditer(text):
                    begins[line[0]] = begins[line[0].lstrip("\t")] = line.start()
            if begins.get(name, -1) > match.end() or name in rest:
                continue
        elif name in GO_WORDS:
            continue
        quoted = bool(match["new_q"] or match["old_q"])
        start = match.end("escape") - 1 if match["escape"] else match.start()
        yield Template(name, quoted, start, match.end(), bool(match["escape"]))


def render(
    text: str,
    values: Mapping[str, str],
    rest: Container[str] = (),
    literal: Sequence[Span] = (),
    most: int = LARGEST,
) -> str:
    """The text with every template replaced; a name without a value is left alone. Raises TooLong."""
    if "<<" not in text and "{{" not in text:
        return text
    pieces, last, grown = [], 0, len(text)
    for mark in _marks(text, rest, literal):
        if mark.escaped:
            pieces.append(text[last : mark.start])
            last = mark.start + 1
        elif mark.name in values:
            value = values[mark.name]
            pieces += [text[last : mark.start], quote(value) if mark.quoted else value]
            last = mark.end
            grown += len(value)
            if grown > most:
                raise TooLong
    return "".join(pieces) + text[last:]


def task_strings(
    task: dict[str, Any], place: Place = ()
) -> Iterator[tuple[Place, str, Container[str], Sequence[Span]]]:
    """Every text of a step in which templates count: its place, itself, the lines that follow it in the
    same shell, and where it is literal.
    """
    commands = task.get("commands")
    elements = [c if isinstance(c, str) else "" for c in commands] if isinstance(commands, list) else []
    bodies, following = literals(elements), Following(elements)
    for inner, text in strings({k: v for k, v in task.items() if k not in NOT_TEMPLATED}):
        element = inner[1] if elements and inner[0] == "commands" and len(inner) == 2 else None
        if isinstance(element, int):
            following.index = element
            yield (*place, *inner), text, following, bodies[element]
        else:
            yield (*place, *inner), text, (), literals([text])[0]


class Room:
    """How many characters the texts of a file may still have, with the values of its variables."""

    def __init__(self) -> None:
        self.left = LARGEST

    def take(self, text: str) -> str:
        """The text. Raises TooLong."""
        self.left -= len(text)
        if self.left < 0:
            raise TooLong
        return text


def render_tasks(document: Document, values: Mapping[str, str]) -> list[dict[str, Any]]:
    """The steps with every template in them replaced. Raises TaskFileError where that makes them too long."""
    tasks: list[dict[str, Any]] = []
    room = Room()
    for index, task in enumerate(document.data["tasks"]):
        try:
            tasks.append(render_task(task, values, room))
        except TooLong:
            message = f"with its variables expanded, the file exceeds {LARGEST >> 20} MiB"
            hint = "put a large text into a file, or read it from the environment"
            raise TaskFileError([document.problem(("tasks", index), message, hint)]) from None
    return tasks


def render_task(task: dict[str, Any], values: Mapping[str, str], room: Room | None = None) -> dict[str, Any]:
    """The step with every template in it replaced; comments are left out. Raises TooLong."""
    room = room or Room()

    def rendered(text: str, rest: Container[str], literal: Sequence[Span]) -> str:
        return room.take(render(text, values, rest, literal, room.left))

    def walk(value: Any) -> Any:
        if isinstance(value, str):
            return rendered(value, (), literals([value])[0])
        if isinstance(value, list):
            texts = [item if isinstance(item, str) else "" for item in value]
            bodies, following = literals(texts), Following(texts)
            return [
                rendered(item, following, bodies[following.index]) if isinstance(item, str) else walk(item)
                for following.index, item in enumerate(value)
            ]
        if isinstance(value, dict):
            return {name: walk(item) for name, item in value.items() if not name.startswith("_")}
        return value

    def kept(value: Any) -> Any:
        for _, text in strings(value):
            room.take(text)
        return value

    return {
        name: kept(value) if name in NOT_TEMPLATED else walk(value)
        for name, value in task.items()
        if not name.startswith("_")
    }


def declared(document: Document) -> dict[str, dict[str, Any]]:
    """The declared variables in their long form."""
    entries: dict[str, dict[str, Any]] = {}
    section = document.data.get("variables") if isinstance(document.data, dict) else None
    for name, value in section.items() if isinstance(section, dict) else ():
        if name.startswith("_"):
            continue
        entry = dict(value) if isinstance(value, dict) else {"default": value} if value is not None else {}
        default = entry.get("default")
        if isinstance(default, str) and default in (f"<<{name}>>", f"{{{{{name}}}}}"):
            # The older way to say that it must be given.
            entry = {**entry, "required": True}
            del entry["default"]
        entries[name] = entry
    return entries


def inherits(entry: Mapping[str, Any]) -> bool:
    """Whether a variable takes its value from the caller's environment, where it has one there: with
    `from_env`, or as a secret whose default is empty, so that its place is not in the file.
    """
    empty = not entry.get("required") and entry.get("default") in (None, "")
    return entry.get("from_env") is True or (entry.get("secret") is True and empty)


def text_of(value: Any) -> str:
    """A variable's value as the text that a shell gets."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)


def resolve(
    document: Document,
    given: Mapping[str, str],
    explicit: Mapping[str, str],
    *,
    placeholders: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> tuple[Variables, list[Problem]]:
    """The value of every variable, and all that is wrong with them.

    `given` holds values whose names nobody has to know (an env file's, the nodes'), `explicit` those
    that must mean something (`--env`); the later wins. With `placeholders`, a required variable
    without a value has its own name for a value, so that the rest can be checked.
    """
    entries = declared(document)
    problems: list[Problem] = []
    raw: dict[str, str] = {}
    inherited = {
        name: environ[name] for name, entry in entries.items() if environ.get(name) and inherits(entry)
    }
    given = {**inherited, **given}
    for name, entry in entries.items():
        if entry.get("default") is not None and not entry.get("required"):
            raw[name] = text_of(entry["default"])
    raw.update({**given, **explicit})
    for name, entry in entries.items():
        place = ("variables", name)
        if name not in raw:
            if entry.get("required") and not placeholders:
                description = f": {entry['description']}" if entry.get("description") else ""
                message = f"a value is needed for {name}{description}"
                problems.append(document.problem(place, message, f"set it with --env {name}=...", key=True))
            raw[name] = name if entry.get("required") else ""
        choices = [text_of(choice) for choice in entry.get("choices") or ()]
        if (
            choices
            and raw[name] not in choices
            and (name in given or name in explicit or not entry.get("required"))
        ):
            shown = "***" if entry.get("secret") is True else repr(raw[name])
            message = f"{name} is {shown}, which is not one of {', '.join(choices)}"
            hint = "" if entry.get("secret") is True else closest(raw[name], choices)
            problems.append(document.problem(place, message, hint, key=True))
    values = _in_order(document, raw, {**given, **explicit}, problems)
    secrets = {name for name, entry in entries.items() if entry.get("secret") is True}
    used: dict[str, list[str]] = {}
    for name in entries:
        for template in templates(raw.get(name, "")):
            used.setdefault(template.name, []).append(name)
    todo = list(secrets)
    while todo:
        # What is made of a secret is one.
        for name in used.get(todo.pop(), ()):
            if name not in secrets:
                secrets.add(name)
                todo.append(name)
    return Variables(values, frozenset(secrets & set(values)), entries), problems


def _in_order(
    document: Document,
    raw: Mapping[str, str],
    given: Mapping[str, str],
    problems: list[Problem],
) -> dict[str, str]:
    """Values with the templates in them replaced, each after those that it needs."""
    values: dict[str, str] = {}
    cyclic: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in values or name in cyclic:
            return
        if name in path:
            cycle = path[path.index(name) :]
            cyclic.update(cycle)
            message = "circular reference: " + " -> ".join((*cycle, name))
            problems.append(document.problem(("variables", name), message, key=True))
            return
        if len(path) > DEEPEST:
            message = f"{path[0]} refers to variables more than {DEEPEST} levels deep"
            problems.append(document.problem(("variables", path[0]), message, key=True))
            cyclic.update(path)
            return
        text = raw[name]
        # A value that somebody gave is text; only what the file itself says is a template.
        for template in templates(text) if name not in given else ():
            if template.name in raw:
                visit(template.name, (*path, name))
            else:
                place: Place = ("variables", name)
                if isinstance(document.data["variables"].get(name), dict):
                    place = (*place, "default")
                problems.append(undefined(document, place, template, raw))
        try:
            values[name] = render(text, values, most=LARGEST_VARIABLE) if name not in given else text
        except TooLong:
            message = f"{name} expands to more than {LARGEST_VARIABLE} characters"
            problems.append(document.problem(("variables", name), message, key=True))
            cyclic.add(name)

    for name in raw:
        visit(name, ())
    # A word, so that the rest can be looked at.
    values.update({name: name for name in cyclic})
    return values


def undefined(document: Document, place: Place, template: Template, entries: Mapping[str, Any]) -> Problem:
    """The problem of a template whose name has no value."""
    message = f"the variable {template.name} is not defined"
    if template.name.startswith("_"):
        hint = "names that start with _ are comments"
    else:
        hint = closest(template.name, entries) or (
            f"declare it in variables, or set it with --env {template.name}=...;"
            " a backslash before it (two in JSON) keeps the text as is"
        )
    return document.problem(place, message, hint, at=template.start)


def environment_of_nodes(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What the environment says of the nodes: NODE1_PRIVATE and the like."""
    return {name: value for name, value in environ.items() if NODE.fullmatch(name)}
