"""A schedule as task files: one engine run on each node does the whole sweep, with nobody watching.

Every step has a guard by content: what is measured and valid is skipped, and a start of which nothing is left
is none. So the same file is started again after whatever has stopped it. On two nodes, node 1 measures and
says when a start begins and ends, node 2 says what becomes of its server; they meet in node 1's rendezvous.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from taskrunner import packs
from taskrunner.errors import NotFoundError, UsageError, closest
from taskrunner.experiments.configurations import BY_PLAN, Configuration, digest
from taskrunner.experiments.order import Start
from taskrunner.experiments.plan import Measurement
from taskrunner.experiments.schedule import Schedule

LIB = 'python3 "$TASKRUNNER_LIB/inference"'
RENDEZVOUS = "http://<<NODE1_PRIVATE>>:<<RENDEZVOUS_PORT>>"
RENDEZVOUS_PORT = 8380
PATIENCE_S = 900
"""Seconds that node 2 waits for an answer of node 1 while its server runs: a cut, or the end of node 1."""
ROUNDS = ("", "again")
"""What is not done at a block's end is tried once more."""
NODE1, NODE2 = "node1", "node2"
Step = dict[str, Any]


class Cell(NamedTuple):
    """A pattern in a block: what one result is of."""

    start: Start
    pattern: Measurement

    @property
    def block(self) -> int:
        return self.start.block


def cells(schedule: Schedule) -> Iterator[Cell]:
    """Every measurement of a schedule, in its order."""
    for start in schedule.starts:
        yield from _cells_of(schedule, start)


def _cells_of(schedule: Schedule, start: Start) -> list[Cell]:
    return [Cell(start, schedule.patterns[name]) for name in start.patterns]


def fingerprint(schedule: Schedule, cell: Cell) -> str:
    """What a result must be of to count: the servers' arguments, and the client's."""
    pattern = cell.pattern
    client = [pattern.prompt_tokens, pattern.max_tokens, pattern.concurrency]
    return digest(
        [cell.start.configuration.key, *client, schedule.requests(pattern), schedule.warmup(pattern)]
    )


def place(schedule: Schedule, cell: Cell) -> str:
    """The folder of a cell's results, below results/."""
    return f"{schedule.name}/{cell.pattern.id}/{cell.block}"


@functools.cache
def serving() -> dict[str, Any]:
    """The variables of the serving packs, by name."""
    found: dict[str, Any] = {}
    for name in ("environment", "serving"):
        found |= json.loads((packs.folder() / "include" / f"{name}.json").read_text())["variables"]
    return found


def title(schedule: Schedule) -> str:
    """What the runs of a sweep are called, before their node."""
    return f"Sweep of {schedule.name}"


def task_files(
    schedule: Schedule, nodes: int = 1, values: Mapping[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """The task file of each node; `values` are those of variables.

    Raises NotFoundError for a variable that the serving packs do not have, UsageError for one of the plan's.
    """
    known = {*serving(), "RENDEZVOUS_PORT"}
    for name in values or {}:
        if name in BY_PLAN:
            raise UsageError(f"--env {name}: the plan decides it, for each pattern")
        if name not in known:
            raise NotFoundError(f"--env {name}: no such variable of the serving packs", closest(name, known))
    sweep = _Sweep(schedule, nodes, values or {})
    files = {NODE1: sweep.file(NODE1, sweep.first())}
    if nodes > 1:
        files[NODE2] = sweep.file(NODE2, sweep.second())
    return files


class _Sweep:
    def __init__(self, schedule: Schedule, nodes: int, values: Mapping[str, str]) -> None:
        self.schedule, self.two, self.values = schedule, nodes > 1, values

    def file(self, node: str, tasks: Iterable[Step]) -> dict[str, Any]:
        return {
            "metadata": {
                "name": f"{title(self.schedule)}: {node}",
                "description": f"The sweep of {self.schedule.name} on {node}",
            },
            "include": str(packs.folder() / "include" / "serving.json"),
            "variables": {
                "SWEEP": {
                    "default": "1",
                    "description": "What tells this sweep's words from those of others",
                },
                "RENDEZVOUS_PORT": {
                    "default": RENDEZVOUS_PORT,
                    "description": "Port on node 1",
                },
                "RENDEZVOUS_TOKEN": {"default": "", "secret": True, "description": "What admits to it"},
                **self.values,
            },
            "services": {
                "rendezvous": {
                    "name": f"rendezvous-{self.schedule.name}",
                    "cwd": "<<ENV_DIR>>",
                    "env": {"RENDEZVOUS_TOKEN": "<<RENDEZVOUS_TOKEN>>"},
                    "command": f"exec {LIB} rendezvous serve --host <<NODE1_PRIVATE>>"
                    " --port <<RENDEZVOUS_PORT>>"
                    f" --state results/{self.schedule.name}/rendezvous-<<SWEEP>>.json",
                    "ready": {"log": "rendezvous on", "timeout": "1m"},
                }
            },
            "tasks": list(tasks),
        }

    def first(self) -> Iterator[Step]:
        """All of one node, or what node 1 does."""
        if self.two:
            yield {"id": "rendezvous", "name": "Open the rendezvous", "service": {"extends": "rendezvous"}}
        for block, starts in self._blocks():
            for again in ROUNDS:
                for start in starts:
                    yield from self._start(start, again)
                yield from self._stop_all(f"b{block}{again}-stop", starts)
        if self.two:
            yield self._say("over", "the sweep is over", "sweep", "over", always=True)
            # Until node 2 has heard it.
            wait = self._await("node2", "Wait for node 2", "node2", "over", "false")
            yield {**wait, "always": True, "timeout": "2m"}
            stop = {"name": f"rendezvous-{self.schedule.name}", "state": "stopped"}
            yield {"id": "close", "name": "Close the rendezvous", "always": True, "service": stop}

    def second(self) -> Iterator[Step]:
        """What node 2 does: the decode server of each start, while node 1 wants it."""
        yield {"id": "sample", "extends": "sample-node"}
        for _, starts in self._blocks():
            for again in ROUNDS:
                for start in starts:
                    if start.configuration.mode != "unified":
                        yield from self._decode(start, again)
        for name, service in (("decode", "vllm-consumer"), ("sampler", "node-sampler")):
            stop = {"name": service, "state": "stopped"}
            yield {"id": f"stop-{name}", "name": f"Stop the {name}", "always": True, "service": stop}
        yield self._say("over", "node 2 has done its side", "node2", "over", always=True)

    def _blocks(self) -> Iterator[tuple[int, list[Start]]]:
        for block in range(1, self.schedule.blocks + 1):
            yield block, [start for start in self.schedule.starts if start.block == block]

    def _start(self, start: Start, again: str) -> Iterator[Step]:
        key = f"s{start.number}{again}"
        mine = _cells_of(self.schedule, start)
        done, pair = self._guard(mine), start.configuration.mode != "unified"
        title = f"start {start.number} of {len(self.schedule.starts)}: {start.configuration.title}"
        if pair and self.two:
            yield self._begin(key, title, done)
        for name in ["stop-unified"] if pair else ["stop-proxy", "stop-producer"]:
            yield {"id": f"{key}-{name}", "extends": name, "skip_if": done}
        if not pair and not self.two:
            yield {"id": f"{key}-stop-consumer", **_stop("vllm-consumer"), "skip_if": done}
        for cell in mine:
            yield from self._cell(key, cell, title, pair)
        if pair and self.two:
            yield self._say(f"{key}-over", f"{title} is over", f"{key}-over", "over")

    def _cell(self, key: str, cell: Cell, title: str, pair: bool) -> Iterator[Step]:
        pattern, done = cell.pattern, self._guard([cell])
        own = f"{key}-{pattern.id}"
        common: Step = {"skip_if": done, "on_failure": "continue"}
        servers = ["unified"]
        if pair:
            servers = ["producer"] if self.two else ["producer", "consumer"]
        for name in servers:
            # Started, or found to be running still: it may have died under the pattern before.
            # A server that would do is not kept: it is another one than the result says.
            service = {
                "extends": f"vllm-{name}",
                "keep_if": "false",
                "env": dict(_settings(cell.start.configuration)),
            }
            if pattern.health_check_timeout:
                service["ready"] = {**_ready(name), "timeout": pattern.health_check_timeout}
            yield {
                "id": f"{own}-{name}",
                "extends": f"serve-{name}",
                "name": f"{title}: {name}",
                **common,
                "service": service,
            }
        if pair and self.two:
            yield self._await(
                f"{own}-decode", "Wait for the decode server", f"{key}-decode", "ready --unless node2", done
            )
        urls = ["http://<<NODE1_PRIVATE>>:<<PREFILL_PORT>>/health"]
        if pair:
            urls.append("http://<<NODE2_PRIVATE>>:<<DECODE_PORT>>/health")
            yield {
                "id": f"{own}-proxy",
                "extends": "serve-proxy",
                **common,
                "skip_if": _unless_down(done, urls),
            }
            urls.append("http://<<PROXY_HOST>>:<<PROXY_PORT>>/health")
        where = place(self.schedule, cell)
        result = f"results/{where}/result.json"
        yield {
            "id": own,
            "extends": "measure" if pair else "measure-unified",
            "name": f"{pattern.id}, block {cell.block}, {title}",
            **common,
            "skip_if": _unless_down(done, urls),
            "env": {
                "PROMPT_TOKENS": pattern.prompt_tokens,
                "OUTPUT_TOKENS": pattern.max_tokens,
                "CONCURRENCY": pattern.concurrency,
                "REQUESTS": self.schedule.requests(pattern),
                "WARMUP": self.schedule.warmup(pattern),
                "FABRIC": cell.start.configuration.variables["FABRIC"],
                "BACKEND": pattern.backend,
                "FINGERPRINT": fingerprint(self.schedule, cell),
                "PLAN": self.schedule.plan.name,
                "PATTERN": pattern.id,
                "BLOCK": cell.block,
                "START": cell.start.number,
                "RESULT": f"{where}/result",
            },
            "outputs": [{"from": f"<<ENV_DIR>>/{result}", "to": result}],
        }

    def _decode(self, start: Start, again: str) -> Iterator[Step]:
        key = f"s{start.number}{again}"
        skipped = f'[ "$(cat {self._words(key)} 2>/dev/null)" = skip ]'
        title = f"start {start.number}: {start.configuration.title}"
        yield {
            "id": f"{key}-begin",
            "name": f"Wait for {title}",
            "cwd": "<<ENV_DIR>>",
            "skip_if": f"[ -e {self._words(key)} ]",
            "env": _TOKEN,
            "commands": [
                f"mkdir -p {os.path.dirname(self._words(key))}",
                f"word=$({LIB} rendezvous wait --url {RENDEZVOUS} {key} --unless sweep)",
                f'echo "$word" > {self._words(key)}',
            ],
        }
        settings = dict(_settings(start.configuration))
        service = {"extends": "vllm-consumer", "keep_if": "false", "env": settings}
        meet = f'meet() {{ {LIB} rendezvous "$@" --url {RENDEZVOUS} --patience {PATIENCE_S}; }}; meet'
        failed = f"[ -e {self._words(key)}-failed ]"
        # It may die and be started once more in the same start.
        for life in ("", "-2"):
            guard = f"{skipped} || {failed}" if life else skipped
            common: Step = {"skip_if": guard, "on_failure": "continue", "cwd": "<<ENV_DIR>>"}
            yield {
                "id": f"{key}-decode{life}",
                "extends": "serve-consumer",
                "name": title,
                **common,
                "service": service,
            }
            health = "http://<<NODE2_PRIVATE>>:<<DECODE_PORT>>/health"
            yield {
                "id": f"{key}-hold{life}",
                "name": f"{title}: until node 1 has measured",
                **common,
                "env": _TOKEN,
                "commands": [
                    "word=ready",
                    f"{LIB} rendezvous up {health} || word=failed",
                    f'[ "$word" = ready ] || touch {self._words(key)}-failed',
                    f'{meet} say {key}-decode "$word" || true',
                    f"{meet} wait {key}-over --while {health} --unless sweep",
                ],
            }
        yield {"id": f"{key}-stop", **_stop("vllm-consumer"), "skip_if": skipped}

    def _begin(self, key: str, title: str, done: str) -> Step:
        return {
            "id": f"{key}-begin",
            "name": f"Tell node 2 about {title}",
            "skip_if": "false",
            "cwd": "<<ENV_DIR>>",
            "env": _TOKEN,
            "commands": [
                f"if {done}; then word=skip; else word=run; fi",
                # It was said before if this is not the first try; what is left is done in the next round.
                f'{LIB} rendezvous say --url {RENDEZVOUS} {key} "$word" || true',
            ],
        }

    def _say(self, step: str, title: str, name: str, word: str, always: bool = False) -> Step:
        return {
            "id": step,
            "name": f"Say that {title}",
            "skip_if": "false",
            "on_failure": "continue",
            "env": _TOKEN,
            **({"always": True} if always else {}),
            # At the end the other node may be gone for good.
            "commands": [
                f"{LIB} rendezvous say --url {RENDEZVOUS} {name} {word}" + " --patience 30" * always
            ],
        }

    def _await(self, step: str, title: str, name: str, wanted: str, done: str) -> Step:
        return {
            "id": step,
            "name": title,
            "skip_if": done,
            "on_failure": "continue",
            "timeout": "30m",
            "env": _TOKEN,
            "commands": [f"{LIB} rendezvous wait --url {RENDEZVOUS} {name} --for {wanted}"],
        }

    def _stop_all(self, key: str, starts: list[Start]) -> Iterator[Step]:
        """At a block's end: in the next one the same configuration starts anew. Blocks are for that."""
        names = ["vllm-proxy", "vllm-producer", "vllm-unified"]
        if not self.two:
            names.insert(2, "vllm-consumer")
        for name in names:
            yield {"id": f"{key}-{name}", **_stop(name)}

    def _guard(self, mine: list[Cell]) -> str:
        words = [
            f"results/{place(self.schedule, cell)}/result.json={fingerprint(self.schedule, cell)}"
            for cell in mine
        ]
        return f"cd <<ENV_DIR>> && {LIB} measured {' '.join(words)}"

    def _words(self, key: str) -> str:
        return f"results/{self.schedule.name}/words-<<SWEEP>>/{key}"


_TOKEN = {"RENDEZVOUS_TOKEN": "<<RENDEZVOUS_TOKEN>>"}


def _unless_down(done: str, urls: Iterable[str]) -> str:
    """The guard of what needs these servers: without one of them it would only wait."""
    return " ".join([done, *(f"--server {url}" for url in urls)])


def _stop(service: str) -> Step:
    return {"name": f"Stop {service}", "service": {"name": service, "state": "stopped"}}


def _ready(name: str) -> dict[str, str]:
    port, node = ("DECODE_PORT", "NODE2_PRIVATE") if name == "consumer" else ("PREFILL_PORT", "NODE1_PRIVATE")
    return {"http": f"http://<<{node}>>:<<{port}>>/health"}


def _settings(configuration: Configuration) -> dict[str, str]:
    """The servers' variables; the lengths stand in MAX_MODEL_LEN."""
    model = configuration.variables["MODEL"]
    return {
        **{name: value for name, value in configuration.variables.items() if name != "MODEL" or model},
        "PROMPT_TOKENS": str(max(one.prompt_tokens for one in configuration.patterns)),
        "OUTPUT_TOKENS": str(max(one.max_tokens for one in configuration.patterns)),
    }
