"""Everything that must be right before the first command runs, beyond the shape of the JSON."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from taskrunner.engine.run.masking import Masker
from taskrunner.engine.run.probes import KINDS
from taskrunner.engine.run.step_script import whole
from taskrunner.errors import Problem, TaskFileError, closest, in_order
from taskrunner.model import cache, shell
from taskrunner.model import variables as var
from taskrunner.model.document import SHARED, Document, Place
from taskrunner.model.here_documents import literals
from taskrunner.model.variables import Variables

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
YEAR = 31_536_000
LARGEST_ENVIRONMENT = 1_900_000
"""Bytes of all together: a quarter of the usual stack limit, less what the machine's own environment
takes.
"""


def seconds(duration: float | str) -> float:
    """A duration of the task file (30, "30s", "10m", "500ms") in seconds. Raises ValueError."""
    if isinstance(duration, str):
        match = re.fullmatch(r"([0-9.]+)(ms|s|m|h|d)?", duration)
        if match is None:
            raise ValueError(f"not a duration: {duration!r}")
        return float(match[1]) * UNITS[match[2] or "s"]
    return float(duration)


def structure(document: Document) -> list[Problem]:
    """What the JSON Schema does not allow."""
    # Imported here: a file that was found valid before is run without it (see `cache`).
    from taskrunner.model import schema

    problems = schema.problems(document)
    if isinstance(document.data, dict) and "tasks" not in document.data:
        hint = "a file without tasks can only be included" if document.written.keys() & SHARED else ""
        problems.append(document.problem((), '"tasks" is missing in the file', hint))
    for part in (document, *document.included):
        if isinstance(part.written, dict):
            own = part is document
            shared = {name: value for name, value in part.written.items() if not own or name in SHARED}
            problems += schema.problems(part, data=shared)
    return in_order(problems)


def meaning(document: Document, given: Mapping[str, str], explicit: Mapping[str, str]) -> list[Problem]:
    """As much as can be said of a document whose shape is not right."""
    if not isinstance(document.data, dict):
        return []
    try:
        variables, problems = var.resolve(document, given, explicit, placeholders=True)
    except (TypeError, ValueError, AttributeError, KeyError):
        return []  # the shape is wrong in a way that leaves nothing to look at
    try:
        undefined, values = templates(document, variables)
        tasks = [var.render_task(_texts(task), values) for _, task in _tasks(document)]
        problems += ids(document) + undefined + commands(document, tasks)[1]
        return masked(problems, variables)
    except TaskFileError as error:
        return masked(error.problems, variables)
    except (TypeError, ValueError, AttributeError, KeyError):
        # The shape is wrong in a way that leaves nothing to look at; that is reported already.
        return []


def _tasks(document: Document) -> list[tuple[int, dict[str, Any]]]:
    tasks = document.data.get("tasks")
    return [
        (index, task)
        for index, task in enumerate(tasks if isinstance(tasks, list) else ())
        if isinstance(task, dict)
    ]


def masked(problems: Sequence[Problem], variables: Variables) -> list[Problem]:
    """The problems without secrets: what bash or a pattern complains of may hold a value."""
    masker = Masker([variables.values[name] for name in variables.secrets])
    return [
        problem._replace(message=masker.text(problem.message), hint=masker.text(problem.hint))
        for problem in problems
    ]


def _texts(task: dict[str, Any]) -> dict[str, Any]:
    """Those parts of a task of any shape that can be looked at as bash."""
    elements = task.get("commands")
    parts: dict[str, Any] = {
        "commands": [
            element if isinstance(element, str) else ""
            for element in (elements if isinstance(elements, list) else ())
        ]
    }
    if isinstance(task.get("skip_if"), str):
        parts["skip_if"] = task["skip_if"]
    return parts


def ids(document: Document) -> list[Problem]:
    """Step ids that are there twice."""
    seen: dict[Any, int] = {}
    problems = []
    for index, task in _tasks(document):
        name = task.get("id")
        if not isinstance(name, str):
            continue
        place = ("tasks", index, "id")
        if name in seen:
            line = document.line(("tasks", seen[name], "id"))
            problems.append(document.problem(place, f'duplicate id "{name}" (first used on line {line})'))
        seen.setdefault(name, index)
    return problems


def templates(document: Document, variables: Variables) -> tuple[list[Problem], dict[str, str]]:
    """Templates and `when` conditions whose variable nobody declares or supplies.

    And values for all: with a word for what is undefined, so that the rest can be looked at.
    """
    problems = []
    values = dict(variables.values)
    for index, task in _tasks(document):
        for place, text, rest, literal in var.task_strings(task, ("tasks", index)):
            if "<<" not in text and "{{" not in text:
                continue
            for template in var.templates(text, rest, literal):
                if template.name not in variables.values:
                    values[template.name] = template.name
                    problems.append(var.undefined(document, place, template, variables.values))
        when = task.get("when")
        for name in when if isinstance(when, dict) else ():
            if name not in variables.values and not name.startswith("_"):
                hint = closest(name, variables.values)
                message = f"the variable {name} is not defined"
                problems.append(document.problem(("tasks", index, "when", name), message, hint, key=True))
    return problems, values


def kept(document: Document, names: Container[str]) -> Iterator[Problem]:
    """Templates of known variables inside of quoted here-documents, where nothing is replaced."""
    for index, task in _tasks(document):
        commands = [text if isinstance(text, str) else "" for text in task.get("commands") or ()]
        for element, spans in enumerate(literals(commands)):
            for start, end in spans:
                for mark in var.TEMPLATE.finditer(commands[element], start, end):
                    if (mark["new"] or mark["old"]) in names and not mark["escape"]:
                        message = f"{mark[0]} in a quoted here-document is not replaced"
                        hint = "unquote the delimiter, or read the variable from the environment"
                        place = ("tasks", index, "commands", element)
                        yield document.problem(place, message, hint, at=mark.start(), rule="not-replaced")


def unused(document: Document, explicit: Mapping[str, str]) -> list[Problem]:
    """Names given with --env that mean nothing to this file: most likely a misspelling."""
    declared = var.declared(document)
    problems = []
    for name in explicit:
        if name in declared or var.NODE.fullmatch(name) or re.search(rf"\b{name}\b", document.text):
            continue
        hint = closest(name, declared) or "its variables: " + (", ".join(declared) or "none")
        problems.append(document.problem(("variables",), f"--env {name}: no such variable", hint))
    return problems


NOT_CHECKED = "checking takes too long: too many commands span several elements or are not valid"
SIMPLER = "move long scripts into separate files, or into one element each"


def commands(
    document: Document, tasks: Sequence[Mapping[str, Any]]
) -> tuple[list[list[shell.Group]], list[Problem]]:
    """Each step's commands, and the problems of those that are not valid bash, like its guard."""
    snippets: list[tuple[Place, str]] = []
    for index, task in enumerate(tasks):
        if (task.get("skip_if") or "").strip():
            snippets.append((("tasks", index, "skip_if"), whole(task["skip_if"])))
        for key in ("command", "keep_if"):
            command = (task.get("service") or {}).get(key)
            if isinstance(command, str):
                snippets.append((("tasks", index, "service", key), whole(command)))
        for element, text in enumerate(task.get("commands") or ()):
            snippets.append((("tasks", index, "commands", element), text))
    mark = cache.Mark("commands", json.dumps([len(tasks), snippets]))
    if mark.found:
        spans = json.loads(mark.found)
        return [
            [shell.group_of(task["commands"], first, last) for first, last in own]
            for task, own in zip(tasks, spans, strict=True)
        ], []
    problems: list[Problem] = []
    bad: dict[int, list[int]] = {}
    bash = shell.Bash()
    joined = []
    try:
        refused = shell.check([text for _, text in snippets], bash)
        for number, message in refused.items():
            place = snippets[number][0]
            if place[2] == "commands":
                # Alone it is not whole; it may be with those behind it.
                bad.setdefault(int(place[1]), []).append(int(place[3]))
            else:
                problems.append(document.problem(place, f"not valid bash: {message}"))
        for index, task in enumerate(tasks):
            groups, errors = shell.group(task.get("commands") or [], bad.get(index, ()), bash)
            joined.append(groups)
            for error in errors:
                place = ("tasks", index, "commands", error.element)
                problems.append(document.problem(place, f"not valid bash: {error.message}"))
    except shell.Exhausted:
        problems.append(document.problem(("tasks",), NOT_CHECKED, SIMPLER))
    if not problems:
        mark.remember(json.dumps([[[group.first, group.last] for group in own] for own in joined]))
    return joined, problems


def parts(document: Document, tasks: Sequence[Mapping[str, Any]]) -> list[Problem]:
    """What a schema cannot say of a step: parts that need or exclude each other."""
    problems = []
    for index, task in enumerate(tasks):
        place: Place = ("tasks", index)
        if "commands" not in task and not any(
            task.get(part) for part in ("service", "wait_for", "files", "outputs")
        ):
            message = "the step does nothing"
            problems.append(document.problem(place, message, "give it commands, a service or a wait_for"))
        problems += _durations(document, place, task)
        service = task.get("service")
        if service:
            inside = (*place, "service")
            state = service.get("state")
            if state in ("stopped", "ended"):
                extra = [key for key in ("command", "ready") if key in service]
                if extra:
                    message = f"not allowed for a service whose state is {state}"
                    problems.append(document.problem((*inside, extra[0]), message, key=True))
            elif not service.get("command"):
                problems.append(document.problem(inside, '"command" is missing in "service"'))
            if service.get("one_shot") and task.get("run_as"):
                message = "a one_shot service runs as the user of the engine: its exit status is kept there"
                problems.append(document.problem((*place, "run_as"), message, key=True))
            if service.get("ready"):
                problems += _probe(document, (*inside, "ready"), service["ready"], own_log=True)
            for number, pattern in enumerate(service.get("fail_on") or ()):
                problems += _pattern(document, (*inside, "fail_on", number), pattern)
        if "wait_for" in task:
            problems += _probe(document, (*place, "wait_for"), task["wait_for"], own_log=False)
    return problems


def environment(
    document: Document, variables: Variables, tasks: Sequence[Mapping[str, Any]], elsewhere: bool
) -> list[Problem]:
    """Variables with which the system would not start bash; `elsewhere`, only what is known of every
    machine.
    """
    problems = _startable(document, ("variables",), variables.values, elsewhere)
    for index, task in enumerate(tasks):
        for place, env in (
            (("tasks", index, "env"), task.get("env")),
            (("tasks", index, "service", "env"), (task.get("service") or {}).get("env")),
        ):
            texts = {name: var.text_of(value) for name, value in (env or {}).items()}
            problems += _startable(document, place, texts, elsewhere)
    return problems


def _startable(document: Document, place: Place, env: Mapping[str, str], elsewhere: bool) -> list[Problem]:
    problems = []
    total = 0
    for name, value in env.items():
        size = len(name) + len(value.encode("utf-8", "surrogateescape")) + 2
        total += size
        if size > var.LARGEST_VARIABLE:
            message = f"{name} has {size - len(name) - 2} bytes; the system limits its value to"
            message += f" {var.LARGEST_VARIABLE - len(name) - 2} bytes"
            problems.append(document.problem((*place, name), message, "put it in a file and pass the path"))
    if not problems and total > LARGEST_ENVIRONMENT:
        message = f"the variables have {total} bytes in total, more than the system allows a program"
        problems.append(document.problem(place, message, "put the large ones in files"))
    path = env.get("PATH")
    if path is not None and not elsewhere and shutil.which("bash", path=path) is None:
        message = "no bash in this PATH, so no step can start"
        hint = "add /usr/bin:/bin, or set PATH in the commands"
        problems.append(document.problem((*place, "PATH"), message, hint))
    return problems


def _probe(document: Document, place: Place, probe: Mapping[str, Any], own_log: bool) -> list[Problem]:
    kinds = [kind for kind in KINDS if kind in probe]
    if len(kinds) != 1:
        got = " and ".join(kinds) or "none"
        return [document.problem(place, f"expected one of http, tcp, listen, file and log, got {got}")]
    if "listen" in probe and not own_log:
        message, hint = '"listen" asks a service of this machine: only "ready" has it', "use tcp"
        return [document.problem((*place, "listen"), message, hint)]
    if "listen" in probe and not _is_port(str(probe["listen"])):
        return [document.problem((*place, "listen"), f'expected a port, got "{probe["listen"]}"')]
    if "tcp" in probe and not _is_port(probe["tcp"].rpartition(":")[2]):
        return [document.problem((*place, "tcp"), f'expected "host:port", got "{probe["tcp"]}"')]
    if "http" in probe:
        url = re.match(r"https?://(?:\[[^]]+\]|[^/:?#\s]+)(?::([^/?#]*))?(?:[/?#]|$)", probe["http"])
        if url is None or not _is_port(url[1] or "80"):
            return [document.problem((*place, "http"), f'expected a URL, got "{probe["http"]}"')]
    log = probe.get("log")
    if log is None:
        return []
    pattern = log if isinstance(log, str) else log["pattern"]
    problems = _pattern(document, (*place, "log"), pattern)
    if not own_log and (isinstance(log, str) or not (log.get("path") or log.get("service"))):
        message = '"log" needs "path" or "service", and "pattern"'
        problems.append(document.problem((*place, "log"), message))
    return problems


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and 0 < int(text) < 65536


DURATIONS: tuple[Place, ...] = (
    ("timeout",),
    ("skip_if_timeout",),
    ("retries", "delay"),
    ("wait_for", "timeout"),
    ("service", "stop_timeout"),
    ("service", "ready", "timeout"),
)


def _durations(document: Document, place: Place, task: Mapping[str, Any]) -> list[Problem]:
    """Durations are more than nothing and at most a year, however they are written."""
    problems = []
    for inner in DURATIONS:
        value: Any = task
        for part in inner:
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None and not 0 < seconds(value) <= YEAR:
            problems.append(document.problem((*place, *inner), "expected more than 0 and at most a year"))
    return problems


def _pattern(document: Document, place: Place, pattern: str) -> list[Problem]:
    try:
        re.compile(pattern.encode())
    except (re.error, RecursionError, OverflowError) as error:
        return [document.problem(place, f"not a valid regular expression: {error}")]
    return []
