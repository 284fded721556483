"""A sweep of a plan on this machine or on nodes: where it runs, how it is started, what it brings."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from taskrunner import runs
from taskrunner.cli import typed
from taskrunner.cli.commands.plan import FOLDER
from taskrunner.cli.commands.run import variables
from taskrunner.cli.commands.runs import LIST_LIMIT
from taskrunner.cli.progress import Progress
from taskrunner.cli.targets import all_nodes, connect_options
from taskrunner.errors import LockHeldError, NoSuchFileError, NotFoundError, UsageError, closest
from taskrunner.experiments import results
from taskrunner.experiments.schedule import Schedule
from taskrunner.experiments.sweep.files import NODE1, serving, task_files, title
from taskrunner.fleet.nodes import Node
from taskrunner.fleet.plans import private_address
from taskrunner.fleet.plans import sides as jobs_of
from taskrunner.inference.output import write
from taskrunner.inference.sweep.measured import read
from taskrunner.model.variables import NODE
from taskrunner.transports.local import LocalTransport

if TYPE_CHECKING:
    from taskrunner.fleet.nodes import Nodes

ENV_DIR = "~/vllm-env"
"""The default of the packs."""
Pair = list[Node]
"""Prefill's node and decode's, or one for all; none: this machine."""


def pairs(args: typed.Experiment, planned: Schedule) -> list[Pair]:
    """The nodes of a sweep: one pair, or those of --pairs, among which blocks are dealt out."""
    if args.program != "runner":
        if args.pairs:
            raise UsageError("--pairs has no effect on this machine", "use `runner experiment`")
        return [[]]
    nodes: Nodes = all_nodes(cast("typed.Nodes", args))
    if not nodes.nodes:
        raise NotFoundError(
            "no nodes are defined", "set NODE1_IP and NODE2_IP, or use `taskrunner experiment`"
        )
    if args.pairs:
        named = _named_pairs(args.pairs, nodes)
        if len(named) > planned.blocks:
            what = f"--pairs: {len(named)} pairs for {planned.blocks} blocks"
            raise UsageError(what, "whole blocks are dealt out: give fewer pairs, or --blocks")
        return named
    two = planned.two_nodes and len(nodes.nodes) > 1
    return [list(nodes.nodes.values())[: 2 if two else 1]]


def _named_pairs(words: str, nodes: Nodes) -> list[Pair]:
    found: list[Pair] = []
    for word in words.split(","):
        names = word.split(":")
        for name in names:
            if name not in nodes.nodes:
                raise NotFoundError(f"--pairs: no node {name!r}", closest(name, nodes.nodes))
        found.append([nodes.nodes[name] for name in names])
    every = [node.name for pair in found for node in pair]
    if len({len(pair) for pair in found}) > 1 or len(found[0]) > 2 or len(set(every)) < len(every):
        raise UsageError(f"--pairs {words}: expected A:B,C:D", "prefill's node and decode's, each node once")
    return found


def live(args: typed.Experiment, planned: Schedule, nodes: Sequence[Node]) -> Iterator[tuple[str, Any]]:
    """The runs of a plan's sweep that are under way, and on which node ("": here)."""
    transports: list[tuple[str, Any]] = [("", LocalTransport())] if not nodes else []
    options = connect_options(cast("typed.Target", args)) if nodes else {}
    transports += [(node.name, node.connect(**options)) for node in nodes]
    for name, transport in transports:
        try:
            found = transport.infos(LIST_LIMIT, live=True)
        finally:
            transport.close()
        yield from ((name, run) for run in found if run["name"].startswith(title(planned) + ":"))


def refuse_second(args: typed.Experiment, planned: Schedule, nodes: Sequence[Node]) -> None:
    """Two sweeps of one plan exclude each other: their sides would meet the wrong ones."""
    for name, run in live(args, planned, nodes):
        words = f"{args.program} experiment {args.plan}"
        raise LockHeldError(
            run["run"],
            f"a sweep of {planned.plan.name} is under way on {name}",
            f"`{words} attach` follows it, `{words} cancel` stops it",
        )


def start(args: typed.Experiment, planned: Schedule, among: Sequence[Pair], since: float = 0.0) -> int:
    """Write the task files of a sweep and run them. `since`: what was measured before does not count."""
    from taskrunner.cli.commands import nodes_run
    from taskrunner.cli.commands.run import run as run_one

    files = write_files(args, planned, max(1, len(among[0])), len(among), since)
    args = typed.changed(args, remark=Progress(planned, FOLDER, len(among), since))
    if not among[0]:
        return run_one(as_run(args, str(files[0][NODE1]), ""))
    work = [
        (node, path)
        for pair, sides in zip(among, files, strict=True)
        for node, path in zip(pair, sides.values(), strict=True)
    ]
    if len(work) == 1:
        ((node, path),) = work
        return nodes_run.run(cast("typed.RunOnNodes", as_run(args, str(path), node.name)))
    words = ",".join(f"{node.name}:{path}" for node, path in work)
    values = [f"SWEEP={runs.new_id()}", f"RENDEZVOUS_TOKEN={secrets.token_hex()}"]
    changed = cast("typed.RunOnNodes", as_run(args, None, words, values))
    jobs = jobs_of(all_nodes(changed), words, variables(changed.env))
    addresses = {node.name: _addresses(pair, variables(args.env)) for pair in among for node in pair}
    jobs = [job._replace(env={**addresses[job.node.name], **job.env}) for job in jobs]
    # Only the first node of a pair brings results.
    return nodes_run.run_jobs(changed, jobs, apart=False)


def _addresses(pair: Pair, given: Mapping[str, Any]) -> dict[str, str]:
    """Where the nodes of a pair reach each other: its first one is node 1, whatever its name."""
    return {
        name: private_address(node, name)
        for name, node in zip(("NODE1_PRIVATE", "NODE2_PRIVATE"), pair, strict=False)
        if name not in given and name not in node.variables
    }


def write_files(
    args: typed.Experiment, planned: Schedule, nodes: int, pairs: int, since: float = 0.0
) -> list[dict[str, Path]]:
    """Write the task files of each pair: node 1's, and node 2's where there are two `nodes`."""
    folder = FOLDER / planned.name
    folder.mkdir(parents=True, exist_ok=True)
    values = {name: value for name, value in variables(args.env).items() if is_written(name)}
    written = []
    for number in range(pairs):
        suffix = f"-{number + 1}" if pairs > 1 else ""
        files = task_files(planned.dealt(number, pairs), nodes, values, since)
        paths = {side: folder / f"sweep-{side}{suffix}.json" for side in files}
        for side, file in files.items():
            write(str(paths[side]), json.dumps(file, indent=1))
        written.append(paths)
    return written


def as_run(args: typed.Experiment, file: str | None, node: str, env: list[str] | None = None) -> Any:
    """The arguments of a run of a file."""
    return typed.changed(
        args,
        file=file,
        node=node,
        tag=None,
        on=None,
        # The others stand in the sweep's own files.
        env=[*(item for item in args.env if not is_written(item.partition("=")[0])), *(env or [])],
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


def is_written(name: str) -> bool:
    """Whether a variable's value stands in the sweep's files: no secret, and nothing of the nodes."""
    return not serving().get(name, {}).get("secret") and not NODE.fullmatch(name)


def fetch(args: typed.Experiment, planned: Schedule, among: Sequence[Pair], missing: bool = False) -> None:
    """Bring what was measured while nobody watched, or into another folder; the later of two results is kept.

    `missing`: only if something is.
    """
    if missing and not any(row.why for row in results.rows(planned, FOLDER)):
        return
    target = FOLDER / planned.name
    for pair in among:
        given = {**(pair[0].variables if pair else {}), **variables(args.env)}
        folder = f"{given.get('ENV_DIR', ENV_DIR)}/results/{planned.name}"
        if not pair:
            _copy(Path(folder).expanduser(), target)
            continue
        transport = cast("Any", pair[0].connect(**connect_options(cast("typed.Target", args))))
        copies = target / ".fetched" / pair[0].name
        try:
            transport.get(folder.removeprefix("~/"), copies)
            _copy(copies, target)
        except NoSuchFileError:
            pass  # nothing is measured yet
        finally:
            transport.close()


def _copy(source: Path, target: Path) -> None:
    for file in source.rglob("result.json"):
        place = file.relative_to(source)
        if not any(part.startswith(".") for part in place.parts) and _began(file) > _began(target / place):
            write(str(target / place), file.read_text(encoding="utf-8").rstrip("\n"))


def _began(path: Path) -> float:
    """When a result was measured; below zero for none."""
    record = read(path)
    if record is None:
        return -1.0
    metadata = record.get("metadata")
    about = metadata if isinstance(metadata, dict) else record
    began = about.get("began") or about.get("started_at")
    return float(began) if isinstance(began, (int, float)) else 0.0
