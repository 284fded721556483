"""Steps that both nodes of a sweep have: words in the rendezvous, guards by content, stopping a service."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from taskrunner.experiments.cells import Cell, cells, fingerprint, place
from taskrunner.experiments.configurations import Configuration
from taskrunner.experiments.order import Start
from taskrunner.experiments.schedule import Schedule
from taskrunner.inference.sweep.measured import ANY

LIB = 'python3 "$TASKRUNNER_LIB/inference"'
RENDEZVOUS = "http://<<NODE1_PRIVATE>>:<<RENDEZVOUS_PORT>>"
PATIENCE_S = 900
"""Seconds that node 2 waits for an answer of node 1 while its server runs: a cut, or the end of node 1."""
ROUNDS = ("", "again")
"""What is not done at a block's end is tried once more."""
TOKEN = {"RENDEZVOUS_TOKEN": "<<RENDEZVOUS_TOKEN>>"}
Step = dict[str, Any]


class Sweep(NamedTuple):
    """What is measured, and whether on two nodes."""

    schedule: Schedule
    two: bool
    since: float = 0.0
    """What was measured before does not count; seconds since the epoch."""

    def blocks(self) -> Iterator[tuple[int, list[Start]]]:
        """The starts of each block."""
        for block, starts in itertools.groupby(self.schedule.starts, lambda start: start.block):
            yield block, list(starts)

    def guard(self, cells: Iterable[Cell]) -> str:
        """Holds when all of these are measured."""
        schedule = self.schedule
        return self.measured((place(schedule, cell), fingerprint(schedule, cell)) for cell in cells)

    def measured(self, results: Iterable[tuple[str, str]]) -> str:
        """Holds when the results in these folders, with these fingerprints, are there and count."""
        words = " ".join(f"{where}={ANY if self.schedule.mixed else of}" for where, of in results)
        if self.since:
            return f"cd <<ENV_DIR>> && {LIB} measured {words} --since {self.since:.3f}"
        # What was found to count, and has not changed since, needs no Python: a sweep asks for it often.
        return (
            f"cd <<ENV_DIR>> && known() {{ local w r; for w; do r=results/${{w%=*}}/result.json;"
            f" [ -e $r ] && [ results/.measured/${{w%=*}}/${{w##*=}} -nt $r ] || return 1; done; }};"
            f" known {words} || {LIB} measured {words}"
        )

    def words(self, key: str) -> str:
        """The file in which a node keeps what it was told."""
        return f"results/{self.schedule.name}/words-<<SWEEP>>/{key}"


def key_of(start: Start, again: str) -> str:
    """What the ids of a start's steps begin with, in each of ROUNDS."""
    return f"s{start.number}{again}"


def measuring(schedule: Schedule) -> dict[str, Cell]:
    """The cells, by the ids of the steps that measure them."""
    return {
        f"{key_of(cell.start, again)}-{cell.pattern.id}": cell for cell in cells(schedule) for again in ROUNDS
    }


def unless_down(done: str, urls: Iterable[str]) -> str:
    """The guard of what needs these servers: without one of them it would only wait."""
    return " ".join([done, *(f"--server {url}" for url in urls)])


def stop(service: str) -> Step:
    """A step that stops a service."""
    return {"name": f"Stop {service}", "service": {"name": service, "state": "stopped"}}


def say(step: str, title: str, name: str, word: str, always: bool = False) -> Step:
    """A step that sets a word."""
    return {
        "id": step,
        "name": f"Say that {title}",
        "skip_if": "false",
        "on_failure": "continue",
        "env": TOKEN,
        **({"always": True} if always else {}),
        # At the end the other node may be gone for good.
        "commands": [f"{LIB} rendezvous say --url {RENDEZVOUS} {name} {word}" + " --patience 30" * always],
    }


def hear(step: str, title: str, name: str, wanted: str, done: str = "") -> Step:
    """A step that waits for a word, unless `done` holds."""
    return {
        "id": step,
        "name": title,
        "skip_if": done or "false",
        "on_failure": "continue",
        "timeout": "30m",
        "cwd": "<<ENV_DIR>>",
        "env": TOKEN,
        "commands": [f"{LIB} rendezvous wait --url {RENDEZVOUS} {name} --for {wanted}"],
    }


def begin(key: str, title: str, done: str) -> Step:
    """A step of node 1 that tells node 2 what comes, or that there is nothing to be done."""
    return {
        "id": f"{key}-begin",
        "name": f"Tell node 2 about {title}",
        "skip_if": "false",
        "cwd": "<<ENV_DIR>>",
        "env": TOKEN,
        "commands": [
            f"if {done}; then word=skip; else word=run; fi",
            # It was said before if this is not the first try; what is left is done in the next round.
            f'{LIB} rendezvous say --url {RENDEZVOUS} {key} "$word" || true',
        ],
    }


def await_begin(sweep: Sweep, key: str, title: str) -> Step:
    """The same on node 2: wait for that word, and keep it."""
    return {
        "id": f"{key}-begin",
        "name": f"Wait for {title}",
        "cwd": "<<ENV_DIR>>",
        "skip_if": f"[ -e {sweep.words(key)} ]",
        "env": TOKEN,
        "commands": [
            f'mkdir -p "$(dirname {sweep.words(key)})"',
            f"word=$({LIB} rendezvous wait --url {RENDEZVOUS} {key} --unless sweep)",
            f'echo "$word" > {sweep.words(key)}',
        ],
    }


def skipped(sweep: Sweep, key: str) -> str:
    """Holds on node 2 when node 1 has said that there is nothing to be done."""
    return f'[ "$(cat {sweep.words(key)} 2>/dev/null)" = skip ]'


def settings(configuration: Configuration) -> dict[str, str]:
    """The servers' variables; the lengths stand in MAX_MODEL_LEN."""
    model = configuration.variables["MODEL"]
    return {
        **{name: value for name, value in configuration.variables.items() if name != "MODEL" or model},
        "PROMPT_TOKENS": str(max(one.prompt_tokens for one in configuration.patterns)),
        "OUTPUT_TOKENS": str(max(one.max_tokens for one in configuration.patterns)),
    }
