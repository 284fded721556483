"""One task file as a plan for each of several nodes, and the runs of them all at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from taskrunner import api
from taskrunner.engine.plan import Plan
from taskrunner.errors import Problem, TaskFileError, in_order
from taskrunner.fleet.nodes import Node, Nodes
from taskrunner.fleet.parallel import Fleet, Work
from taskrunner.runs import Run
from taskrunner.transports import ReachOptions, Transport

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from taskrunner.model.models import TaskFile


def defaults(nodes: Nodes, node: Node) -> dict[str, str]:
    """What a run on a node is told: of every node its addresses, its own name and variables."""
    return {**nodes.variables(), "NODE_NAME": node.name, **node.variables}


def compile_for(
    nodes: Nodes,
    chosen: Sequence[Node],
    file: str | Path | TaskFile | api.LoadedFile,
    **options: Unpack[api.Options],
) -> dict[str, Plan]:
    """The plan of a file for each node, by its name. Raises TaskFileError with the problems of all."""
    loaded = api.load(file)
    plans: dict[str, Plan] = {}
    problems: list[Problem] = []
    for node in chosen:
        own = options.copy()
        own["defaults"] = {**defaults(nodes, node), **options.get("defaults", {})}
        try:
            plans[node.name] = api.compile(loaded, on=node.name, **own)
            if len(chosen) > 1:
                # What several nodes bring back must not end in one place.
                plans[node.name]["node"] = node.name
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
    file: str | Path | TaskFile | api.LoadedFile,
    *,
    max_parallel: int = 0,
    serial: int = 0,
    fail_fast: bool = False,
    output: bool | Literal["last"] = False,
    reach: ReachOptions | None = None,
    **options: Unpack[api.Options],
) -> Fleet:
    """A task file on nodes ("node1,decode", "all"): a Fleet, whose `events` bring it about.

    Raises TaskFileError, NotFoundError; what goes wrong on a node is an event.
    """
    chosen = nodes.select(names)
    plans = compile_for(nodes, chosen, file, **options)
    return fleet(
        chosen,
        lambda node, transport, idle: api.begin(plans[node.name], transport, idle=idle),
        reach or {},
        max_parallel=max_parallel,
        serial=serial,
        fail_fast=fail_fast,
        output=output,
    )
