"""Task files as plans for nodes, one for all or one for each, and the runs of them all at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from taskrunner import api
from taskrunner.engine.plan import Plan
from taskrunner.errors import Problem, TaskFileError, UsageError, in_order
from taskrunner.fleet.nodes import Node, Nodes, prefix
from taskrunner.fleet.parallel import Fleet, Work
from taskrunner.model.checks import unused
from taskrunner.runs import Run
from taskrunner.transports import ReachOptions, Transport

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from taskrunner.model.models import TaskFile


Env = Mapping[str, api.Value]


class Job(NamedTuple):
    """What runs on a node: a file, as it was named, and the values of variables that it is given."""

    node: Node
    named: str
    file: api.LoadedFile
    env: Env
    defaults: Mapping[str, str]


def same(
    nodes: Nodes, chosen: Sequence[Node], file: str | Path | TaskFile | api.LoadedFile, env: Env
) -> list[Job]:
    """One file on each of several nodes. Raises NotFoundError, TaskFileError."""
    loaded = api.load(file)
    named = str(file) if isinstance(file, (str, Path)) else ""
    return [Job(node, named, loaded, env, defaults(nodes, node)) for node in chosen]


def sides(nodes: Nodes, names: str, env: Env) -> list[Job]:
    """A file on each node: "node2:low-level-server,node1:low-level-client".

    Each gets the values of `env` whose names mean something to it. With two nodes, PEER is the address of
    the other one. Raises UsageError, NotFoundError, TaskFileError.
    """
    chosen: dict[str, tuple[Node, str, api.LoadedFile]] = {}
    for word in names.split(","):
        name, _, path = word.partition(":")
        if not path:
            raise UsageError(f"{word!r} names no file", "give each node its own: node2:FILE,node1:FILE")
        for node in nodes.select(name):
            if node.name in chosen:
                raise UsageError(f"{node.name} is given two files", "run them one after the other")
            chosen[node.name] = node, path, api.load(path)
    files = [loaded for _, _, loaded in chosen.values()]
    unknown = {name for name in env if not any(knows(file, name) for file in files)}
    work = []
    for node, path, loaded in chosen.values():
        # What means nothing to any of them is reported, once.
        known = {name: value for name, value in env.items() if knows(loaded, name) or name in unknown}
        unknown = set()
        told = defaults(nodes, node)
        if len(chosen) == 2 and "PEER" not in {**told, **env} and knows(loaded, "PEER"):
            other = next(other for other, *_ in chosen.values() if other is not node)
            known["PEER"] = private_address(other, "PEER")
        work.append(Job(node, path, loaded, known, told))
    return work


def defaults(nodes: Nodes, node: Node) -> dict[str, str]:
    """What a run on a node is told: of every node its addresses, its own name and variables."""
    return {**nodes.variables(), "NODE_NAME": node.name, **node.variables}


def knows(file: api.LoadedFile, name: str) -> bool:
    """Whether a variable means something to a file."""
    return not unused(file.document, {name: ""})


def private_address(node: Node, variable: str) -> str:
    """Where other nodes reach a node; `variable` can say it otherwise. Raises UsageError."""
    if address := node.private or node.address:
        return address
    raise UsageError(
        f"{node.name}: no private address is known",
        f"set {prefix(node.name)}_PRIVATE, or give --env {variable}=ADDRESS",
    )


def compile_jobs(
    jobs: Sequence[Job], *, apart: bool = True, **options: Unpack[api.Options]
) -> dict[str, Plan]:
    """The plan of each node, by its name; `apart`: each brings its outputs into a folder of its own.

    Raises TaskFileError with the problems of all.
    """
    plans: dict[str, Plan] = {}
    problems: list[Problem] = []
    for job in jobs:
        own = options.copy()
        own["env"] = job.env
        own["defaults"] = {**job.defaults, **options.get("defaults", {})}
        try:
            plans[job.node.name] = api.compile(job.file, on=job.node.name, **own)
            if apart and len(jobs) > 1:
                # What several nodes bring back must not end in one place.
                plans[job.node.name]["node"] = job.node.name
        except TaskFileError as error:
            problems += error.problems
    if problems:
        raise TaskFileError(in_order(problems))
    return plans


def fleet(
    chosen: Sequence[Node],
    begin: Callable[[Node, Transport, Callable[[Run], object]], Run],
    reach: ReachOptions,
    *,
    max_parallel: int = 0,
    serial: int = 0,
    fail_fast: bool = False,
    output: bool | Literal["last"] = False,
) -> Fleet:
    """Runs on nodes, each as `begin` begins it; see Fleet."""
    work = [Work(node, partial(node.connect, **reach), partial(begin, node)) for node in chosen]
    return Fleet(work, max_parallel=max_parallel, serial=serial, fail_fast=fail_fast, output=output)


def run_on(
    nodes: Nodes,
    names: str,
    file: str | Path | TaskFile | api.LoadedFile | None = None,
    *,
    max_parallel: int = 0,
    serial: int = 0,
    fail_fast: bool = False,
    output: bool | Literal["last"] = False,
    reach: ReachOptions | None = None,
    **options: Unpack[api.Options],
) -> Fleet:
    """A task file on nodes ("node1,decode", "all"), or one on each ("node2:FILE,node1:OTHER", see `sides`):
    a Fleet, whose `events` bring it about.

    Raises TaskFileError, UsageError, NotFoundError; what goes wrong on a node is an event.
    """
    env = options.get("env", {})
    work = sides(nodes, names, env) if file is None else same(nodes, nodes.select(names), file, env)
    plans = compile_jobs(work, **options)
    return fleet(
        [job.node for job in work],
        lambda node, transport, idle: api.begin(plans[node.name], transport, idle=idle),
        reach or {},
        max_parallel=max_parallel,
        serial=serial,
        fail_fast=fail_fast,
        output=output,
    )
