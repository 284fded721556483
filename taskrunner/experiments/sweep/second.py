"""What node 2 does: the server of each tool and the decode server of each start, while node 1 wants them."""

from __future__ import annotations

from collections.abc import Iterator

from taskrunner.experiments.order import Start
from taskrunner.experiments.sweep import tools
from taskrunner.experiments.sweep.steps import (
    LIB,
    PATIENCE_S,
    RENDEZVOUS,
    ROUNDS,
    TOKEN,
    Step,
    Sweep,
    await_begin,
    key_of,
    say,
    settings,
    skipped,
    stop,
)

LIVES = ("", "-2")
"""A decode server may die and be started once more in the same start."""


def steps(sweep: Sweep) -> Iterator[Step]:
    """All that node 2 does."""
    for run in sweep.schedule.tool_runs:
        if run.between:
            yield from tools.server(sweep, run)
    yield {"id": "sample", "extends": "sample-node"}
    for _, starts in sweep.blocks():
        for again in ROUNDS:
            for start in starts:
                if start.configuration.mode != "unified":
                    yield from _decode(sweep, start, again)
    for name, service in (("decode", "vllm-consumer"), ("sampler", "node-sampler")):
        yield {"id": f"stop-{name}", **stop(service), "always": True}
    yield say("over", "node 2 has done its side", "node2", "over", always=True)


def _decode(sweep: Sweep, start: Start, again: str) -> Iterator[Step]:
    key = key_of(start, again)
    skip, title = skipped(sweep, key), f"start {start.number}: {start.configuration.title}"
    yield await_begin(sweep, key, title)
    service = {"extends": "vllm-consumer", "keep_if": "false", "env": settings(start.configuration)}
    meet = f'meet() {{ {LIB} rendezvous "$@" --url {RENDEZVOUS} --patience {PATIENCE_S}; }}; meet'
    failed, over = f"[ -e {sweep.words(key)}-failed ]", f"[ -e {sweep.words(key)}-over ]"
    for life in LIVES:
        common: Step = {
            "skip_if": f"{skip} || {failed} || {over}" if life else f"{skip} || {over}",
            "on_failure": "continue",
            "cwd": "<<ENV_DIR>>",
        }
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
            "env": TOKEN,
            "commands": [
                "word=ready",
                f"{LIB} rendezvous up {health} || word=failed",
                f'[ "$word" = ready ] || touch {sweep.words(key)}-failed',
                f'{meet} say {key}-decode "$word" || true',
                f"{meet} wait {key}-over --while {health} --unless sweep",
                f"touch {sweep.words(key)}-over",
            ],
        }
    yield {"id": f"{key}-stop", **stop("vllm-consumer"), "skip_if": skip}
