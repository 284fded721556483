"""What node 1 does: the tools, then for each start the servers of its side and the measurements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from taskrunner.experiments.cells import Cell, cells, fingerprint, place
from taskrunner.experiments.order import Start
from taskrunner.experiments.sweep import tools
from taskrunner.experiments.sweep.steps import (
    ROUNDS,
    Step,
    Sweep,
    begin,
    hear,
    key_of,
    say,
    settings,
    stop,
    unless_down,
)


def steps(sweep: Sweep) -> Iterator[Step]:
    """All of one node, or what node 1 does."""
    if sweep.two:
        yield {"id": "rendezvous", "name": "Open the rendezvous", "service": {"extends": "rendezvous"}}
    for run in sweep.schedule.tool_runs:
        yield from tools.client(sweep, run)
    every = list(cells(sweep.schedule))
    of_start = {
        start.number: [cell for cell in every if cell.start is start] for start in sweep.schedule.starts
    }
    for block, starts in sweep.blocks():
        for again in ROUNDS:
            for start in starts:
                yield from _start(sweep, start, of_start[start.number], len(every), again)
            yield from _stop_all(sweep, f"b{block}{again}-stop")
    if sweep.two:
        yield say("over", "the sweep is over", "sweep", "over", always=True)
        # Until node 2 has heard it.
        wait = hear("node2", "Wait for node 2", "node2", "over")
        yield {**wait, "always": True, "timeout": "2m"}
        close = stop(f"rendezvous-{sweep.schedule.name}")
        yield {"id": "close", **close, "name": "Close the rendezvous", "always": True}


def _start(sweep: Sweep, start: Start, mine: Sequence[Cell], total: int, again: str) -> Iterator[Step]:
    key = key_of(start, again)
    done, pair = sweep.guard(mine), start.configuration.mode != "unified"
    title = f"start {start.number} of {len(sweep.schedule.starts)}: {start.configuration.title}"
    if pair and sweep.two:
        yield begin(key, title, done)
    for name in ["stop-unified"] if pair else ["stop-proxy", "stop-producer"]:
        yield {"id": f"{key}-{name}", "extends": name, "skip_if": done}
    if not pair and not sweep.two:
        yield {"id": f"{key}-stop-consumer", **stop("vllm-consumer"), "skip_if": done}
    for cell in mine:
        yield from _cell(sweep, key, cell, title, total)
    if pair and sweep.two:
        yield say(f"{key}-over", f"{title} is over", f"{key}-over", "over")


def _cell(sweep: Sweep, key: str, cell: Cell, title: str, total: int) -> Iterator[Step]:
    pattern, done = cell.pattern, sweep.guard([cell])
    pair = cell.start.configuration.mode != "unified"
    own = f"{key}-{pattern.id}"
    common: Step = {"skip_if": done, "on_failure": "continue"}
    servers = ["unified"]
    if pair:
        servers = ["producer"] if sweep.two else ["producer", "consumer"]
    for name in servers:
        # Started, or found to be running still: it may have died under the pattern before.
        # A server that would do is not kept: it is another one than the result says.
        service = {
            "extends": f"vllm-{name}",
            "keep_if": "false",
            "env": dict(settings(cell.start.configuration)),
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
    if pair and sweep.two:
        ready = sweep.words(f"{own}-ready")
        heard = hear(
            f"{own}-decode",
            "Wait for the decode server",
            f"{key}-decode",
            "ready --unless node2",
            f"{done} || [ -e {ready} ]",
        )
        heard["commands"] += [f'mkdir -p "$(dirname {ready})"', f"touch {ready}"]
        yield heard
    urls = ["http://<<NODE1_PRIVATE>>:<<PREFILL_PORT>>/health"]
    if pair:
        urls.append("http://<<NODE2_PRIVATE>>:<<DECODE_PORT>>/health")
        yield {
            "id": f"{own}-proxy",
            "extends": "serve-proxy",
            **common,
            "skip_if": unless_down(done, urls),
        }
        urls.append("http://<<PROXY_HOST>>:<<PROXY_PORT>>/health")
    where = place(sweep.schedule, cell)
    result = f"results/{where}/result.json"
    yield {
        "id": own,
        "extends": "measure" if pair else "measure-unified",
        "name": f"{cell.number} of {total}: {pattern.id}, block {cell.block}, {title}",
        **common,
        "skip_if": unless_down(done, urls),
        "env": {
            "PROMPT_TOKENS": pattern.prompt_tokens,
            "OUTPUT_TOKENS": pattern.max_tokens,
            "CONCURRENCY": pattern.concurrency,
            "REQUESTS": sweep.schedule.requests(pattern),
            "WARMUP": sweep.schedule.warmup(pattern),
            "FABRIC": cell.start.configuration.variables["FABRIC"],
            "BACKEND": pattern.backend,
            "FINGERPRINT": fingerprint(sweep.schedule, cell),
            "PLAN": sweep.schedule.plan.name,
            "PATTERN": pattern.id,
            "BLOCK": cell.block,
            "START": cell.start.number,
            "RESULT": f"{where}/result",
        },
        "outputs": [{"from": f"<<ENV_DIR>>/{result}", "to": result}],
    }


def _stop_all(sweep: Sweep, key: str) -> Iterator[Step]:
    """At a block's end: in the next one the same configuration starts anew. Blocks are for that."""
    names = ["vllm-proxy", "vllm-producer", "vllm-unified"]
    if not sweep.two:
        names.insert(2, "vllm-consumer")
    for name in names:
        yield {"id": f"{key}-{name}", **stop(name)}


def _ready(name: str) -> dict[str, str]:
    port, node = ("DECODE_PORT", "NODE2_PRIVATE") if name == "consumer" else ("PREFILL_PORT", "NODE1_PRIVATE")
    return {"http": f"http://<<{node}>>:<<{port}>>/health"}
