"""Which target a command line means, and the command line that means it again."""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING, Any, TypeVar, cast

from taskrunner.cli import typed
from taskrunner.errors import TaskrunnerError, UsageError
from taskrunner.transports import ReachOptions, Transport, connect
from taskrunner.transports.local import LocalTransport

if TYPE_CHECKING:
    from taskrunner.fleet.nodes import Node, Nodes

T = TypeVar("T")


def transport_of(args: typed.Target) -> Transport:
    """The target of `--on`, of the one node of `runner`, or this machine."""
    if args.node:
        return one(cast("typed.Nodes", args)).connect(**connect_options(args))
    if args.on is not None:
        return connect(args.on, **connect_options(args))
    return LocalTransport()


def nodes_of(args: typed.Nodes) -> tuple[Nodes, list[Node]]:
    """All nodes, and those that are named: by name, or by a tag."""
    from taskrunner.fleet.nodes import Nodes, tagged

    if args.stack is not None and (args.tag or args.nodes or not args.stack):
        raise UsageError("--stack needs one stack name, and excludes --target and --nodes")
    if args.tag:
        tagged_nodes = tagged(args.tag, region=args.region or "", profile=args.profile or "")
        if args.node not in ("", *tagged_nodes):
            # There is no NODE then; what stands in its place is what follows it.
            for next_one in ("file", "run"):
                if getattr(args, next_one, None) in (None, "last"):
                    setattr(args, next_one, args.node)
            args.node = ""
        nodes = Nodes({name: _as_asked(args, node) for name, node in tagged_nodes.items()}, {})
        return nodes, nodes.select(args.node or "all")
    if not args.node:
        raise UsageError(
            "no node given",
            'give one, several ("node1,node2"), "all", or --target tag:NAME=VALUE',
        )
    nodes = all_nodes(args)
    return nodes, [_as_asked(args, node) for node in nodes.select(args.node)]


def all_nodes(args: typed.Nodes) -> Nodes:
    """The nodes of the stack that is named, or of the environment and the nodes file."""
    from taskrunner.fleet.nodes import Nodes, load_nodes, of_stack

    if args.stack:
        nodes = of_stack(args.stack, region=args.region or "", profile=args.profile or "")
    else:
        nodes = load_nodes(args.nodes or None)
    return Nodes({name: _as_asked(args, node) for name, node in nodes.nodes.items()}, nodes.groups)


def _as_asked(args: typed.Nodes, node: Node) -> Node:
    return node._replace(via=args.via or node.via, user=args.user or node.user)


def one(args: typed.Nodes) -> Node:
    """The one node that is named. Raises UsageError when several are."""
    nodes = nodes_of(args)[1]
    if len(nodes) != 1:
        names = ", ".join(node.name for node in nodes)
        raise UsageError(f"{args.node} matches {len(nodes)} nodes: {names}", "name one of them")
    return nodes[0]


def only(args: T, node: str, **more: Any) -> T:
    """The same arguments for one node."""
    return typed.changed(args, node=node, **more)


def about_node(args: typed.Target) -> dict[str, str]:
    """What tells machines of which node something is; nothing where there is none."""
    return {"node": args.node} if args.node else {}


def report(error: TaskrunnerError, node: str, args: object) -> None:
    """Say what is wrong with one of several nodes."""
    message = str(error).removeprefix(f"{node}: ")
    if getattr(args, "json", False):
        print(json.dumps({"type": "error", "node": node, "message": message, "hint": error.hint}), flush=True)
        return
    print(f"{node}: {message}", file=sys.stderr)
    for line in error.hint.splitlines():
        print(f"  {line}", file=sys.stderr)


def connect_options(args: typed.Target) -> ReachOptions:
    """How to reach a target, as the command line says."""
    given: ReachOptions = {"accept_new_host_keys": args.accept_new_host_keys}
    if args.connect_timeout is not None:
        given["connect_timeout"] = args.connect_timeout
    if args.reconnect_timeout is not None:
        given["reconnect_timeout"] = args.reconnect_timeout
    for name in ("region", "profile", "bucket", "stream"):
        if getattr(args, name) is not None:
            given[name] = getattr(args, name)
    return given


def again(args: typed.Target, verb: str, *words: str) -> str:
    """A command for the same target, as it can be typed; "" for `verb` is to run a file."""
    if args.node:
        nodes: list[str] = []
        for name in ("nodes", "stack", "region", "profile", "user", "via"):
            if getattr(args, name):
                nodes += [f"--{name}", getattr(args, name)]
        return shlex.join(["runner", verb or "run", args.node, *words, *nodes])
    on = ["--on", args.on] if args.on else []
    return shlex.join(["taskrunner", *([verb] if verb else []), *words, *on])
