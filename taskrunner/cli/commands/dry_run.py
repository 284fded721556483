"""`--list` and `--dry-run`: the steps of a file, and what would become of each."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

from taskrunner import runs
from taskrunner.api import LoadedFile
from taskrunner.cli import typed
from taskrunner.cli.output.format import runs_again, skipped
from taskrunner.cli.output.streams import protect
from taskrunner.cli.targets import about_node
from taskrunner.errors import TaskFileError
from taskrunner.model import cache, checks
from taskrunner.model.compile import title
from taskrunner.model.variables import declared, inherits, text_of
from taskrunner.transports import Transport

if TYPE_CHECKING:
    from taskrunner.engine.plan import Plan
    from taskrunner.events import StepPlanned


def show_steps(file: LoadedFile, as_json: bool) -> int:
    """List the steps; the variables need no values for it."""
    document = file.document
    if not cache.Mark("file", document.identity):
        problems = checks.structure(document)
        if problems:
            raise TaskFileError(problems)
    tasks = document.data["tasks"]
    if as_json:
        keys = ("id", "name", "description", "skip_if")
        listed = [{key: task[key] for key in keys if key in task} for task in tasks]
        variables = {
            name: {
                **{
                    key: value
                    for key, value in entry.items()
                    if not (entry.get("secret") and key == "default")
                },
                "from_env": inherits(entry),
            }
            for name, entry in declared(document).items()
        }
        overview = {"name": title(document), "file": document.name, "tasks": listed, "variables": variables}
        print(json.dumps(overview, indent=2))
        return 0
    print(f"{title(document)}  ({document.name})")
    width = max((len(task["id"]) for task in tasks), default=0)
    for task in tasks:
        print(f"  {task['id']:<{width}}  {task.get('name', '')}".rstrip())
    _show_variables(declared(document))
    return 0


def _show_variables(variables: dict[str, dict[str, Any]]) -> None:
    """List the variables: their defaults, or where else their values come from."""
    if variables:
        print("variables")
    width = max(map(len, variables), default=0)
    for name, entry in variables.items():
        text = f"  {entry['description']}" if entry.get("description") else ""
        print(f"  {name:<{width}}  {_origin(name, entry)}{text}")


def _origin(name: str, entry: dict[str, Any]) -> str:
    """Where the value of a variable comes from, when none is given."""
    default = entry.get("default")
    if entry.get("required"):
        says = "required"
    elif default in (None, ""):
        says = "empty"
    else:
        says = "secret" if entry.get("secret") is True else text_of(default)
    if not inherits(entry):
        return says
    return f"from the environment (${name} is {'set' if os.environ.get(name) else 'not set'}), else {says}"


def dry_run(plan: Plan, transport: Transport, args: typed.Run) -> int:
    """Show every step, expanded and masked, and whether it would run; guards are evaluated."""
    masked = protect([plan]).value(plan)
    run = runs.Run(runs.new_id(), transport)
    transport.start(run.id, {**plan, "run": run.id, "dry": True})
    status = 0
    try:
        for event in run.events():
            if event["type"] == "run.finished":
                status = event["exit"]
            elif event["type"] == "step.planned":
                if args.json:
                    line = {**about_node(args), **event}
                    print(json.dumps({**line, "definition": masked["steps"][event["index"]]}))
                else:
                    _show(masked["steps"][event["index"]], event)
    finally:
        # Ctrl-C: the guard under way must end, too.
        while run.alive():
            run.cancel()
            time.sleep(0.05)
        transport.discard(run.id)
    return status


def _show(step: dict[str, Any], event: StepPlanned) -> None:
    name = "" if step["name"] == step["id"] else f"  {step['name']}"
    verdict = f"skip: {skipped(event)}" if event["reason"] else "run"
    if event.get("detail") and not event["reason"]:
        verdict = f"fail: {event['detail']}"
    print(f"{step['id']}{name}\n    would {verdict}")
    if "because" in event:
        print(f"    {runs_again(event['because'])}")
    if step.get("guard") is not None:
        print(_indent("skip_if", step["guard"]))
    for command in step["commands"]:
        print(_indent("$", command["text"]))
    for key in ("service", "wait_for", "files", "outputs"):
        if step.get(key):
            value = (
                {k: v for k, v in step[key].items() if k != "definition"} if key == "service" else step[key]
            )
            print(_indent(key, json.dumps(value)))


def _indent(label: str, text: str) -> str:
    first, *rest = text.split("\n")
    return "\n".join([f"    {label} {first}", *(f"      {line}" for line in rest)])
