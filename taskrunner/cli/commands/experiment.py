"""`experiment PLAN run|status|list|attach|cancel|collect`: a sweep of a plan, here or on nodes."""

from __future__ import annotations

import json
import secrets
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from taskrunner import runs
from taskrunner.cli import typed
from taskrunner.cli.commands import plan as plan_command
from taskrunner.cli.commands.run import variables
from taskrunner.cli.commands.runs import LIST_LIMIT
from taskrunner.cli.targets import all_nodes, connect_options
from taskrunner.errors import LockHeldError, NotFoundError, UsageError
from taskrunner.experiments import results, sweep
from taskrunner.experiments.schedule import Schedule
from taskrunner.fleet.nodes import Node
from taskrunner.fleet.plans import sides
from taskrunner.inference.output import write
from taskrunner.model.variables import NODE
from taskrunner.transports.local import LocalTransport

if TYPE_CHECKING:
    from taskrunner.fleet.nodes import Nodes

FOLDER = Path("results")
ENV_DIR = "~/vllm-env"
"""The default of the packs."""
FAILED = 1
ROLES = {sweep.NODE1: 0, sweep.NODE2: 1}


def experiment(args: typed.Experiment) -> int:
    """Do what is asked for."""
    if args.names and args.verb not in ("run", "list", "status"):
        raise UsageError(f"{args.verb} takes no names", "it is about the whole sweep")
    return HANDLERS[args.verb](args)


def _scheduled(args: typed.Experiment, names: list[str]) -> Schedule:
    return plan_command.scheduled(args, names, variables(args.env))


def _run(args: typed.Experiment) -> int:
    planned = _scheduled(args, args.names)
    if not planned.starts:
        reasons = "; ".join(f"{name}: {one.why}" for name, one in planned.verdicts.items() if not one.runs)
        what = f"nothing of {planned.plan.name} can be measured"
        raise UsageError(what, reasons or "tools run by their packs")
    if args.dry_run:
        print("\n".join(plan_command.lines(planned)))
        return 0
    chosen = _nodes(args, planned)
    if len(chosen) > 1:
        _refuse_second(args, planned, chosen)
    files = _write(planned, max(1, len(chosen)), args)
    if not (args.json or args.quiet):
        print(_summary(planned), file=sys.stderr)
    status = _start(args, chosen, files)
    if args.detach:
        return status
    _fetch(args, planned)
    return max(_report(args, planned), status if status > FAILED else 0)


def _nodes(args: typed.Experiment, planned: Schedule) -> list[Node]:
    """The nodes of the sweep: none for this machine, one, or prefill's and decode's."""
    if args.program != "runner":
        return []
    nodes: Nodes = all_nodes(cast("typed.Nodes", args))
    pair = any(start.configuration.mode != "unified" for start in planned.starts)
    known = list(nodes.nodes.values())
    if not known:
        raise NotFoundError(
            "no nodes are defined", "set NODE1_IP and NODE2_IP, or use `taskrunner experiment`"
        )
    return known[: 2 if pair and len(known) > 1 else 1]


def _refuse_second(args: typed.Experiment, planned: Schedule, chosen: list[Node]) -> None:
    """Two sweeps of one plan exclude each other: their sides would meet the wrong ones."""
    for where, run in _live(args, planned, chosen):
        words = f"{args.program} experiment {args.plan}"
        raise LockHeldError(
            run["run"],
            f"a sweep of {planned.plan.name} is under way {where}",
            f"`{words} attach` follows it, `{words} cancel` stops it",
        )


def _live(
    args: typed.Experiment, planned: Schedule, chosen: list[Node]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The runs of a plan's sweep that are under way, and where."""
    transports = [("here", LocalTransport())] if not chosen else []
    transports += [
        (f"on {node.name}", cast("Any", node.connect(**connect_options(cast("typed.Target", args)))))
        for node in chosen
    ]
    for where, transport in transports:
        try:
            live = transport.infos(LIST_LIMIT, live=True)
        finally:
            transport.close()
        for run in live:
            if run["name"].startswith(sweep.title(planned) + ":"):
                yield where, run


def _write(planned: Schedule, count: int, args: typed.Experiment) -> dict[str, Path]:
    folder = FOLDER / planned.name
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    values = {name: value for name, value in variables(args.env).items() if _is_written(name)}
    for node, file in sweep.task_files(planned, count, values).items():
        path = folder / f"sweep-{node}.json"
        write(str(path), json.dumps(file, indent=1))
        written[node] = path
    return written


def _summary(planned: Schedule) -> str:
    cells = sum(len(start.patterns) for start in planned.starts)
    left_out = sum(not one.runs for one in planned.verdicts.values())
    more = f"; {left_out} patterns cannot run (`plan show`)" if left_out else ""
    counts = f"{cells} measurements, {len(planned.starts)} starts, {planned.blocks} blocks"
    return f"{planned.plan.name}: {counts}{more}"


def _start(args: typed.Experiment, chosen: list[Node], files: dict[str, Path]) -> int:
    from taskrunner.cli.commands import nodes_run
    from taskrunner.cli.commands.run import run as run_one

    if not chosen:
        return run_one(_as_run(args, str(files[sweep.NODE1]), ""))
    if len(chosen) == 1:
        return nodes_run.run(cast("typed.RunOnNodes", _as_run(args, str(files[sweep.NODE1]), chosen[0].name)))
    words = ",".join(f"{chosen[ROLES[node]].name}:{path}" for node, path in files.items())
    values = [f"SWEEP={runs.new_id()}", f"RENDEZVOUS_TOKEN={secrets.token_hex()}"]
    given = variables(args.env)
    for number, node in enumerate(chosen, 1):
        name, address = f"NODE{number}_PRIVATE", node.private or node.address
        if not address and name not in given:
            raise UsageError(f"{node.name}: no private address is known", f"give --env {name}=ADDRESS")
        if name not in given:
            values.append(f"{name}={address}")
    changed = cast("typed.RunOnNodes", _as_run(args, None, words, values))
    # Only node 1 brings results.
    return nodes_run.run_jobs(changed, sides(all_nodes(changed), words, variables(changed.env)), apart=False)


def _as_run(args: typed.Experiment, file: str | None, node: str, env: list[str] | None = None) -> Any:
    """The arguments of a run of a file."""
    return typed.changed(
        args,
        file=file,
        node=node,
        tag=None,
        on=None,
        # The others stand in the sweep's own files.
        env=[*(item for item in args.env if not _is_written(item.partition("=")[0])), *(env or [])],
        env_file=[],
        start=None,
        until=None,
        only=[],
        reset=False,
        check=False,
        list=False,
        dry_run=False,
        max_parallel=0,
        serial=0,
        fail_fast=False,
    )


def _is_written(name: str) -> bool:
    """Whether a variable's value stands in the sweep's files: no secret, and nothing of the nodes."""
    return not sweep.serving().get(name, {}).get("secret") and not NODE.fullmatch(name)


def _report(args: typed.Experiment, planned: Schedule) -> int:
    """The table of what is measured, and the command for what is not."""
    found = results.rows(planned, FOLDER)
    whole = results.rows(_scheduled(args, []), FOLDER) if args.names else found
    results.save(FOLDER / planned.name, whole)
    if args.json:
        print(json.dumps({"type": "experiment", "rows": [results.as_dict(row) for row in found]}))
    else:
        print("\n".join(results.lines(found)))
    missing = sorted({row.pattern for row in found if row.why})
    if missing and not args.json:
        print(f"for these alone: {_command(args, missing)}", file=sys.stderr)
    return FAILED if missing else 0


def _command(args: typed.Experiment, names: list[str]) -> str:
    """The command line that measures these patterns, as it can be typed; no secret is in it."""
    words = [args.program, "experiment", args.plan, "run", *names]
    for option in ("warmup", "iterations", "blocks"):
        if (value := getattr(args, option)) is not None:
            words += [f"--{option}", str(value)]
    words += [word for item in args.infra for word in ("--infra", item)]
    secret = {name for name, entry in sweep.serving().items() if entry.get("secret")}
    for item in args.env:
        name = item.partition("=")[0]
        words += ["--env", name if name in secret else item]
    return shlex.join(words)


def _status(args: typed.Experiment) -> int:
    planned = _scheduled(args, args.names)
    for where, run in [] if args.json else _live(args, planned, _nodes(args, planned)):
        step = run["step"]
        at = f" at {step['id']} ({step['index'] + 1}/{run['steps']})" if step else ""
        print(f"under way {where}: run {run['run']}{at}")
    return _report(args, planned)


def _list(args: typed.Experiment) -> int:
    planned = _scheduled(args, args.names)
    if args.json:
        print(json.dumps(plan_command.as_dict(planned), indent=2))
    else:
        print("\n".join(plan_command.lines(planned)))
    return 0


def _attach(args: typed.Experiment) -> int:
    from taskrunner.cli.commands import nodes_run
    from taskrunner.cli.commands.run import attach as attach_one

    planned = _scheduled(args, [])
    chosen = _nodes(args, planned)
    live = {where: run["run"] for where, run in _live(args, planned, chosen)}
    status = 0
    if len(live) == 1 and not (chosen and len(chosen) > 1):
        (run,) = live.values()
        changed = typed.changed(_as_run(args, None, chosen[0].name if chosen else ""), run=run)
        status = attach_one(changed)
    elif live:
        names = {node.name: live[f"on {node.name}"] for node in chosen if f"on {node.name}" in live}
        status = nodes_run.attach_each(_as_run(args, None, ",".join(names)), names)
    elif not args.json:
        print("no sweep of this plan is under way", file=sys.stderr)
    _fetch(args, planned)
    return max(_report(args, planned), status if status > FAILED else 0)


def _cancel(args: typed.Experiment) -> int:
    from taskrunner.cli.commands.runs import cancel as cancel_one

    planned = _scheduled(args, [])
    chosen = {f"on {node.name}": node.name for node in _nodes(args, planned)}
    status, found = 0, list(_live(args, planned, _nodes(args, planned)))
    for where, run in found:
        changed = typed.changed(_as_run(args, None, chosen.get(where, "")), run=run["run"])
        status = max(status, cancel_one(changed))
    if not found:
        print("no sweep of this plan is under way", file=sys.stderr)
    return status


def _collect(args: typed.Experiment) -> int:
    planned = _scheduled(args, [])
    _fetch(args, planned)
    return _report(args, planned)


def _fetch(args: typed.Experiment, planned: Schedule) -> None:
    """Bring what is measured and not here: while nobody watched, or from another folder."""
    if not any(row.why for row in results.rows(planned, FOLDER)):
        return
    nodes = _nodes(args, planned)[:1]
    given = {**(nodes[0].variables if nodes else {}), **variables(args.env)}
    folder, target = f"{given.get('ENV_DIR', ENV_DIR)}/results/{planned.name}", FOLDER / planned.name
    if not nodes:
        source = Path(folder).expanduser()
        for file in source.rglob("result.json"):
            text, copy = file.read_text(encoding="utf-8"), target / file.relative_to(source)
            if not copy.exists() or copy.read_text(encoding="utf-8") != text:
                write(str(copy), text.rstrip("\n"))
        return
    transport = cast("Any", nodes[0].connect(**connect_options(cast("typed.Target", args))))
    try:
        transport.get(folder.removeprefix("~/"), target)
    except NotFoundError:
        pass  # nothing is measured yet
    finally:
        transport.close()


HANDLERS = {
    "run": _run,
    "status": _status,
    "list": _list,
    "attach": _attach,
    "cancel": _cancel,
    "collect": _collect,
}
