"""Variables: where their values come from, and how they get into a step's texts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from taskrunner.engine.script import quote
from taskrunner.errors import Problem, closest
from taskrunner.model.document import Document, Place, strings

TEMPLATE = re.compile(
    r"(?P<escape>(?<!\\)\\(?:\\\\)*(?!\\))?"
    r"(?:(?<!<)<<(?P<new>[A-Za-z_][A-Za-z0-9_]*)(?P<new_q>:q)?>>(?!>)"
    r"|\{\{(?P<old>[A-Za-z_][A-Za-z0-9_]*)(?P<old_q>:q)?\}\})"
)
"""A backslash before it says that the text itself is meant; two are two."""
HERE_DOCUMENT = re.compile(
    r"""(?<!<)<<(?!<)(?P<tabs>-)?[ \t]*"""
    r"""(?:"(?P<double>[^"\n]+)"|'(?P<single>[^'\n]+)'|(?P<escape>\\)?(?P<bare>[^\s;&|<>()'"`\\]+))"""
)
"""The operator of a here-document and its delimiter, which is quoted where nothing in its body is
replaced.
"""
NODE = re.compile(r"NODE[0-9]+_[A-Z0-9_]+")
"""Variables that describe nodes, taken from the environment of the controller."""

GO_WORDS = {"end", "else", "break", "continue"}
"""In double braces these are Go's, as in `docker inspect -f`."""

NOT_TEMPLATED = {"id", "name", "description", "when", "on_failure", "always"}


Span = tuple[int, int]


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


def templates(text: str, rest: str = "", literal: Sequence[Span] = ()) -> Iterator[Template]:
    """The templates in a text; `rest` is what follows it in the same shell, `literal` where nothing is one.

    `<<EOF>>file` is a here-document, not a template, when a line with the delimiter follows.
    """
    for found in _marks(text, rest, literal):
        if not found.escaped:
            yield found


def _marks(text: str, rest: str, literal: Sequence[Span]) -> Iterator[Template]:
    for match in TEMPLATE.finditer(text):
        name = match["new"] or match["old"]
        if any(start <= match.start() < end for start, end in literal):
            continue
        if match["escape"]:
            pass
        elif match["new"]:
            after = (text[match.end() :] + "\n" + rest).split("\n")[1:]
            if name in after or name in (line.lstrip("\t") for line in after):
                continue
        elif name in GO_WORDS:
            continue
        quoted = bool(match["new_q"] or match["old_q"])
        start = match.end("escape") - 1 if match["escape"] else match.start()
        yield Template(name, quoted, start, match.end(), bool(match["escape"]))


def render(text: str, values: Mapping[str, str], rest: str = "", literal: Sequence[Span] = ()) -> str:
    """The text with every template replaced; a name without a value is left alone."""
    if "<<" not in text and "{{" not in text:
        return text
    pieces, last = [], 0
    for found in _marks(text, rest, literal):
        if found.escaped:
            pieces.append(text[last : found.start])
            last = found.start + 1
        elif found.name in values:
            value = values[found.name]
            pieces += [text[last : found.start], quote(value) if found.quoted else value]
            last = found.end
    return "".join(pieces) + text[last:]


def literals(elements: Sequence[str]) -> list[list[Span]]:
    """For each of the elements that are read by one shell, where the body of a quoted here-document
    stands in it.
    """
    spans: list[list[Span]] = [[] for _ in elements]
    if not any("<<" in element for element in elements):
        return spans
    lines = [(index, line) for index, element in enumerate(elements) for line in element.split("\n")]
    starts: list[int] = []
    for element in elements:
        offset = 0
        for line in element.split("\n"):
            starts.append(offset)
            offset += len(line) + 1
    number = 0
    while number < len(lines):
        line = lines[number][1]
        opened = [] if line.lstrip().startswith("#") else list(HERE_DOCUMENT.finditer(line))
        number += 1
        for match in opened:
            delimiter = match["double"] or match["single"] or match["bare"]
            end = _end_of(lines, number, delimiter, bool(match["tabs"]))
            if end is None:
                continue
            for inside in range(number, end) if not match["bare"] or match["escape"] else ():
                index, body = lines[inside]
                spans[index].append((starts[inside], starts[inside] + len(body)))
            number = end + 1
    return spans


def _end_of(lines: Sequence[tuple[int, str]], start: int, delimiter: str, tabs: bool) -> int | None:
    """The number of the line that ends a here-document; None where there is none, so that it is not one."""
    for number in range(start, len(lines)):
        line = lines[number][1]
        if (line.lstrip("\t") if tabs else line) == delimiter:
            return number
    return None


def task_strings(task: dict[str, Any], place: Place = ()) -> Iterator[tuple[Place, str, str, Sequence[Span]]]:
    """Every text of a step in which templates count: its place, itself, what follows it in the same
    shell, and where it is literal.
    """
    elements = [c if isinstance(c, str) else "" for c in task.get("commands") or ()]
    bodies = literals(elements)
    for inner, text in strings({k: v for k, v in task.items() if k not in NOT_TEMPLATED}):
        rest, literal = "", literals([text])[0]
        if inner[0] == "commands" and isinstance(inner[-1], int):
            rest, literal = "\n".join(elements[inner[-1] + 1 :]) if "<<" in text else "", bodies[inner[-1]]
        yield (*place, *inner), text, rest, literal


def render_task(task: dict[str, Any], values: Mapping[str, str]) -> dict[str, Any]:
    """The step with every template in it replaced; comments are left out."""

    def walk(value: Any) -> Any:
        if isinstance(value, str):
            return render(value, values, literal=literals([value])[0])
        if isinstance(value, list):
            texts = [item if isinstance(item, str) else "" for item in value]
            bodies = literals(texts)
            return [
                render(item, values, "\n".join(texts[index + 1 :]) if "<<" in item else "", bodies[index])
                if isinstance(item, str) else walk(item)
                for index, item in enumerate(value)
            ]  # fmt: skip
        if isinstance(value, dict):
            return {name: walk(item) for name, item in value.items() if not name.startswith("_")}
        return value

    return {
        name: value if name in NOT_TEMPLATED else walk(value)
        for name, value in task.items()
        if not name.startswith("_")
    }


def declared(document: Document) -> dict[str, dict[str, Any]]:
    """The declared variables in their long form."""
    found: dict[str, dict[str, Any]] = {}
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
        found[name] = entry
    return found


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
    known = declared(document)
    problems: list[Problem] = []
    raw: dict[str, str] = {}
    inherited = {
        name: environ[name] for name, entry in known.items() if environ.get(name) and inherits(entry)
    }
    given = {**inherited, **given}
    for name, entry in known.items():
        if entry.get("default") is not None and not entry.get("required"):
            raw[name] = text_of(entry["default"])
    raw.update({**given, **explicit})
    for name, entry in known.items():
        place = ("variables", name)
        if name not in raw:
            if entry.get("required") and not placeholders:
                about = f": {entry['description']}" if entry.get("description") else ""
                message = f"a value is needed for {name}{about}"
                problems.append(document.problem(place, message, f"give it with --env {name}=...", key=True))
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
    secrets = {name for name, entry in known.items() if entry.get("secret") is True}
    grew = True
    while grew:
        # What is made of a secret is one.
        tainted = {
            name
            for name in known
            if name not in secrets and any(found.name in secrets for found in templates(raw.get(name, "")))
        }
        secrets |= tainted
        grew = bool(tainted)
    return Variables(values, frozenset(secrets & set(values)), known), problems


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
            message = "variables need each other: " + " -> ".join((*cycle, name))
            problems.append(document.problem(("variables", name), message, key=True))
            return
        text = raw[name]
        # A value that somebody gave is text; only what the file itself says is a template.
        for found in templates(text) if name not in given else ():
            if found.name in raw:
                visit(found.name, (*path, name))
            else:
                place: Place = ("variables", name)
                if isinstance(document.data["variables"].get(name), dict):
                    place = (*place, "default")
                problems.append(undefined(document, place, found, raw))
        values[name] = render(text, values) if name not in given else text

    for name in raw:
        visit(name, ())
    # A word, so that the rest can be looked at.
    values.update({name: name for name in cyclic})
    return values


def undefined(document: Document, place: Place, found: Template, known: Mapping[str, Any]) -> Problem:
    """The problem of a template whose name has no value."""
    message = f"the variable {found.name} is not defined"
    if found.name.startswith("_"):
        hint = "names that start with _ are comments"
    else:
        hint = closest(found.name, known) or (
            f"declare it in variables, or give it with --env {found.name}=...;"
            " a backslash before it (in JSON two) keeps the text as it is"
        )
    return document.problem(place, message, hint, at=found.start)


def environment_of_nodes(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What the environment says of the nodes: NODE1_PRIVATE and the like."""
    return {name: value for name, value in environ.items() if NODE.fullmatch(name)}
