"""`experiment PLAN run|status|collect|report|...`: a sweep of a plan, here or on nodes."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

from taskrunner.cli import batch, pilot, sweeps, typed
from taskrunner.cli.commands import plan as plan_command
from taskrunner.cli.commands.analyze import needs_extra
from taskrunner.cli.commands.nodes import described
from taskrunner.cli.commands.plan import FOLDER
from taskrunner.cli.commands.run import variables
from taskrunner.cli.progress import Progress, what_is_left
from taskrunner.errors import UsageError
from taskrunner.experiments import results, snapshot
from taskrunner.experiments.schedule import Schedule
from taskrunner.experiments.sweep.files import serving
from taskrunner.inference.sweep.measured import OTHER

if TYPE_CHECKING:
    from taskrunner.fleet.nodes import Node

FAILED = 1
MOST_NAMED = 12
"""Patterns that a command line names; beyond, the same command measures what is missing and nothing else."""
WITH_NAMES = ("run", "list", "status")
"""The verbs that take names of layers and patterns."""
OF_RUN = ("rerun", "only_failed", "dry_run", "detach")
"""Options that change what `run` and `extend` do."""


def experiment(args: typed.Experiment) -> int:
    """Do what is asked for."""
    if args.names and args.verb not in WITH_NAMES:
        raise UsageError(f"{args.verb} takes no names", "it is about the whole sweep")
    if args.scheduler and args.verb == "attach":
        raise UsageError("attach cannot be used with --on slurm", "the job's log is in the results' folder")
    if args.verb not in ("run", "extend"):
        for name in OF_RUN:
            if getattr(args, name):
                option = name.replace("_", "-")
                raise UsageError(f"--{option} has no effect on {args.verb}", "it is an option of run")
    return HANDLERS[args.verb](args)


def _scheduled(args: typed.Experiment, names: Sequence[str], more_blocks: int = 0) -> Schedule:
    """The schedule, with the blocks by which it was extended."""
    chosen = list(names)
    if args.verb != "extend" and args.blocks is not None:
        return plan_command.scheduled(args, chosen, variables(args.env))._replace(mixed=args.accept_mixed)
    stated = typed.changed(args, blocks=None)
    planned = plan_command.scheduled(stated, chosen, variables(args.env))
    blocks = max(planned.blocks, results.blocks(FOLDER / planned.name)) + more_blocks
    if blocks != planned.blocks:
        planned = plan_command.scheduled(typed.changed(args, blocks=blocks), chosen, variables(args.env))
    return planned._replace(mixed=args.accept_mixed)


def _run(args: typed.Experiment) -> int:
    names = list(args.names)
    if args.only_failed:
        names = _failed(args)
        if not names:
            print("nothing has failed", file=sys.stderr)
            return 0
    return _sweep(args, _scheduled(args, names))


def _failed(args: typed.Experiment) -> list[str]:
    """The patterns that have a result which does not count."""
    rows = results.rows(_scheduled(args, args.names), FOLDER)
    return sorted({row.pattern for row in rows if row.why and row.values is not None})


def _extend(args: typed.Experiment) -> int:
    """Measure more blocks of what is replicated."""
    return _sweep(args, _scheduled(args, [], args.blocks or 1))


def _sweep(args: typed.Experiment, planned: Schedule) -> int:
    if not planned.starts and not planned.tool_runs:
        reasons = "; ".join(f"{name}: {one.why}" for name, one in planned.verdicts.items() if not one.runs)
        what = f"nothing of {planned.plan.name} can be measured"
        raise UsageError(what, reasons or "`plan show` tells what each pattern is")
    if args.dry_run:
        print("\n".join(plan_command.lines(planned)))
        return 0
    since = time.time() if args.rerun else 0.0
    if args.scheduler:
        jobs = batch.submit(args, planned, since)
        print(f"submitted: {', '.join(jobs)}" if not args.json else json.dumps({"jobs": jobs}))
        return 0
    pairs = sweeps.pairs(args, planned)
    nodes = [node for pair in pairs for node in pair]
    if len(nodes) > 1:
        sweeps.refuse_second(args, planned, nodes)
    if not (args.json or args.quiet):
        print(_summary(planned), file=sys.stderr)
    _say_what_is_replaced(args, planned)
    status = sweeps.start(args, planned, pairs, since)
    if args.detach:
        return status
    sweeps.fetch(args, planned, pairs, missing=True)
    measured = _report(args, planned)
    if args.pilot and not measured:
        with needs_extra():
            spreads = pilot.judge(FOLDER / planned.name)
        whole = _scheduled(typed.changed(args, pilot=False), [])
        print("\n".join(pilot.lines(whole, spreads, whole.replicated)))
    return max(measured, status if status > FAILED else 0)


def _say_what_is_replaced(args: typed.Experiment, planned: Schedule) -> None:
    other = sum(row.why == OTHER for row in results.rows(planned, FOLDER))
    if other and not args.rerun:
        what = "1 result is" if other == 1 else f"{other} results are"
        print(
            f"{what} of other servers or settings, and measured again; --accept-mixed keeps them",
            file=sys.stderr,
        )


def _summary(planned: Schedule) -> str:
    counts = [
        (sum(len(start.patterns) for start in planned.starts), "measurements"),
        (len(planned.tool_runs), "runs of tools"),
        (len(planned.starts), "starts"),
        (planned.blocks, "blocks"),
    ]
    left_out = sum(not one.runs for one in planned.verdicts.values())
    more = f"; {left_out} patterns cannot run (`plan show`)" if left_out else ""
    return f"{planned.plan.name}: {', '.join(f'{n} {what}' for n, what in counts if n)}{more}"


def _report(args: typed.Experiment, planned: Schedule, found: list[results.Row] | None = None) -> int:
    """The table of what is measured, and the command for what is not. `found` are its rows, where known."""
    whole = _scheduled(args, []) if args.names else planned
    found = results.rows(planned, FOLDER) if found is None else found
    every = results.rows(whole, FOLDER) if args.names else found
    results.save(FOLDER / planned.name, every)
    words = (_words(args), _options(args)) if args.verb in ("run", "extend") else ()
    snapshot.save(whole, FOLDER / planned.name, *words)
    if args.verb != "status":  # which must be quick
        results.save_parquet(FOLDER / planned.name, every)
    if args.mlflow:
        _log(args, planned, [row.path for row in found if not row.why and row.start is not None])
    if args.json:
        print(json.dumps({"type": "experiment", "rows": [results.as_dict(row) for row in found]}))
    else:
        print("\n".join(results.lines(found)))
    missing = sorted({row.pattern for row in found if row.why})
    if missing and not args.json:
        some = len(missing) <= MOST_NAMED
        lead = "for these alone" if some else "for what is missing"
        print(f"{lead}: {_command(args, missing if some else args.names)}", file=sys.stderr)
    return FAILED if missing else 0


def _log(args: typed.Experiment, planned: Schedule, paths: list[str]) -> None:
    """Send what counts to MLflow, each result once; what cannot be sent now is kept."""
    from taskrunner.cli.commands.mlflow import log

    named = (planned.plan.file.mlflow_config or {}).get("experiment_name", "")
    log(cast("typed.Log", typed.changed(args, files=paths, to="", experiment=named, artifact=[])))


def _command(args: typed.Experiment, names: list[str]) -> str:
    """The command line that measures these patterns, as it can be typed; no secret is in it."""
    return shlex.join([*_words(args), *names, *_options(args)])


def _words(args: typed.Experiment) -> list[str]:
    return [args.program, "experiment", args.plan, "run"]


def _options(args: typed.Experiment) -> list[str]:
    words: list[str] = []
    for option in ("warmup", "iterations", "blocks"):
        if (value := getattr(args, option)) is not None and args.verb != "extend":
            words += [f"--{option}", str(value)]
    words += [word for item in args.infra for word in ("--infra", item)]
    secret = {name for name, entry in serving().items() if entry.get("secret")}
    for item in args.env:
        name = item.partition("=")[0]
        words += ["--env", name if name in secret else item]
    return words + ["--accept-mixed"] * args.accept_mixed


def _nodes(args: typed.Experiment, planned: Schedule) -> list[Node]:
    return [node for pair in sweeps.pairs(args, planned) for node in pair]


def _status(args: typed.Experiment) -> int:
    planned = _scheduled(args, args.names)
    pairs: list[sweeps.Pair] = [[]] if args.json or args.scheduler else sweeps.pairs(args, planned)
    rows = results.rows(planned, FOLDER)
    under_way = (
        [] if args.json else list(_under_way(args, planned, [node for pair in pairs for node in pair]))
    )
    for line in under_way:
        print(f"under way {line}")
    if under_way:
        left = results.left(planned, results.missing(rows))
        print(what_is_left(planned, left, len(pairs)))
    return _report(args, planned, rows)


def _under_way(args: typed.Experiment, planned: Schedule, nodes: Sequence[Node]) -> Iterator[str]:
    if args.scheduler:
        yield from (f"as job {job}: {state.lower()}" for job, state in batch.live(planned))
    else:
        for name, run in sweeps.live(args, planned, nodes):
            yield f"{f'on {name}' if name else 'here'}: {described(run)}"


def _list(args: typed.Experiment) -> int:
    planned = _scheduled(args, args.names)
    if args.json:
        print(json.dumps(snapshot.as_dict(planned), indent=2))
    else:
        print("\n".join(plan_command.lines(planned)))
    return 0


def _attach(args: typed.Experiment) -> int:
    from taskrunner.cli.commands import nodes_run
    from taskrunner.cli.commands.run import attach as attach_one

    planned = _scheduled(args, [])
    pairs = sweeps.pairs(args, planned)
    live = {
        name: run["run"]
        for name, run in sweeps.live(args, planned, [node for pair in pairs for node in pair])
    }
    status = 0
    args = typed.changed(args, remark=Progress(planned, FOLDER, len(pairs)))
    if len(live) == 1:
        ((name, run),) = live.items()
        status = attach_one(typed.changed(sweeps.as_run(args, None, name), run=run))
    elif live:
        status = nodes_run.attach_each(sweeps.as_run(args, None, ",".join(live)), live)
    elif not args.json:
        print("no sweep of this plan is under way", file=sys.stderr)
    sweeps.fetch(args, planned, pairs)
    return max(_report(args, planned), status if status > FAILED else 0)


def _cancel(args: typed.Experiment) -> int:
    from taskrunner.cli.commands.runs import cancel as cancel_one

    planned = _scheduled(args, [])
    if args.scheduler:
        return batch.cancel(planned)
    found = list(sweeps.live(args, planned, _nodes(args, planned)))
    if not found:
        print("no sweep of this plan is under way", file=sys.stderr)
    changed = [typed.changed(sweeps.as_run(args, None, name), run=run["run"]) for name, run in found]
    return max((cancel_one(one) for one in changed), default=0)


def _collect(args: typed.Experiment) -> int:
    planned = _scheduled(args, [])
    if not args.scheduler:  # its jobs write where all nodes see it
        sweeps.fetch(args, planned, sweeps.pairs(args, planned))
    return _report(args, planned)


def _analyze(args: typed.Experiment) -> int:
    from taskrunner.cli.commands.analyze import analyze

    folder = str(FOLDER / _scheduled(args, []).name)
    changed = typed.changed(args, results=folder, doubtful=False, against="", margin="5 %")
    return analyze(cast("typed.Analyze", changed))


def _page(args: typed.Experiment) -> int:
    from taskrunner.cli.commands.report import report

    folder = FOLDER / _scheduled(args, []).name
    more = {"doubtful": False, "lang": "en", "figures": "", "serve": None, "mlflow": args.mlflow}
    changed = typed.changed(args, results=str(folder), output=str(folder / "report.html"), **more)
    return report(cast("typed.Report", changed))


HANDLERS = {
    "run": _run,
    "analyze": _analyze,
    "report": _page,
    "extend": _extend,
    "status": _status,
    "list": _list,
    "attach": _attach,
    "cancel": _cancel,
    "collect": _collect,
}
