"""`runner`: nodes by name; one file on one of them, or on many at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, cast

from taskrunner import api, runs
from taskrunner.cli.commands.run import CANCELLED, Signals, given, last_file, options, resume, variables
from taskrunner.cli.commands.run import attach as attach_one
from taskrunner.cli.commands.run import run as run_one
from taskrunner.cli.output.nodes_plain import Renderer, renderer
from taskrunner.cli.output.nodes_text import About
from taskrunner.cli.output.remarks import remarking
from taskrunner.cli.output.streams import protect
from taskrunner.cli.targets import again, all_nodes, connect_options, nodes_of, only, report
from taskrunner.cli.typed import changed
from taskrunner.errors import Detached, TargetError, UsageError
from taskrunner.fleet.nodes import Node, Nodes
from taskrunner.fleet.parallel import Fleet
from taskrunner.fleet.plans import Job, compile_jobs, defaults, fleet, same, sides
from taskrunner.transports import Transport

if TYPE_CHECKING:
    from taskrunner.cli import typed
    from taskrunner.transports.ssm.transport import SsmTransport


def run(args: typed.RunOnNodes) -> int:
    """A file on one node as on this machine, on several in parallel; or a file of its own on each."""
    if ":" in args.node and not args.tag:
        return run_jobs(changed(args, fail_fast=True), _sides(args))
    nodes, chosen = nodes_of(args)
    if args.list or len(chosen) == 1:
        return run_one(only(args, chosen[0].name, defaults=defaults(nodes, chosen[0])))
    file = args.file or last_file(args)
    if args.tag and len(chosen) == len(nodes.nodes) and not (args.dry_run or args.detach):
        return _run_tagged(args, file, nodes, chosen)
    return run_jobs(args, same(nodes, chosen, file, variables(args.env)))


def _sides(args: typed.RunOnNodes) -> list[Job]:
    """What runs where, by NODE:FILE,NODE:FILE. If one side fails, the other is stopped."""
    for option, value in (
        ("--from", args.start),
        ("--until", args.until),
        ("--only", args.only),
        ("--serial", args.serial),
        ("--max-parallel", args.max_parallel),
        (f"the file {args.file!r}", args.file),
    ):
        if value:
            raise UsageError(f"{option} cannot be used with NODE:FILE", "use `runner run NODE FILE`")
    return sides(all_nodes(args), args.node, variables(args.env))


def run_jobs(args: typed.RunOnNodes, work: list[Job], apart: bool = True) -> int:
    """Files on nodes; what comes back goes into a folder for each node, unless it is not `apart`."""
    if args.list or args.dry_run or args.detach or len(work) == 1:
        status = 0
        for job in work:
            if len(work) > 1:
                _say(args, f"== {job.node.name} ==")
            try:
                own = run_one(_alone(args, job))
            except TargetError as error:
                # The others can be asked, or started, all the same.
                report(error, job.node.name, args)
                own = error.exit_status
            status = max(status, own)
        return status
    plans = compile_jobs(work, apart=apart, **options(args))
    files = {job.node.name: job.named for job in work}
    for job in work:
        plan = plans[job.node.name]
        plan["given"] = given(_alone(args, job), plan)
    protect(plans.values())
    context = About(
        lambda node: plans[node]["file"],
        lambda node, step: resume(only(args, node), files[node], plans[node], step),
    )
    return _follow(
        args,
        [job.node for job in work],
        context,
        lambda node, transport, idle: api.begin(plans[node.name], transport, idle=idle),
    )


def _alone(args: typed.RunOnNodes, job: Job) -> typed.RunOnNodes:
    """The same arguments for one node and its file."""
    given_here = {item.partition("=")[0]: item for item in args.env}
    env = [given_here.get(name, f"{name}={value}") for name, value in job.env.items()]
    return only(args, job.node.name, file=job.named, loaded=job.file, env=env, defaults=dict(job.defaults))


def _run_tagged(args: typed.RunOnNodes, file: str, nodes: Nodes, chosen: list[Node]) -> int:
    """A file on all that a tag names: one command of AWS starts it, and goes from one to the next."""
    from taskrunner.engine.node.one_shot import INSTANCE
    from taskrunner.transports.ssm.tagged import Group

    given_options = options(args)
    given_options["defaults"] = {**nodes.variables(), "NODE_NAME": INSTANCE}
    plan = api.compile(file, on=chosen[0].name, **given_options)
    plan["given"], plan["node"] = given(args, plan), INSTANCE
    protect([plan])
    at_once = args.serial or args.max_parallel
    group = Group(
        args.tag or "",
        runs.new_id(),
        concurrency=str(at_once or "100%"),
        errors="0" if args.fail_fast else "100%",
        waits=bool(at_once or args.fail_fast),
    )

    def begin(node: Node, transport: Transport, idle: Callable[[runs.Run], object]) -> runs.Run:
        cast("SsmTransport", transport).group = group
        return api.begin(plan, transport, id=group.run, idle=idle)

    context = About(lambda _: plan["file"], lambda node, step: resume(only(args, node), file, plan, step))
    # AWS keeps the order.
    at_once_here = changed(args, max_parallel=0, serial=0)
    return _follow(at_once_here, chosen, context, begin)


def attach(args: typed.AttachOnNodes) -> int:
    """The last run of each node, or one run of one node."""
    _, chosen = nodes_of(args)
    if len(chosen) == 1:
        return attach_one(only(args, chosen[0].name))
    return attach_each(args, dict.fromkeys((node.name for node in chosen), args.run))


def attach_each(args: typed.AttachOnNodes, names: Mapping[str, str]) -> int:
    """Follow a run of its own on each node, by the nodes' names."""
    _, chosen = nodes_of(args)
    context = About(lambda _: "", lambda node, step: again(only(args, node), "", "FILE", "--from", step))
    return _follow(args, chosen, context, lambda node, transport, _: runs.attach(names[node.name], transport))


def _follow(
    args: typed.Parallel,
    chosen: list[Node],
    context: About,
    begin: Callable[[Node, Transport, Callable[[runs.Run], object]], runs.Run],
) -> int:
    for node in [node for node in chosen if node.address][:1]:
        _ = node.connect(**connect_options(args))  # what is wrong for all of them is said once
    show = remarking(renderer(args, [node.name for node in chosen], context), args)
    parts = fleet(
        chosen,
        begin,
        connect_options(args),
        max_parallel=args.max_parallel,
        serial=args.serial,
        fail_fast=args.fail_fast,
        output=show.wants_output,
    )
    return _watch(parts, show, args)


def _say(args: typed.Json, text: str) -> None:
    if not args.json:
        print(text, flush=True)


def _watch(fleet: Fleet, show: Renderer, args: typed.Nodes) -> int:
    """Show the nodes until all have ended. The first Ctrl-C asks them to stop, the second leaves."""
    asked = False

    def idle() -> None:
        nonlocal asked
        if signals.stop and not asked:
            asked = True
            fleet.cancel()
            show.note("stopping the steps, then running clean-up steps; press Ctrl-C again to detach")

    with Signals() as signals:
        try:
            with show:
                for name, event in fleet.events(idle):
                    show.event(name, event)
            show.summary()
            return fleet.exit
        except Detached:
            doing = "are stopping" if asked else "keep running"
            print(f"detached; the runs {doing}: `{again(args, 'attach')}` shows them", file=sys.stderr)
            return CANCELLED
