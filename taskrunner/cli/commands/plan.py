"""`taskrunner plan`: plans of measurements, and what a sweep of one would do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from taskrunner.cli import pilot
from taskrunner.cli.output.format import duration
from taskrunner.errors import TaskFileError, UsageError
from taskrunner.experiments import comparisons, durations, plan, snapshot
from taskrunner.experiments.schedule import Limits, Schedule, schedule
from taskrunner.experiments.sweep.files import task_files

if TYPE_CHECKING:
    from taskrunner.cli import typed

INVALID = 2
FOLDER = Path("results")
"""Where results of plans are, each in a folder of its own."""


def list_(args: typed.Json) -> int:
    """List the plans that come with taskrunner."""
    found = [(path, plan.load(path)) for path in plan.shipped()]
    if args.json:
        listed = [
            {
                "name": path.stem,
                "path": str(path),
                "description": one.file.description,
                "patterns": len(one.patterns),
            }
            for path, one in found
        ]
        print(json.dumps(listed, indent=2))
        return 0
    width = max((len(path.stem) for path, _ in found), default=0)
    for path, one in found:
        print(f"{path.stem:<{width}}  {len(one.patterns):>3} patterns  {one.file.description}")
    return 0


def validate(args: typed.PlanFiles) -> int:
    """Check plans; every problem of each."""
    problems = []
    for name in args.plans:
        try:
            plan.load(name)
        except TaskFileError as error:
            problems += error.problems
    if args.json:
        print(json.dumps([problem.as_dict() for problem in problems], indent=2))
    else:
        for problem in problems:
            print(problem)
        print(f"{len(problems) or 'no'} problem{'s'[: len(problems) != 1]}")
    return INVALID if problems else 0


def show(args: typed.PlanShow) -> int:
    """What a sweep does, or where the settings of one pattern come from."""
    planned = scheduled(args, args.names)
    if args.json:
        print(json.dumps(snapshot.as_dict(planned), indent=2))
        return 0
    if len(args.names) == 1 and args.names[0] in {pattern.id for pattern in planned.plan.patterns}:
        _show_pattern(planned, args.names[0])
        return 0
    for line in lines(planned):
        print(line)
    return 0


def generate(args: typed.PlanGenerate) -> int:
    """Write the task files of a sweep."""
    planned = scheduled(args, args.names)
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    for node, file in task_files(planned, args.count).items():
        if args.count > 1:
            # Each sweep has words of its own: see `runner experiment`, which chooses them.
            for name in ("SWEEP", "RENDEZVOUS_TOKEN"):
                file["variables"][name] |= {"required": True}
                file["variables"][name].pop("default", None)
        path = folder / f"{planned.plan.name}-{node}.json"
        path.write_text(json.dumps(file, indent=1) + "\n")
        print(f"{path}: {len(file['tasks'])} steps")
    return 0


def scheduled(args: typed.PlanArgs, names: list[str], values: Mapping[str, str] | None = None) -> Schedule:
    """The schedule that the arguments mean; `values` are those of serving variables."""
    infrastructure = {}
    for word in args.infra:
        name, separator, value = word.partition("=")
        if not separator:
            raise UsageError(f"--infra {word}: expected NAME=VALUE", "for example --infra gpu_type=L40S")
        infrastructure[name] = value
    limits = Limits(args.warmup, args.iterations, args.blocks, args.pilot)
    loaded = plan.load(args.plan, infrastructure, values)
    return schedule(loaded, names, limits, durations.read(FOLDER / loaded.name))


def lines(planned: Schedule) -> list[str]:
    """A schedule for people."""
    text = [f"{planned.plan.name}: {planned.plan.title}"]
    text += _starts(planned)
    impossible = [(name, one.why) for name, one in planned.verdicts.items() if not one.runs]
    queueing = [(name, one.why) for name, one in planned.verdicts.items() if one.queues]
    for title, found in (
        ("cannot run", impossible),
        ("will queue: their times contain waiting", queueing),
    ):
        if found:
            text += ["", f"{len(found)} {title}:", *(f"  {name}: {why}" for name, why in found)]
    text += _told(planned)
    return text + _tools(planned)


def _tools(planned: Schedule) -> list[str]:
    """What runs before any server, and what does not run."""
    runs = planned.tool_runs
    text = []
    if runs:
        kinds = ", ".join(sorted({run.pattern.tool for run in runs}))
        text += ["", f"{len(runs)} runs of tools before the first start: {kinds}"]
    left = {pattern.id: pattern for pattern in planned.tools} | {run.pattern.id: None for run in runs}
    kinds = ", ".join(sorted({str(one.tool or one.type) for one in left.values() if one}))
    if kinds:
        text += ["", f"not run by a sweep: {kinds}"]
    return text


def _starts(planned: Schedule) -> list[str]:
    text = ["", "start  block  minutes  patterns  servers, and why they start"]
    for start in planned.starts:
        text.append(
            f"{start.number:>5}  {start.block:>5}  {start.minutes:>7.1f}  {len(start.patterns):>8}  "
            f"{start.configuration.title} ({start.why})"
        )
    measured = sum(len(start.patterns) for start in planned.starts)
    text.append("")
    text.append(
        f"{len(planned.starts)} starts, {planned.setup_minutes:.0f} minutes (no order takes less than "
        f"{planned.bound:.0f}); {measured} measurements, about {duration(planned.measuring_minutes * 60)}"
    )
    whole = planned.setup_minutes + planned.measuring_minutes
    budget = planned.plan.file.budget
    if budget and whole > budget.hours * 60:
        text.append(f"over the budget of {budget.hours:g} hours: about {whole / 60:.1f}")
    if planned.cost is not None:
        text.append(f"cost: about {planned.cost:.0f} for {planned.nodes} nodes")
    return text


def _told(planned: Schedule) -> list[str]:
    if not planned.comparisons:
        return []
    measured = pilot.known(FOLDER / f"{planned.name}-pilot")
    spread = measured or comparisons.RESTART_SPREAD
    found = comparisons.detectable(planned.blocks, planned.replicated, spread)
    least = f"differences from {found:.0%} on are found in four of five sweeps" if found else ""
    if least:
        least += f" (starts differ by {spread:.1%}, as {'the pilot has found' if measured else 'is assumed'})"
    text = ["", "comparisons: " + (least or "no replicates, so estimates of these starts only")]
    for one in planned.comparisons:
        count = f"{len(one.pairs)} matched pair{'s'[: len(one.pairs) != 1]}"
        text.append(
            f"  {one.id}  {one.metric}  {count}  {one.title}" + (f": {one.hypothesis}" * bool(one.hypothesis))
        )
    return text


def _show_pattern(planned: Schedule, name: str) -> None:
    (pattern,) = [one for one in planned.plan.patterns if one.id == name]
    print(f"{pattern.id}: {pattern.kind}, layer {pattern.layer}")
    width = max(map(len, pattern.values), default=0)
    for setting, value in sorted(pattern.values.items()):
        print(f"  {setting:<{width}}  {json.dumps(value)}  ({pattern.origins[setting]})")
    verdict = planned.verdicts.get(name)
    if verdict and verdict.why:
        print(f"  {'queues' if verdict.runs else 'cannot run'}: {verdict.why}")
