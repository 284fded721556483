"""`runner nodes|status|cancel|put|get|shell`: what the nodes do, and what goes to them and from them."""

from __future__ import annotations

import concurrent.futures
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

from taskrunner.cli.commands.runs import LIST_LIMIT
from taskrunner.cli.commands.runs import cancel as cancel_one
from taskrunner.cli.output.format import duration, stamp
from taskrunner.cli.targets import connect_options, nodes_of, one, only, report
from taskrunner.errors import NotFoundError, TaskrunnerError
from taskrunner.fleet.nodes import Node

if TYPE_CHECKING:
    from taskrunner.cli import typed
    from taskrunner.transports import NodeTransport

AT_ONCE = 32


def each(
    args: typed.Nodes, work: Callable[[Node, NodeTransport], Any]
) -> Iterator[tuple[Node, Any, TaskrunnerError | None]]:
    """Do something on every node that is named, in parallel; what it gave, or the error, in order."""

    def do(node: Node) -> tuple[Node, Any, TaskrunnerError | None]:
        try:
            transport = cast("NodeTransport", node.connect(**connect_options(args)))
            try:
                return node, work(node, transport), None
            finally:
                transport.close()
        except TaskrunnerError as error:
            return node, None, error

    pool = concurrent.futures.ThreadPoolExecutor(AT_ONCE)
    try:
        yield from pool.map(do, nodes_of(args)[1])
    finally:
        # After a Ctrl-C nobody waits for what is under way; it can be gone on with.
        pool.shutdown(wait=False, cancel_futures=True)


def show_each(
    args: typed.Nodes,
    answers: Iterator[tuple[Node, Any, TaskrunnerError | None]],
    show: Callable[[Node, Any], None],
    fail: Callable[[Node, TaskrunnerError], None] | None = None,
) -> int:
    """Show what there is of each node, and the errors of those that have none; the exit status."""
    status = 0
    for node, value, error in answers:
        if error is None:
            show(node, value)
            continue
        status = max(status, error.exit_status)
        if fail is not None:
            fail(node, error)
        else:
            report(error, node.name, args)
    return status


def nodes(args: typed.NodesJson) -> int:
    """Which nodes there are: can they be reached, how fast, with which Python, and what runs there."""

    def look(node: Node, transport: NodeTransport) -> dict[str, Any]:
        began = time.monotonic()
        hello = transport.hello()
        connected = time.monotonic() - began
        began = time.monotonic()
        transport.ping()
        return {
            "latency": round(time.monotonic() - began, 4),
            "connect": round(connected, 3),
            "python": hello["python"],
            "engine": hello["version"],
            "state": hello["root"],
            "skew": round(transport.skew, 1),
            "runs": transport.infos(LIST_LIMIT, live=True),
        }

    lines: list[dict[str, Any]] = []

    def show(node: Node, answer: dict[str, Any]) -> None:
        lines.append(
            {
                "node": node.name,
                "address": node.address,
                "user": node.user,
                "port": node.port or None,
                "private": node.private,
                "id": node.id,
                "reachable": True,
                **answer,
            }
        )

    def fail(node: Node, error: TaskrunnerError) -> None:
        show(node, {"reachable": False, "error": str(error), "hint": error.hint})

    status = show_each(args, each(args, look), show, fail)
    if args.json:
        print(json.dumps(lines, indent=2))
        return status
    width = max(map(len, (line["node"] for line in lines)), default=0)
    where = max((len(line["address"] or line["id"]) for line in lines), default=0)
    for line in lines:
        start = f"{line['node']:<{width}}  {line['address'] or line['id']:<{where}}"
        if not line["reachable"]:
            print(f"✗ {start}  {line['error']}")
            print("".join(f"    {text}\n" for text in line["hint"].splitlines()), end="")
            continue
        runs = "; ".join(described(run) for run in line["runs"]) or "nothing is running"
        clock = f"  clock {line['skew']:+.0f} s" if abs(line["skew"]) > 2 else ""
        print(f"✓ {start}  {line['latency'] * 1000:.1f} ms  Python {line['python']}{clock}  {runs}")
    return status


def described(run: dict[str, Any]) -> str:
    """A run under way: its id, its name, and the step that it is at."""
    step = run["step"]
    at = f" at {step['id']} ({step['index'] + 1}/{run['steps']})" if step else ""
    return f"{run['run']} {run['name']}{at}"


def status(args: typed.NodesJson) -> int:
    """What runs on the nodes."""
    answers = each(args, lambda node, transport: (transport.infos(LIST_LIMIT, live=True), transport.infos(1)))
    listed: list[dict[str, Any]] = []

    def keep(node: Node, value: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> None:
        listed.append({"node": node.name, "runs": value[0]})

    def fail(node: Node, error: TaskrunnerError) -> None:
        listed.append({"node": node.name, "runs": [], "error": str(error), "hint": error.hint})

    def show(node: Node, value: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> None:
        live, last = value
        for run in live:
            print(f"{node.name}: {described(run)}, since {stamp(run['started'])}")
        if not live:
            ended = "; ".join(f"last: {run['run']} {run['name']} {run['status']}" for run in last)
            print(f"{node.name}: nothing is running" + (f"; {ended}" if ended else ""))

    if not args.json:
        return show_each(args, answers, show)
    code = show_each(args, answers, keep, fail)
    print(json.dumps(listed, indent=2))
    return code


def cancel(args: typed.CancelOnNodes) -> int:
    """Ask what runs on the nodes to stop, and wait until it has."""
    chosen = nodes_of(args)[1]
    if len(chosen) == 1:
        return cancel_one(only(args, chosen[0].name))

    def stop(node: Node, transport: NodeTransport) -> list[str]:
        live = [known["run"] for known in transport.infos(LIST_LIMIT, live=True)]
        for run in live:
            transport.cancel(run)
        while any(transport.alive(run) for run in live):
            time.sleep(0.1)
        return live

    return show_each(
        args,
        each(args, stop),
        lambda node, ended: print(
            f"{node.name}: " + (f"ended {', '.join(ended)}" if ended else "nothing was running")
        ),
    )


def put(args: typed.Copy) -> int:
    """Copy a file or folder to nodes."""

    def copy(node: Node, transport: NodeTransport) -> tuple[int, float]:
        began = time.monotonic()
        return transport.put(args.source, args.target), time.monotonic() - began

    return show_each(args, each(args, copy), lambda node, done: _copied(node, "sent", *done))


def get(args: typed.Copy) -> int:
    """Copy a file or folder from nodes; from several, into a folder for each."""
    several = len(nodes_of(args)[1]) > 1

    def copy(node: Node, transport: NodeTransport) -> tuple[int, float]:
        target = os.path.join(args.target, node.name, "") if several else args.target
        began = time.monotonic()
        return transport.get(args.source, target), time.monotonic() - began

    return show_each(args, each(args, copy), lambda node, done: _copied(node, "fetched", *done))


def _copied(node: Node, verb: str, count: int, seconds: float) -> None:
    summary = f"{count} file{'s'[: count != 1]} {verb}" if count else "verified up to date"
    print(f"{node.name}: {summary} in {duration(seconds)}")


def shell(args: typed.Shell) -> int:
    """A shell on a node, or one command: by AWS's plugin, or the system's ssh, or srun, which know terminals
    best.
    """
    node = one(args)
    if node.target.startswith("slurm:"):
        from taskrunner.transports.slurm.dialer import parse

        words = parse(node.target).step(*(() if args.command else ("--pty",)))
        sys.stdout.flush()
        os.execv(words[0], [*words, *(args.command or ("bash", "-l"))])
    if not node.target.startswith("ssh:"):
        from taskrunner.aws import session
        from taskrunner.transports.ssm import tunnel

        reached = session.Account(args.region or node.region, args.profile or node.profile)
        if not args.command:
            tunnel.session(reached, node.id)
        tunnel.session(reached, node.id, tunnel.COMMAND, command=[shlex.join(args.command)])
    from taskrunner.transports.ssh.endpoint import resolve

    program = shutil.which("ssh")
    if program is None:
        raise NotFoundError("a shell needs the OpenSSH client", "install it: apt-get install openssh-client")
    endpoint = resolve(node.target)
    words = [program, "-p", str(endpoint.port), "-l", endpoint.user]
    config = os.path.expanduser("~/.ssh/config")
    if os.path.exists(config):
        words += ["-F", config]
    for file in endpoint.identity_files:
        if os.path.exists(file):
            words += ["-i", file]
    hosts = " ".join(f'"{file}"' for file in endpoint.known_hosts)
    words += ["-o", f"UserKnownHostsFile={hosts}"]
    if args.accept_new_host_keys:
        words += ["-o", "StrictHostKeyChecking=accept-new"]
    sys.stdout.flush()
    os.execv(program, [*words, endpoint.alias, *args.command])
