"""`runner`: nodes by name; one file on one of them, or on many at once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from taskrunner import api, runs
from taskrunner.cli.commands.run import CANCELLED, Signals, given, last_file, options, resume
from taskrunner.cli.commands.run import attach as attach_one
from taskrunner.cli.commands.run import run as run_one
from taskrunner.cli.output.nodes_plain import Renderer, renderer
from taskrunner.cli.output.nodes_text import About
from taskrunner.cli.output.streams import protect
from taskrunner.cli.targets import again, connect_options, nodes_of, only, report
from taskrunner.cli.typed import changed
from taskrunner.errors import Detached, TargetError
from taskrunner.fleet.nodes import Node, Nodes
from taskrunner.fleet.parallel import Fleet
from taskrunner.fleet.plans import compile_for, defaults, fleet
from taskrunner.transports import Transport

if TYPE_CHECKING:
    from taskrunner.cli import typed
    from taskrunner.transports.ssm.transport import SsmTransport


def run(args: typed.RunOnNodes) -> int:
    """A file on one node as on this machine, on several in parallel."""
    nodes, chosen = nodes_of(args)
    if args.list or len(chosen) == 1:
        return run_one(only(args, chosen[0].name, defaults=defaults(nodes, chosen[0])))
    if args.dry_run or args.detach:
        status = 0
        for node in chosen:
            _say(args, f"== {node.name} ==")
            try:
                own = run_one(only(args, node.name, defaults=defaults(nodes, node)))
            except TargetError as error:
                # The others can be asked, or started, all the same.
                report(error, node.name, args)
                own = error.exit_status
            status = max(status, own)
        return status
    file = args.file or last_file(args)
    if args.tag and len(chosen) == len(nodes.nodes):
        return _run_tagged(args, file, nodes, chosen)
    plans = compile_for(nodes, chosen, file, **options(args))
    for plan in plans.values():
        plan["given"] = given(args, plan)
    protect(plans.values())
    first = plans[chosen[0].name]
    context = About(first["file"], lambda node, step: resume(only(args, node), file, plans[node], step))
    return _follow(
        args,
        chosen,
        len(first["steps"]),
        context,
        lambda node, transport, idle: api.begin(plans[node.name], transport, idle=idle),
    )


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

    context = About(plan["file"], lambda node, step: resume(only(args, node), file, plan, step))
    # AWS keeps the order.
    at_once_here = changed(args, max_parallel=0, serial=0)
    return _follow(at_once_here, chosen, len(plan["steps"]), context, begin)


def attach(args: typed.AttachOnNodes) -> int:
    """The last run of each node, or one run of one node."""
    _, chosen = nodes_of(args)
    if len(chosen) == 1:
        return attach_one(only(args, chosen[0].name))
    context = About("", lambda node, step: again(only(args, node), "", "FILE", "--from", step))
    return _follow(args, chosen, 0, context, lambda node, transport, _: runs.attach(args.run, transport))


def _follow(
    args: typed.Parallel,
    chosen: list[Node],
    steps: int,
    context: About,
    begin: Callable[[Node, Transport, Callable[[runs.Run], object]], runs.Run],
) -> int:
    for node in [node for node in chosen if node.address][:1]:
        _ = node.connect(**connect_options(args))  # what is wrong for all of them is said once
    show = renderer(args, [node.name for node in chosen], steps, context)
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
