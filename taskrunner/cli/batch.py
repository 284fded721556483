"""A sweep as Slurm jobs: submitted, looked after, cancelled."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from taskrunner import api
from taskrunner.cli import sweeps, typed
from taskrunner.cli.commands.plan import FOLDER
from taskrunner.cli.commands.run import variables
from taskrunner.errors import LockHeldError, UsageError
from taskrunner.experiments import slurm
from taskrunner.experiments.schedule import Schedule
from taskrunner.fleet.plans import knows
from taskrunner.inference.output import write
from taskrunner.transports.slurm import client

JOBS = "slurm-jobs.json"
FROM_JOB = ("NODE1_PRIVATE", "NODE2_PRIVATE", "SWEEP", "RENDEZVOUS_TOKEN")


def submit(args: typed.Experiment, planned: Schedule, since: float) -> list[str]:
    """Submit a job for each pair; their ids. Raises LockHeldError while some are there already."""
    if args.pairs and not (
        args.pairs.isascii() and args.pairs.isdigit() and 0 < int(args.pairs) <= planned.blocks
    ):
        what = f"--pairs {args.pairs}: with Slurm, a number up to that of blocks, {planned.blocks}"
        raise UsageError(what, "Slurm chooses the nodes, and whole blocks are dealt out")
    if args.mlflow:
        raise UsageError(
            "--mlflow cannot be used with --on slurm", "use it with collect, when the jobs have ended"
        )
    for job, state in live(planned):
        words = f"{args.program} experiment {args.plan}"
        raise LockHeldError(
            job, f"job {job} of {planned.name} is {state.lower()}", f"`{words} cancel --on slurm` ends it"
        )
    folder, given = FOLDER / planned.name, variables(args.env)
    secrets = {name: str(value) for name, value in given.items() if not sweeps.is_written(name)}
    options = slurm.Options(args.partition, args.account, args.time)
    count, nodes = int(args.pairs or 1), 2 if planned.two_nodes else 1
    jobs = []
    for number, sides in enumerate(sweeps.write_files(args, planned, nodes, count, since), 1):
        lines = [_words(path, [*FROM_JOB, *secrets]) for path in sides.values()]
        own = f"{given.get('ENV_DIR', sweeps.ENV_DIR)}/results/{planned.name}"
        name = f"taskrunner-{planned.name}" + (f"-{number}" if count > 1 else "")
        log = str(folder / f"slurm-%j-{number}.log")
        text = slurm.script(name, lines, log, (str(folder.absolute()), own), options)
        path = folder / f"slurm-{number}.sh"
        write(str(path), text.rstrip("\n"))
        jobs.append(slurm.submit(str(path), {**os.environ, **secrets}))
        write(str(folder / JOBS), json.dumps(jobs))
    return jobs


def _words(path: Path, names: Iterable[str]) -> list[str]:
    """The command of one side: what a job decides, and secrets, come from its environment."""
    file = api.load(path)
    known = [name for name in dict.fromkeys(names) if knows(file, name)]
    command = [sys.executable, "-m", "taskrunner", str(path)]
    return [*command, *(word for name in known for word in ("--env", name))]


def cancel(planned: Schedule) -> int:
    """End the jobs of a sweep."""
    jobs = [job for job, _ in live(planned)]
    for job in jobs:
        slurm.cancel(job)
        print(f"cancelled: {job}")
    if not jobs:
        print("no job of this plan waits or runs", file=sys.stderr)
    return 0


def live(planned: Schedule) -> Iterator[tuple[str, str]]:
    """The jobs of a sweep that wait or run, with what Slurm says of them."""
    path = FOLDER / planned.name / JOBS
    try:
        jobs = json.loads(path.read_text())
    except (OSError, ValueError):
        return
    for job in jobs if isinstance(jobs, list) else []:
        state = client.state(str(job))
        if state in slurm.LIVE:
            yield str(job), state
