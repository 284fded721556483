"""Checks a task file against its JSON Schema and says what is wrong in the file's own terms."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from taskrunner import packs
from taskrunner.errors import Problem, closest, in_order
from taskrunner.model.document import Document, Place

NAMES = {
    "object": "an object",
    "array": "an array",
    "string": "a string",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
}
END = re.compile(r"(?<!\\)\$$")
NAME = r"^[A-Za-z][A-Za-z0-9_]*$"
MEANINGS = {
    r"^[^\x00]*$": "text without NUL characters",
    r"^[^\x00-\x1f\x7f]+$": "one line of text",
    NAME: "a name: a letter, then letters, digits and _",
    r"^[0-9]+(\.[0-9]+)?(ms|s|m|h|d)?$": 'a duration: seconds, or "30s", "10m", "2h"',
    r"^(https?://|.*<<|.*\{\{)": "a URL that starts with http:// or https://",
    r"^[A-Za-z][A-Za-z0-9_-]*$": "a name: a letter, then letters, digits, _ and -",
    r":([0-9]+|<<\w+>>|\{\{\w+\}\})$": '"host:port"',
}


def problems(document: Document, kind: str = "task-file", data: Any = None) -> list[Problem]:
    """Everything in the document (in these members of it, if given) that the schema does not allow, in the
    order of the file.
    """
    return in_order(
        problem
        for error in validator(kind).iter_errors(document.data if data is None else data)
        for problem in _translate(document, error)
    )


@cache
def validator(kind: str) -> Any:
    """The validator of a committed schema."""
    # Imported here: a file that was found valid before is run without it (see `cache`).
    from jsonschema import Draft202012Validator

    return Draft202012Validator(_to_the_end(json.loads(packs.schema_path(kind).read_text(encoding="utf-8"))))


def _to_the_end(schema: Any, inside: str = "") -> Any:
    """The same schema for Python, whose `$` also matches before a line break at the end of a text."""
    if isinstance(schema, dict):
        keys = {key: END.sub(r"\\Z", key) if inside == "patternProperties" else key for key in schema}
        return {keys[key]: _to_the_end(value, key) for key, value in schema.items()}
    if isinstance(schema, list):
        return [_to_the_end(item) for item in schema]
    return END.sub(r"\\Z", schema) if inside == "pattern" and isinstance(schema, str) else schema


def _translate(document: Document, error: Any) -> Iterator[Problem]:
    place: Place = tuple(error.absolute_path)
    kind, wanted, value = error.validator, error.validator_value, error.instance
    if kind in ("anyOf", "oneOf"):
        yield from _any_of(document, error)
    elif kind == "additionalProperties":
        names = list(error.schema.get("properties", {}))
        for name in value:
            if name not in names and not name.startswith("_"):
                if not names:
                    pattern = next(iter(error.schema.get("patternProperties", {NAME: {}})))
                    message = f'"{name}" is not {_meaning(pattern)}'
                    yield document.problem((*place, name), message, key=True)
                    continue
                inside = " in " + _what(place)
                yield document.problem(
                    (*place, name), f'unknown key "{name}"{inside}', _suggest(name, names), key=True
                )
    elif kind == "required":
        # One error for each missing name, all with the same list; the message alone tells which.
        missing = next(name for name in wanted if error.message.startswith(f"'{name}'"))
        yield document.problem(place, f'"{missing}" is missing in {_what(place)}')
    else:
        yield document.problem(place, _say(kind, wanted, value))


def _any_of(document: Document, error: Any) -> Iterator[Problem]:
    """Of several shapes, report the one that was meant: the one of the value's own type."""
    branches: dict[int, list[Any]] = {}
    for sub in error.context:
        branches.setdefault(sub.schema_path[0], []).append(sub)
    typed = [
        subs
        for subs in branches.values()
        if not any(sub.validator == "type" and not sub.path for sub in subs)
    ]
    if typed:
        deepest = max(typed, key=lambda subs: max(len(sub.absolute_path) for sub in subs))
        for sub in deepest:
            yield from _translate(document, sub)
        return
    types: list[str] = []
    for subs in branches.values():
        wanted = subs[0].validator_value
        types += [NAMES[name] for name in ([wanted] if isinstance(wanted, str) else wanted)]
    message = f"expected {' or '.join(dict.fromkeys(types))}, got {_got(error.instance)}"
    yield document.problem(tuple(error.absolute_path), message)


def _say(kind: str, wanted: Any, value: Any) -> str:
    if kind == "type":
        names = [wanted] if isinstance(wanted, str) else wanted
        return f"expected {' or '.join(NAMES[name] for name in names)}, got {_got(value)}"
    if kind == "pattern":
        return f"expected {_meaning(wanted)}, got {_got(value)}"
    if kind in ("enum", "const"):
        allowed = wanted if isinstance(wanted, list) else [wanted]
        text = f"expected {' or '.join(map(json.dumps, allowed))}, got {_got(value)}"
        hint = closest(value, [str(item) for item in allowed]) if isinstance(value, str) else ""
        return f"{text}, {hint}" if hint else text
    if kind in ("minLength", "minItems"):
        return "must not be empty"
    limits = {
        "maxLength": "at most {} characters",
        "minimum": "at least {}",
        "maximum": "at most {}",
        "exclusiveMinimum": "more than {}",
    }
    return f"expected {limits.get(kind, kind + ' {}').format(wanted)}, got {_got(value)}"


def _meaning(pattern: str) -> str:
    stated = pattern.replace(r"\Z", "$")
    return MEANINGS.get(stated, f"text that matches {stated}")


def _got(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return NAMES["object" if isinstance(value, dict) else "array"]
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


MEMBERS: dict[str | int, str] = {
    "tasks": "a task",
    "services": "a service",
    "steps": "a step",
    "variables": "a variable",
    "nodes": "a node",
    "groups": "a group",
}


def _what(place: Place) -> str:
    """The kind of object at a place, in the words of the format."""
    if not place:
        return "the file"
    if len(place) == 2 and place[0] in MEMBERS:
        return MEMBERS[place[0]]
    return next(f'"{part}"' for part in reversed(place) if isinstance(part, str))


ALIASES = {
    "command": "commands",
    "cmd": "commands",
    "cmds": "commands",
    "run": "commands",
    "script": "commands",
    "shell": "commands",
    "steps": "tasks",
    "unless": "skip_if",
    "creates": "skip_if",
    "status": "skip_if",
    "user": "run_as",
    "workdir": "cwd",
    "dir": "cwd",
    "host": "address",
    "hostname": "address",
    "ip": "address",
    "hosts": "nodes",
    "retry": "retries",
    "vars": "variables",
    "environment": "env",
    "if": "when",
    "continue_on_error": "on_failure",
    "ignore_errors": "on_failure",
    "finally": "always",
}
"""What the same thing is called in the tools that people come from."""


def _suggest(name: str, names: list[str]) -> str:
    alias = ALIASES.get(name.lower())
    if alias in names:
        return f"did you mean {alias}?"
    return closest(name, names) or "known keys: " + ", ".join(names)
