"""Compiles a checked task file into the plan that the engine runs.

A plan is JSON: the steps with every template replaced, the commands joined where they span
elements, durations in seconds, and what was decided beforehand (`when`, --from, --until, --only).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from taskrunner.engine import VERSION
from taskrunner.engine.run import aws_secrets
from taskrunner.engine.store.paths import slug
from taskrunner.errors import NotFoundError, TaskFileError, UsageError, closest, in_order
from taskrunner.model import cache, checks, shell
from taskrunner.model.document import Document
from taskrunner.model.project import Project, project_of
from taskrunner.model.variables import Variables, render_tasks, resolve, text_of

if TYPE_CHECKING:
    from taskrunner.engine.plan import Plan, Skip, Step

READY_TIMEOUT = 300.0
SHORTEST_SECRET = 4


class Selection(NamedTuple):
    """Which steps to run: `start` (--from) to `until`, or `only` these."""

    start: str | None = None
    until: str | None = None
    only: tuple[str, ...] = ()


ALL = Selection()


def title(document: Document) -> str:
    """The task file's name: `metadata.name`, the older `name`, or the file's own."""
    data = document.data
    return str((data.get("metadata") or {}).get("name") or data.get("name") or Path(document.name).stem)


def _name_of(document: Document) -> str:
    """What tells a file that was built in Python from others: its name, else its whole content."""
    data = document.data
    return str((data.get("metadata") or {}).get("name") or data.get("name") or _digest(document.text))


def compile_plan(
    document: Document,
    *,
    path: Path | None,
    given: Mapping[str, str] | None = None,
    explicit: Mapping[str, str] | None = None,
    selection: Selection = ALL,
    reset: bool = False,
    check: bool = False,
    cwd: Path | None = None,
    elsewhere: bool = False,
    project: Project | None = None,
) -> Plan:
    """The plan of a task file, still without a run id.

    `path` is the file's identity on this machine; None for one that was built in Python, which is known
    by its name. `elsewhere`: the plan is for another machine, where the file is known by its project and
    its place in that, whoever runs it from wherever, and where steps start in the home. `project`: not
    that of the folder around. Raises TaskFileError with every problem, NotFoundError for an unknown step.
    """
    given, explicit = given or {}, explicit or {}
    valid = cache.Mark("file", document.identity)
    problems = [] if valid else checks.structure(document)
    if problems:
        raise TaskFileError(in_order(problems + checks.meaning(document, given, explicit)))
    variables, problems = resolve(document, given, explicit)
    problems += checks.unused(document, explicit)
    if not valid:
        problems += checks.ids(document)
    try:
        undefined, values = checks.templates(document, variables)
        tasks = render_tasks(document, values)
        commands, refused = checks.commands(document, tasks)
        problems += undefined + refused
        problems += checks.parts(document, tasks) + checks.environment(document, variables, tasks, elsewhere)
    except TaskFileError as error:
        problems = error.problems
    if problems:
        raise TaskFileError(in_order(checks.masked(problems, variables)))
    valid.remember()

    ids = [task["id"] for task in tasks]
    skips = _selected(ids, selection)
    folder = path.resolve().parent if path else Path.cwd()
    steps: list[Step] = []
    for index, (task, own) in enumerate(zip(tasks, commands, strict=True)):
        step = _step(document, index, task, own, variables, folder)
        skip = skips.get(task["id"]) or _when(task, variables.values)
        if skip:
            step["skip"] = skip
        steps.append(step)
    identity = str(path.resolve()) if path else "python:" + _name_of(document)
    project = project or project_of(path or Path.cwd() / "_")
    known_as = identity
    if path and elsewhere:
        known_as = f"{project.name}:{os.path.relpath(identity, project.folder)}:{title(document)}"
    forgotten = None if reset else _forgotten(ids, selection)
    folder_there = str(cwd or ("~" if elsewhere else Path.cwd()))
    return {
        "format": VERSION,
        "name": title(document),
        "file": document.name,
        "path": identity,
        "key": slug(Path(identity).stem) + "-" + _digest(known_as)[:12],
        "project": _digest(project.name)[:8],
        "cwd": folder_there,
        "variables": variables.values,
        "secrets": sorted(name for name in variables.secrets if variables.values[name]),
        "references": sorted(
            name
            for name in variables.secrets
            if variables.values[name].startswith((aws_secrets.PARAMETER, aws_secrets.SECRET))
        ),
        "warnings": [
            f"the secret {name} is shorter than {SHORTEST_SECRET} characters: it cannot be masked"
            for name in sorted(variables.secrets)
            if 0 < len(variables.values[name]) < SHORTEST_SECRET
        ]
        + [str(problem._replace(rule="")) for problem in checks.kept(document, variables.declared)],
        "forget": forgotten,
        "check": check,
        "steps": steps,
        "fingerprint": _digest([variables.values, steps, forgotten, check, folder_there, project.name]),
    }


def _step(
    document: Document,
    index: int,
    task: dict[str, Any],
    groups: Sequence[shell.Group],
    variables: Variables,
    folder: Path,
) -> Step:
    step: dict[str, Any] = {
        "id": task["id"],
        "name": task.get("name") or task["id"],
        "index": index,
        "commands": [_command(document, index, group) for group in groups],
        "env": {name: text_of(value) for name, value in (task.get("env") or {}).items()},
    }
    if (task.get("skip_if") or "").strip():
        step["guard"] = task["skip_if"]
        step["guard_timeout"] = checks.seconds(task.get("skip_if_timeout", 60))
    if "timeout" in task:
        step["timeout"] = checks.seconds(task["timeout"])
    if "retries" in task:
        retries = task["retries"]
        step["retries"] = {
            "attempts": retries["attempts"],
            "delay": checks.seconds(retries.get("delay", 1)),
            "backoff": retries.get("backoff", 1),
        }
    step.update({key: task[key] for key in ("cwd", "run_as", "on_failure", "always") if key in task})
    if task.get("files"):
        step["files"] = [
            {"from": str(folder / os.path.expanduser(file["from"])), "to": file["to"]}
            for file in task["files"]
        ]
    if task.get("outputs"):
        step["outputs"] = [{"from": file["from"], "to": file["to"]} for file in task["outputs"]]
    if "wait_for" in task:
        step["wait_for"] = _probe(task["wait_for"])
    if "service" in task:
        step["service"] = _service(task, step, variables)
    step["key"] = _key(step, task.get("files"), variables)
    return cast("Step", step)


def _command(document: Document, task: int, group: shell.Group) -> dict[str, Any]:
    written = document.data["tasks"][task]["commands"][group.first : group.last + 1]
    place = ("tasks", task, "commands", group.first)
    command = {"text": group.text, "source": "\n".join(written), "line": document.line(place)}
    if (file := document.source(place)[0].name) != document.name:
        command["file"] = file
    return command


def _probe(probe: dict[str, Any]) -> dict[str, Any]:
    log = probe.get("log")
    asked = {**probe, "timeout": checks.seconds(probe.get("timeout", READY_TIMEOUT))}
    if isinstance(log, str):
        asked["log"] = {"pattern": log}
    return asked


def _service(task: dict[str, Any], step: dict[str, Any], variables: Variables) -> dict[str, Any]:
    service = dict(task["service"])
    service["env"] = {name: text_of(value) for name, value in (service.get("env") or {}).items()}
    service["ready"] = _probe(service.get("ready") or {})
    service["stop_timeout"] = checks.seconds(service.get("stop_timeout", 30))
    # A server is another one when what it is started with is; how its health is asked is not. The folder
    # comes to it where it is known what it means.
    made_of = [service.get("command"), service["env"], step["env"], step.get("run_as")]
    service["definition"] = _digest([made_of, _mentioned(made_of, variables)])
    return service


def _key(step: dict[str, Any], files: Any, variables: Variables) -> str:
    """The identity of what a step does: a journal entry counts only for the same key."""
    made_of = [
        [command["text"] for command in step["commands"]],
        step["env"],
        step.get("cwd"),
        step.get("run_as"),
        files,
        step.get("outputs"),
    ]
    return _digest([made_of, _mentioned(made_of, variables)])


def _mentioned(made_of: Any, variables: Variables) -> dict[str, str]:
    """The variables that a step names, also as $NAME: it reads them from its environment."""
    words = set(re.findall(r"[A-Za-z_][A-Za-z0-9_]*", json.dumps(made_of)))
    return {name: variables.values[name] for name in sorted(words & variables.values.keys())}


def _digest(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _selected(ids: Sequence[str], selection: Selection) -> dict[str, Skip]:
    """The steps that are passed over, and why. Raises NotFoundError for an unknown id, UsageError."""
    for name in (selection.start, selection.until, *selection.only):
        if name is not None and name not in ids:
            hint = closest(name, ids) or "the steps are " + ", ".join(ids[:20])
            raise NotFoundError(f"unknown step {name!r}", hint)
    if selection.only and (selection.start or selection.until):
        raise UsageError(
            "--only cannot be combined with --from or --until",
            "use --only alone, or --from and --until",
        )
    first = ids.index(selection.start) if selection.start else 0
    last = ids.index(selection.until) if selection.until else len(ids) - 1
    if selection.start and last < first:
        raise UsageError(f"--until {selection.until} comes before --from {selection.start}")
    skips: dict[str, Skip] = {}
    for index, name in enumerate(ids):
        if selection.only and name not in selection.only:
            skips[name] = {"reason": "only", "detail": "--only " + " ".join(selection.only)}
        elif index < first:
            skips[name] = {"reason": "from", "detail": f"--from {selection.start}"}
        elif index > last:
            skips[name] = {"reason": "until", "detail": f"--until {selection.until}"}
    return skips


def _forgotten(ids: Sequence[str], selection: Selection) -> list[str]:
    """Asked for by name, a step is run again whatever the journal says; one that is left out keeps its
    entry.
    """
    if not selection.start:
        return [name for name in ids if name in selection.only]
    last = ids.index(selection.until) if selection.until else len(ids) - 1
    return list(ids[ids.index(selection.start) : last + 1])


def _when(task: dict[str, Any], values: Mapping[str, str]) -> Skip | None:
    for name, wanted in (task.get("when") or {}).items():
        if name.startswith("_"):
            continue
        negated = isinstance(wanted, dict)
        options = wanted["not"] if isinstance(wanted, dict) else wanted
        texts = [text_of(item) for item in (options if isinstance(options, list) else [options])]
        if (values.get(name, "") in texts) == negated:
            wish = ("not " if negated else "") + " or ".join(texts)
            return {
                "reason": "when",
                "detail": f"{name} is {values.get(name, '')!r}, not {wish}"
                if not negated
                else f"{name} is {values.get(name, '')!r}",
            }
    return None
