"""A plan, or a part of it, as starts and measurements: in which order, why, how long, what it can tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from taskrunner.errors import NotFoundError, closest
from taskrunner.experiments import comparisons as compare
from taskrunner.experiments import feasibility, order
from taskrunner.experiments.configurations import Configuration, configurations, start_minutes
from taskrunner.experiments.durations import Durations
from taskrunner.experiments.models import Replicates, Requests
from taskrunner.experiments.order import Start
from taskrunner.experiments.patterns import END_TO_END, Measurement
from taskrunner.experiments.plan import Plan
from taskrunner.experiments.tools import Run, runs

PREFILL_TOKENS_PER_S, TPOT_MS = 4000.0, 30.0
"""Of 32B on four L40S, where no earlier result says it: for estimates only."""


class Limits(NamedTuple):
    """What the command line says otherwise than the plan; None: as the plan says."""

    warmup: int | None = None
    iterations: int | None = None
    blocks: int | None = None
    pilot: bool = False
    """Two starts of one configuration, to see by how much starts differ."""


class Schedule(NamedTuple):
    """All that a sweep will do."""

    plan: Plan
    starts: Sequence[Start]
    patterns: Mapping[str, Measurement]
    verdicts: Mapping[str, feasibility.Verdict]
    comparisons: Sequence[compare.Matched]
    blocks: int
    replicated: int
    bound: float
    limits: Limits
    tools: Sequence[Measurement]
    """Those of network and GPU tools, and analyses."""
    durations: Durations
    mixed: bool = False
    """Whether results of other servers and settings count, too."""

    @property
    def name(self) -> str:
        """That of its results: a trial with fewer requests does not replace those of the plan."""
        limits = [
            f"{letter}{value}"
            for letter, value in (("w", self.limits.warmup), ("n", self.limits.iterations))
            if value is not None
        ]
        return "-".join([self.plan.name, *limits, *(["pilot"] * self.limits.pilot)])

    def requests(self, pattern: Measurement) -> int:
        """Measured requests of a pattern in one start."""
        if self.limits.iterations is not None:
            return self.limits.iterations
        replicates = self.plan.file.replicates
        # By the plan, not by --blocks: a result of one block counts as one of several.
        if replicates is None or replicates.blocks == 1:
            return int(pattern.measurement_iterations)
        per = self.plan.file.requests or Requests()
        return max(per.per_start, per.per_concurrency * int(pattern.concurrency))

    def warmup(self, pattern: Measurement) -> int:
        """Warm-up requests of a pattern."""
        return int(pattern.warmup_iterations) if self.limits.warmup is None else self.limits.warmup

    def minutes(self, pattern: Measurement) -> float:
        """What measuring a pattern has taken, else an estimate."""
        if measured := self.durations.patterns.get(pattern.id):
            return measured
        one = pattern.prompt_tokens / PREFILL_TOKENS_PER_S + pattern.max_tokens * TPOT_MS / 1e3
        rounds = (self.requests(pattern) + self.warmup(pattern)) / min(pattern.concurrency, 4)
        return float(rounds * one / 60)

    @property
    def setup_minutes(self) -> float:
        return sum(start.minutes for start in self.starts)

    @property
    def measuring_minutes(self) -> float:
        return sum(self.minutes(self.patterns[name]) for start in self.starts for name in start.patterns)

    @property
    def tool_runs(self) -> list[Run]:
        """The runs of the chosen tools, in the plan's order."""
        return [run for pattern in self.tools for run in runs(pattern, self.plan.token_bytes)]

    @property
    def two_nodes(self) -> bool:
        """Whether it needs a pair of nodes, where there is one."""
        servers = any(start.configuration.mode != "unified" for start in self.starts)
        return servers or any(run.between for run in self.tool_runs)

    @property
    def nodes(self) -> int:
        """Nodes that are paid for."""
        return int(self.plan.number("node_count", 2 if self.two_nodes else 1))

    def dealt(self, number: int, count: int) -> Schedule:
        """The part of one of `count` pairs: whole blocks, and for the first one the tools."""
        if count == 1:
            return self
        starts = [start for start in self.starts if (start.block - 1) % count == number]
        return self._replace(starts=starts, tools=self.tools if number == 0 else ())

    @property
    def cost(self) -> float | None:
        """In the currency of `price_per_hour`; None without one."""
        price = self.plan.file.price_per_hour
        return (
            None if price is None else price * self.nodes * (self.setup_minutes + self.measuring_minutes) / 60
        )


def choose(plan: Plan, names: Sequence[str]) -> list[Measurement]:
    """The patterns of names: `all`, a layer, or a pattern. What is ad hoc must be named.

    Raises NotFoundError with the closest names.
    """
    layers = {pattern.layer for pattern in plan.patterns}
    ids = {pattern.id: pattern for pattern in plan.patterns}
    chosen: dict[str, Measurement] = {}
    for name in names or ["all"]:
        if name == "all":
            chosen |= {pattern.id: pattern for pattern in plan.patterns if not pattern.adhoc}
        elif name in ids:
            chosen[name] = ids[name]
        elif name in layers:
            chosen |= {pattern.id: pattern for pattern in plan.patterns if pattern.layer == name}
        else:
            raise NotFoundError(
                f"{plan.name} has no layer or pattern {name!r}", closest(name, [*layers, *ids])
            )
    return [pattern for pattern in plan.patterns if pattern.id in chosen]


def schedule(
    plan: Plan,
    names: Sequence[str] = (),
    limits: Limits | None = None,
    measured: Durations | None = None,
) -> Schedule:
    """What a sweep of these layers and patterns does. Patterns that cannot run are left out of the starts.

    `measured` is how long earlier results have taken.
    """
    limits, durations = limits or Limits(), measured or Durations()
    chosen = choose(plan, names)
    picked = {pattern.id for pattern in chosen}
    # Of the whole plan, whatever is chosen: the servers of a pattern do not depend on what else is measured.
    whole = [one for one in plan.end_to_end() if one.id in picked or not one.adhoc]
    verdicts = {pattern.id: feasibility.verdict(plan, pattern) for pattern in whole}
    running = [pattern for pattern in whole if verdicts[pattern.id].runs]
    every = configurations(plan, running)
    made = [one for one in every if any(pattern.id in picked for pattern in one.patterns)]
    minutes = start_minutes(plan, durations.starts)
    matched = compare.matched(plan, running)
    replicates = plan.file.replicates or Replicates()
    blocks = limits.blocks or replicates.blocks
    pairs = {frozenset((a.id, b.id)) for comparison in matched for a, b in comparison.pairs}

    def compared(one: Configuration, other: Configuration) -> bool:
        return any(frozenset((a.id, b.id)) in pairs for a in one.patterns for b in other.patterns)

    named = {name for pair in pairs for name in pair}

    def replicated(one: Configuration) -> bool:
        return replicates.configurations == "all" or any(pattern.id in named for pattern in one.patterns)

    if limits.pilot:
        made, blocks = [next(filter(replicated, made), made[0])] if made else [], 2
        picked = {pattern.id for one in made for pattern in one.patterns} & picked
    again = [one for one in made if replicated(one) or limits.pilot]
    best = order.ordered(made, minutes, dict(_before(plan)), compared)
    starts = order.starts(
        best, minutes, blocks, again.__contains__, picked, replicates.order == "alternating"
    )
    return Schedule(
        plan,
        starts,
        {pattern.id: pattern for pattern in running if pattern.id in picked},
        {name: one for name, one in verdicts.items() if name in picked},
        matched,
        blocks,
        len(again) if blocks > 1 else 0,
        order.bound(made, minutes) + (blocks - 1) * order.bound(again, minutes),
        limits,
        [pattern for pattern in chosen if pattern.kind != END_TO_END and not limits.pilot],
        durations,
    )


def _before(plan: Plan) -> Iterator[tuple[str, frozenset[str]]]:
    """The layers that must come before each."""
    for layer in plan.file.layers or []:
        needs = layer.depends_on
        yield layer.id, frozenset([needs] if isinstance(needs, str) else needs or [])
